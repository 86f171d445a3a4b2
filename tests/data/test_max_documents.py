"""`max_documents`: those kept first of each source, whatever interrupts the preparation."""

import json

import pytest

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, DataError
from shoestring.data.config import DataConfig, NewTokenizerConfig
from shoestring.data.prepare import Settings, prepare
from shoestring.data.sources import documents
from shoestring.pretraining.dataset import open_corpus


@pytest.fixture
def rows(tmp_path):
    """Forty documents, of which every fifth is the first one again."""
    file = tmp_path / "rows.jsonl"
    texts = [f"row {0 if n % 5 == 0 else n} is about {'abc'[n % 3] * 9}" if n % 5 else "the first" for n in range(40)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def kept(rows, most):
    """The first different ones, by split."""
    found = {document.text: document for document in reversed(list(documents(rows, validation=0.4)))}
    order = list(dict.fromkeys(document.text for document in documents(rows, validation=0.4)))
    return [found[text] for text in order[:most]]


def test_the_first_documents_that_are_kept_are_all_that_is_written(rows, tmp_path):
    small = NewTokenizerConfig(vocabulary=270)
    shards = prepare(rows, small, tmp_path / "out", validation=0.4, settings=Settings(documents=12))
    expected = kept(rows, 12)
    for split in ("train", "validation"):
        texts = [shards.tokenizer.decode(d.tokens.tolist()) for d in shards.documents_of(split)]
        assert texts == [document.text for document in expected if document.split == split]
    for other in (Settings(documents=13), Settings()):
        with pytest.raises(DataError, match="prepared with documents 12"):
            prepare(rows, small, tmp_path / "out", validation=0.4, settings=other)


def test_a_recipe_prepares_them_apart_from_the_whole(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    config = DataConfig(source=str(rows), validation=0.4, tokenizer=NewTokenizerConfig(vocabulary=270))

    def count(config):
        corpus = open_corpus(config)
        return corpus.document_count("train") + corpus.document_count("validation")

    assert count(config) == 33
    assert count(config.model_copy(update={"max_documents": 12})) == 12
    assert count(config) == 33


def test_where_nothing_is_prepared_it_is_refused(rows, tmp_path):
    prepare(rows, NewTokenizerConfig(vocabulary=270), tmp_path / "shards", validation=0.4)
    with pytest.raises(ConfigError, match="max_documents.*is prepared already"):
        open_corpus(DataConfig(source=str(tmp_path / "shards"), max_documents=5))
    with pytest.raises(ValueError, match="max_documents is for text that is prepared"):
        DataConfig(source=str(rows), tokenizer="smollm2-135m", on_the_fly=True, max_documents=5)


def test_the_verb_takes_them_too(rows, tmp_path, capsys):
    command = ["prepare", str(rows), "--vocabulary", "270", "--validation", "0.4", "--out", str(tmp_path / "out")]
    assert main([*command, "--max-documents", "0"]) == 2
    assert main([*command, "--max-documents", "12", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(split["documents"] for split in told["splits"].values()) == 12
