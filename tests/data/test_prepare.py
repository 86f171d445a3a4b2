"""Shard folders: what prepare writes, refuses, and finishes after being killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from shoestring.core.errors import DataError, TokenizerError
from shoestring.data import prepare as module
from shoestring.data.config import DataConfig, NewTokenizerConfig
from shoestring.data.preparation import encoding, writing
from shoestring.data.preparation.journal import Journal
from shoestring.data.prepare import Settings, prepare
from shoestring.data.quality.config import QualityConfig
from shoestring.data.shards import ShardFolder, index_checksum
from shoestring.data.sources import documents
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import END_OF_TEXT, train_tokenizer
from shoestring.pretraining.dataset import open_corpus, open_dataset


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    random_ = random.Random(0)
    words = ["the", "cat", "Grüße", "日本", "12345", "\n", END_OF_TEXT, "def f():"]
    file = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    lines = [" ".join(random_.choices(words, k=random_.randrange(1, 200))) for _ in range(300)]
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat Grüße 日本 12345 def f():"] * 9, vocabulary=290)


def _contents(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def different(found):
    """The first of each text that has something in it."""
    texts = set()
    for document in found:
        if document.text.strip() and document.text not in texts:
            texts.add(document.text)
            yield document


def test_shards_hold_each_document_in_order_after_a_separator(corpus, tokenizer, tmp_path):
    shards = prepare(corpus, tokenizer, tmp_path / "out", validation=0.2, settings=Settings(5000))
    shards.verify()
    assert len(shards.of("train")) > 2 and shards.dtype == np.uint16
    for split in ("train", "validation"):
        expected = [d for d in different(documents(corpus, validation=0.2)) if d.split == split]
        found = list(shards.documents_of(split))
        assert [d.tokens.tolist() for d in found] == [tokenizer.encode(d.text) for d in expected]
        assert [d.bytes for d in found] == [len(d.text.encode()) for d in expected]
        assert shards.document_count(split) == len(expected) > 20
        assert shards.byte_count(split) == sum(d.bytes for d in found)
        assert shards.token_count(split) == sum(len(d.tokens) + 1 for d in found)
        for shard in shards.of(split):
            tokens, offsets = shards.tokens(shard)[:], shards.offsets(shard)
            assert (np.flatnonzero(tokens == tokenizer.separator_id) == offsets[0, :-1]).all()
    assert shards.tokenizer.fingerprint() == tokenizer.fingerprint()
    assert not (tmp_path / "out/journal.json").exists()


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [END_OF_TEXT, *(f"<{n}>" for n in range(70_000)), *alphabet]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    big = Tokenizer.from_backend(backend, eos=END_OF_TEXT)
    (tmp_path / "a.txt").write_text("hello")
    shards = prepare(tmp_path / "a.txt", big, tmp_path / "out", validation=0)
    assert shards.dtype == np.uint32
    (document,) = shards.documents_of("train")
    assert document.tokens.min() > 70_000 and document.tokens.tolist() == big.encode("hello")


def test_a_finished_folder_is_left_as_it_is(corpus, tokenizer, tmp_path):
    prepare(corpus, tokenizer, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.name != ".lock"}
    prepare(corpus, tokenizer, tmp_path / "out")
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_folder_of_another_tokenizer_is_refused(corpus, tokenizer, tmp_path):
    prepare(corpus, tokenizer, tmp_path / "out")
    other = train_tokenizer(["something else"] * 9, vocabulary=270)
    with pytest.raises(TokenizerError, match="another tokenizer"):
        prepare(corpus, other, tmp_path / "out")
    with pytest.raises(TokenizerError, match="another tokenizer"):
        prepare(corpus, NewTokenizerConfig(vocabulary=300), tmp_path / "out")
    with pytest.raises(TokenizerError, match="another tokenizer"):
        open_corpus(DataConfig(source=str(tmp_path / "out")), other)


def test_changed_text_and_changed_settings_are_refused(corpus, tokenizer, tmp_path):
    source = tmp_path / "c.jsonl"
    source.write_bytes(corpus.read_bytes())
    prepare(source, tokenizer, tmp_path / "out")
    with pytest.raises(DataError, match="validation 0.05, now it is 0.1"):
        prepare(source, tokenizer, tmp_path / "out", validation=0.1)
    with open(source, "a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(DataError, match="text has changed"):
        prepare(source, tokenizer, tmp_path / "out")


def test_a_folder_with_other_files_is_not_written_into(corpus, tokenizer, tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        prepare(corpus, tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.doc"]


def test_two_runs_at_once_take_turns(corpus, tokenizer, tmp_path, monkeypatch):
    writes = []
    real = module._write
    monkeypatch.setattr(module, "_write", lambda *given: (writes.append(1), time.sleep(0.1), real(*given)))
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: prepare(corpus, tokenizer, tmp_path / "out"), range(3)))
    assert len(writes) == 1 and folders[0].index == folders[1].index == folders[2].index


def test_places_that_cannot_be_written_are_refused(corpus, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the shards"):
        prepare(corpus, tokenizer, tmp_path / "file")
    with pytest.raises(DataError, match="among the text"):
        prepare(corpus.parent, tokenizer, corpus.parent / "shards")
    assert not (corpus.parent / "shards").exists()


def test_a_recipe_trains_its_tokenizer_once_on_the_training_split(corpus):
    config = DataConfig(source=str(corpus), tokenizer=NewTokenizerConfig(vocabulary=280), validation=0.3)
    shards = open_dataset(config)
    training = [d.text for d in documents(corpus, validation=0.3) if d.split == "train"]
    assert shards.tokenizer_fingerprint == train_tokenizer(training, 280).fingerprint()
    everything = [d.text for d in documents(corpus)]
    assert shards.tokenizer_fingerprint != train_tokenizer(everything, 280).fingerprint()
    assert open_dataset(config).index == shards.index
    opened = open_dataset(DataConfig(source=str(shards.folder)), shards.tokenizer)
    assert opened.index == shards.index and opened.folder == shards.folder


def test_skipped_lines_are_counted_in_the_index_and_reported(tokenizer, tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\n{broken\n{"text": "two"}\n')
    with pytest.raises(DataError, match="a.jsonl:2"):
        prepare(source, tokenizer, tmp_path / "stop")
    shards = prepare(source, tokenizer, tmp_path / "skip", on_bad_line="skip")
    assert shards.index["skipped"] == {"bad lines": 1}
    assert "1 bad lines" in capsys.readouterr().err


def test_a_mended_source_continues_after_a_bad_line_stopped_it(tokenizer, tmp_path):
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text('{"text": "one"}\n{broken\n')
    with pytest.raises(DataError, match="a.jsonl:2"):
        prepare(source, tokenizer, out)
    source.write_text('{"text": "one"}\n{"text": "mended"}\n')
    assert prepare(source, tokenizer, out, validation=0.05).document_count("train") == 2


def _damage_truncate(out: Path) -> str:
    file = out / "train-00000.bin"
    file.write_bytes(file.read_bytes()[:-2])
    return "truncated"


def _damage_missing(out: Path) -> str:
    (out / "train-00000.offsets").unlink()
    return "missing"


def _damage_index(out: Path) -> str:
    (out / "index.json").write_text(
        (out / "index.json").read_text().replace('"documents": 1', '"documents": 2')
    )
    return "not a readable index"


def _damage_cut_index(out: Path) -> str:
    (out / "index.json").write_text((out / "index.json").read_text()[:50])
    return "not a readable index"


def _damage_format(out: Path) -> str:
    index = {**json.loads((out / "index.json").read_text()), "format": 99}
    (out / "index.json").write_text(json.dumps({**index, "sha256": index_checksum(index)}))
    return "format 99"


DAMAGES = [_damage_truncate, _damage_missing, _damage_index, _damage_cut_index, _damage_format]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_when_the_folder_is_opened(corpus, tokenizer, tmp_path, damage):
    prepare(corpus, tokenizer, tmp_path / "out", validation=0.5)
    sentence = damage(tmp_path / "out")
    with pytest.raises(DataError, match=sentence):
        ShardFolder(tmp_path / "out")


def test_a_flipped_bit_is_found_by_verify(corpus, tokenizer, tmp_path):
    shards = prepare(corpus, tokenizer, tmp_path / "out")
    for name in ("train-00000.bin", "train-00000.offsets", "train-00000.blocks"):
        file = tmp_path / "out" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(DataError, match="checksum is wrong") as caught:
            ShardFolder(tmp_path / "out").verify()
        assert name in caught.value.where
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    shards.verify()


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(DataError, match="no prepared shards"):
        ShardFolder(tmp_path)


# Killed runs

_PREPARE = """
import sys, time
from shoestring.data import prepare as p
from shoestring.data.preparation import encoding, writing
from shoestring.data.tokenizer import Tokenizer
encoding.BATCH_DOCUMENTS, writing.EVERY = 4, float(sys.argv[4])
_encoded = encoding._encoded
def slow(*given):
    time.sleep(0.004)
    return _encoded(*given)
encoding._encoded = slow
tokenizer = Tokenizer.load(sys.argv[2])
print("ready", flush=True)
p.prepare(sys.argv[1], tokenizer, sys.argv[3], validation=0.2, settings=p.Settings(9000, compress=True, workers=2))
"""


@pytest.mark.parametrize("attempts", [4, pytest.param(40, marks=pytest.mark.long)])
def test_a_run_killed_at_random_instants_ends_with_the_same_bytes(corpus, tokenizer, tmp_path, attempts):
    tokenizer.save(tmp_path / "tokenizer")
    settings = Settings(9000, compress=True, workers=4)
    prepare(corpus, tokenizer, tmp_path / "whole", validation=0.2, settings=settings)
    random_ = random.Random(attempts)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", _PREPARE, str(corpus), str(tmp_path / "tokenizer"), str(out), "0.03"]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    kills, kept = 0, []
    for _ in range(attempts):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            process.stdout.readline()
            time.sleep(random_.uniform(0.02, 0.2))
            process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        kills += process.returncode != 0
        kept.append(len(_entered(out)))
    assert kills >= 1 and kept == sorted(kept)
    before = {name: (out / f"{name}.bin.zst").stat().st_mtime_ns for name in _entered(out)}
    shards = prepare(corpus, tokenizer, out, validation=0.2, settings=settings)
    shards.verify()
    assert _contents(out) == _contents(tmp_path / "whole")
    after = {name: (out / f"{name}.bin.zst").stat().st_mtime_ns for name in before}
    assert before == after, "whole shards are kept, not written again"


def _entered(out: Path) -> list[str]:
    """The shards that a killed run will not write again."""
    for name in ("journal.json", "index.json"):
        if (out / name).exists():
            return [entry["name"] for entry in json.loads((out / name).read_text())["shards"]]
    return []


def test_a_run_stopped_at_any_document_resumes_to_the_same_bytes(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_DOCUMENTS", 8)
    prepare(corpus, tokenizer, tmp_path / "whole", validation=0.2, settings=Settings(9000))
    monkeypatch.setattr(writing, "EVERY", 0.0)
    real, writes, stop = Journal.write, 0, 0

    def failing(journal, out):
        nonlocal writes
        writes += 1
        if writes > stop:
            raise KeyboardInterrupt
        real(journal, out)

    for stop in (0, 1, 7, 20, 30):  # noqa: B007  the journal is entered about forty times
        out, writes = tmp_path / f"stopped-{stop}", 0
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "write", failing)
            with pytest.raises(KeyboardInterrupt):
                prepare(corpus, tokenizer, out, validation=0.2, settings=Settings(9000, workers=3))
        prepare(corpus, tokenizer, out, validation=0.2, settings=Settings(9000))
        assert _contents(out) == _contents(tmp_path / "whole")


@pytest.mark.parametrize("compress", [False, True])
def test_the_bytes_do_not_depend_on_threads_or_batches(corpus, tokenizer, tmp_path, monkeypatch, compress):
    prepare(corpus, tokenizer, tmp_path / "1", settings=Settings(9000, compress=compress, workers=1))
    for workers in (2, 4):
        monkeypatch.setattr(encoding, "BATCH_DOCUMENTS", 1 + 5 * workers)
        prepare(corpus, tokenizer, tmp_path / str(workers), settings=Settings(9000, compress=compress, workers=workers))
        assert _contents(tmp_path / str(workers)) == _contents(tmp_path / "1")


def test_compressed_shards_hold_the_same(corpus, tokenizer, tmp_path):
    plain, compressed = (
        prepare(corpus, tokenizer, tmp_path / str(compress), settings=Settings(9000, compress=compress))
        for compress in (False, True)
    )
    compressed.verify()
    for split in ("train", "validation"):
        pairs = zip(plain.documents_of(split), compressed.documents_of(split), strict=True)
        assert all(np.array_equal(a.tokens, b.tokens) and a.bytes == b.bytes for a, b in pairs)
    sizes = [sum(file.stat().st_size for file in (tmp_path / str(c)).glob("*.bin*")) for c in (False, True)]
    assert sizes[1] < 0.8 * sizes[0]


def test_so_many_tokens_are_taken_and_the_rest_is_left(corpus, tokenizer, tmp_path):
    whole = prepare(corpus, tokenizer, tmp_path / "whole", settings=Settings(9000))
    part = prepare(corpus, tokenizer, tmp_path / "part", settings=Settings(9000, tokens=20_000))
    assert 20_000 <= part.token_count("train") < 21_500 < whole.token_count("train")
    pairs = zip(part.documents_of("train"), whole.documents_of("train"), strict=False)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in pairs)


def test_documents_that_repeat_or_hold_nothing_are_left_out_and_counted(tokenizer, tmp_path, capsys):
    lines = ["one", "two", "one", "   ", "three", "two", "one"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    shards = prepare(tmp_path / "a.jsonl", tokenizer, tmp_path / "out", validation=0)
    assert [tokenizer.decode(d.tokens.tolist()) for d in shards.documents_of("train")] == ["one", "two", "three"]
    assert shards.index["skipped"] == {"exact duplicates": 3, "near-empty documents": 1}
    said = " ".join(capsys.readouterr().err.split())
    assert "3 exact duplicates (first: a.jsonl:3); 1 near-empty documents (first: a.jsonl:4)" in said
    kept = prepare(
        tmp_path / "a.jsonl", tokenizer, tmp_path / "kept", validation=0,
        settings=Settings(quality=QualityConfig(exact_duplicates=False, shortest=0)),
    )  # fmt: skip
    assert kept.document_count("train") == 7 and kept.index["skipped"] == {}


def test_an_interrupted_run_of_other_text_is_begun_anew(corpus, tokenizer, tmp_path, monkeypatch, capsys):
    source, out = tmp_path / "c.jsonl", tmp_path / "out"
    source.write_bytes(corpus.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(module, "index_checksum", lambda index: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, tokenizer, out)
    with open(source, "a") as file:
        file.write('{"text": "more"}\n')
    prepare(source, tokenizer, out).verify()
    prepare(source, tokenizer, tmp_path / "fresh")
    assert _contents(out) == _contents(tmp_path / "fresh")
    assert "the text has changed since: starting over" in " ".join(capsys.readouterr().err.split())


def test_an_interrupted_run_is_not_continued_with_another_tokenizer(corpus, tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "index_checksum", lambda index: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(corpus, tokenizer, tmp_path)
    with pytest.raises(TokenizerError, match="another tokenizer"):
        prepare(corpus, train_tokenizer(["other"], 260), tmp_path)
