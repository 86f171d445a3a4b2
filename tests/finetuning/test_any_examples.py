"""Every form of examples fine-tunes through the command line; mixtures keep their shares of tokens."""

import csv
import gzip
import json

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from shoestring.cli.main import main
from shoestring.data.supervised.config import SupervisedDataConfig
from shoestring.data.supervised.supervise import ModelSide, build_dataset
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning.tiny import SHORT, chat_model, flags

PAIRS = [(f"what is {a} and {b}?", f"it is {a + b}") for a in range(6) for b in range(6)]
ROWS = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model"))


def write(folder, form):
    match form:
        case "jsonl.gz":
            (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
            return folder / "a.jsonl.gz"
        case "jsonl.zst":
            (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(LINES))
            return folder / "a.jsonl.zst"
        case "json":
            (folder / "a.json").write_text(json.dumps(ROWS, indent=1))
            return folder / "a.json"
        case "csv":
            with open(folder / "a.csv", "w", newline="") as file:
                csv.writer(file).writerows([["prompt", "completion"], *PAIRS])
            return folder / "a.csv"
        case "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet", row_group_size=5)
            return folder / "a.parquet"
        case "folder":
            (folder / "parts").mkdir()
            for n in range(3):
                (folder / "parts" / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[n::3]))
            return folder / "parts"
        case "glob":
            return f"{write(folder, 'folder')}/[01].jsonl"


def tune(model, tmp_path, *more):
    settings = {**SHORT, "train.steps": 2, "train.answers": 0, "out": tmp_path / "run"}
    assert main(["finetune", str(model), *map(str, more), *flags(settings)]) == 0
    assert (tmp_path / "run" / "latest" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("form", ["jsonl.gz", "jsonl.zst", "json", "csv", "parquet", "folder", "glob"])
def test_every_form_tunes(model, tmp_path, form):
    tune(model, tmp_path, "--data", write(tmp_path, form))


def test_a_mixture_tunes(model, tmp_path):
    parts = [{"source": str(write(tmp_path, "csv"))}, {"source": str(write(tmp_path, "json")), "weight": 2}]
    tune(model, tmp_path, "--data.mixture", json.dumps(parts))


@pytest.mark.parametrize("weights", [(1, 1), (1, 7.3), (0.02, 1)])
def test_an_epoch_of_a_mixture_has_its_shares_and_every_example(tmp_path, weights):
    many, few = tmp_path / "many.jsonl", tmp_path / "few.jsonl"
    many.write_bytes(LINES * 3)
    few.write_bytes(b"".join(LINES.splitlines(keepends=True)[:9]))
    parts = [{"source": str(file), "weight": weight} for file, weight in zip((many, few), weights, strict=True)]
    config = SupervisedDataConfig.model_validate({"mixture": parts, "validation": 0})
    dataset = build_dataset(config, ModelSide.of(chatml(templates.CHATML)))
    epoch = dataset.indices("train")
    assert set(epoch.tolist()) == set(range(len(dataset)))
    tokens = np.diff(dataset.starts)[epoch]
    ours = [tokens[epoch < 108].sum(), tokens[epoch >= 108].sum()]
    assert ours[0] / sum(ours) == pytest.approx(weights[0] / sum(weights), abs=0.02)
    assert config.named == f"{many} + {few}" == dataset.source


def test_one_source_has_no_repeats_and_two_ways_are_refused(tmp_path, capsys):
    config = SupervisedDataConfig(source=str(write(tmp_path, "json")))
    assert build_dataset(config, ModelSide.of(chatml(templates.CHATML))).repeats is None
    assert main(["finetune", "m", "--data", "a", "--data.mixture", '[{"source": "b"}]']) == 2
    assert "either data.source or data.mixture" in " ".join(capsys.readouterr().err.split())
