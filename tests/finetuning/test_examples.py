"""Examples that a program has, and the model's side of them: an adapter's base lends what the adapter lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow
import pytest

from shoestring.core.errors import DataError
from shoestring.data.tokenizer import Tokenizer
from shoestring.finetuning.examples import model_side, prepare_dataset
from shoestring.finetuning.job import finetune
from shoestring.models.adapters import attach
from shoestring.models.folder import load_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from shoestring.train.checkpoint import read_state
from tests.finetuning.tiny import SHORT


class ArrowRows:
    """What of a datasets.Dataset is used: `features`, and rows with a null for what only others have."""

    def __init__(self, rows: list[dict]):
        self.table = pyarrow.Table.from_pylist(rows)
        self.features = self.table.schema

    def __iter__(self):
        return iter(self.table.to_pylist())


@pytest.fixture
def rows(examples: Path) -> list[dict]:
    return [json.loads(line) for line in examples.read_text().splitlines()]


@pytest.mark.parametrize("given", [list, iter, ArrowRows])
def test_rows_of_a_program_are_the_examples_of_their_file(base: Path, examples: Path, rows: list[dict], given) -> None:
    dataset, same = prepare_dataset(given(rows), base), prepare_dataset(examples, base)
    assert dataset.fingerprint == same.fingerprint and dataset.counts == same.counts
    assert (dataset.source, dataset.where[1]) == ("the rows given", "row 2")


def test_rows_of_a_data_set_have_no_nulls_in_their_schemas(base: Path) -> None:
    tools = [{"name": "f", "parameters": {"x": {"type": "string"}}}, {"name": "g", "parameters": {"y": {"a": "b"}}}]
    from shoestring.data.sources import Skipped
    from shoestring.data.supervised.rows import ExampleSource

    rows = [{"prompt": "a", "completion": "b", "tools": [tool]} for tool in tools]
    assert [e.tools for e in ExampleSource(ArrowRows(rows)).examples(Skipped())] == [[tool] for tool in tools]


def test_what_holds_no_rows_is_told(base: Path) -> None:
    wrong = (({"train": []}, r"give one of its parts \('train'\)"), (5, "a int is not rows"), ([], "no rows"))
    for given, sentence in wrong:
        with pytest.raises(DataError, match=sentence):
            prepare_dataset(given, base)


def test_a_run_on_rows_of_a_program_keeps_them_for_its_continuation(
    base: Path, rows: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoestring.finetuning.examples.cache_dir", lambda: tmp_path / "cache")
    settings = {**SHORT, "train.steps": 2, "train.answers": 0, "data.layout": "padded"}
    del settings["train.batch_tokens"]  # steps are counted in rows here
    result = finetune(base, iter(rows), overrides=settings, out=str(tmp_path / "run"), batch_size=3)
    (file,) = (tmp_path / "cache" / "rows").iterdir()
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert str(file) in recipe and "batch_rows: 3" in recipe
    assert read_state(result.checkpoint).data["group"] == 3
    assert finetune(resume=tmp_path / "run").steps == 2


def test_an_adapter_without_a_tokenizer_is_read_with_its_bases(base: Path, tmp_path: Path) -> None:
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=2))
    save_adapter(decoder, tmp_path / "bare", base)
    save_adapter(decoder, tmp_path / "own", base, tokenizer=Tokenizer.load(base))
    expected = model_side(base)
    for name in ("bare", "own"):
        side = model_side(tmp_path / name)
        assert side.tokenizer.fingerprint() == expected.tokenizer.fingerprint()
        assert (side.context, side.stop_ids) == (512, expected.stop_ids)
    moved = shutil.copytree(base, tmp_path / "gone")
    save_adapter(decoder, tmp_path / "lost", moved, tokenizer=Tokenizer.load(base))
    shutil.rmtree(moved)
    said: list[str] = []
    assert model_side(tmp_path / "lost", said.append).context is None
    assert "the adapter's base model is not there" in said[0]
