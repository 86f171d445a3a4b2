"""Every form of text trains a model through the command line: files, folders, globs, mixtures, prepared or on the
fly."""

import csv
import gzip
import json

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from shoestring.cli.main import main
from shoestring.data.train_tokenizer import train_tokenizer
from shoestring.train.metrics import read_metrics

TEXTS = [f"document {n} of {n * n}: " + " ".join(str(k * n) for k in range(40)) for n in range(60)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


def write(folder, form):
    """-> what to give as data.source."""
    match form:
        case "jsonl.gz":
            (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
            return folder / "a.jsonl.gz"
        case "jsonl.zst":
            (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(LINES.encode()))
            return folder / "a.jsonl.zst"
        case "json":
            (folder / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
            return folder / "a.json"
        case "csv":
            with open(folder / "a.csv", "w", newline="") as file:
                csv.writer(file).writerows([["n", "text"], *enumerate(TEXTS)])
            return folder / "a.csv"
        case "parquet":
            parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "a.parquet", row_group_size=7)
            return folder / "a.parquet"
        case "folder":
            (folder / "texts").mkdir()
            for n, text in enumerate(TEXTS):
                (folder / "texts" / f"{n}.txt").write_text(text)
            return folder / "texts"
        case "glob":
            return f"{write(folder, 'folder')}/*[02468].txt"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 300).save(folder)
    return folder


def train(tmp_path, *more):
    command = ["pretrain", "quickstart-smoke", "--train.steps", "2", "--train.sequence_length", "64",
               "--train.batch_tokens", "128", "--data.validation", "0.2", "--out", tmp_path / "run", *more]  # fmt: skip
    assert main(list(map(str, command))) == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < 9 for loss in losses)


@pytest.mark.parametrize("form", ["jsonl.gz", "jsonl.zst", "json", "csv", "parquet", "folder", "glob"])
def test_every_form_trains(tmp_path, tokenizer, form):
    train(tmp_path, "--data.source", write(tmp_path, form), "--data.tokenizer", tokenizer)


def test_a_mixture_trains_and_is_named(tmp_path, tokenizer, capsys):
    parts = [
        {"source": str(write(tmp_path, "csv")), "weight": 1},
        {"source": str(write(tmp_path, "json")), "weight": 3},
    ]
    train(tmp_path, "--data.source", "null", "--data.mixture", json.dumps(parts), "--data.tokenizer", tokenizer)
    assert "a.csv + " in " ".join(capsys.readouterr().err.split())


def test_a_mixture_without_a_tokenizer_trains_one_on_all_of_it(tmp_path):
    parts = [{"source": str(write(tmp_path, "csv"))}, {"source": str(write(tmp_path, "folder"))}]
    train(tmp_path, "--data.source", "null", "--data.mixture", json.dumps(parts), "--data.tokenizer.vocabulary", "300")


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_text_trains_on_the_fly_and_nothing_is_prepared(tmp_path, tokenizer, packing, monkeypatch):
    monkeypatch.setattr("shoestring.data.prepare.prepare_source", None)
    train(tmp_path, "--data.source", write(tmp_path, "parquet"), "--data.tokenizer", tokenizer,
          "--data.on_the_fly", "true", "--data.packing", packing)  # fmt: skip


def test_rows_of_whole_documents_train(tmp_path, tokenizer, capsys):
    train(
        tmp_path, "--data.source", write(tmp_path, "json"), "--data.tokenizer", tokenizer, "--data.packing", "best_fit"
    )
    assert "% padding" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["--data.mixture", '[{"source": "b"}]'], "either data.source or data.mixture"),
        (["--data.on_the_fly", "true"], "wants data.tokenizer to name a tokenizer"),
        (["--data.packing", "best_fit", "--data.separate_documents", "false"], "best_fit needs separate_documents"),
        (
            ["--data.packing", "best_fit", "--data.continue_documents", "true"],
            "continue_documents needs packing concatenate",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, settings, sentence, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "quickstart-smoke", *settings]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def prepared(tmp_path, tokenizer, *more):
    source = write(tmp_path, "json")
    command = ["prepare", source, "--tokenizer", tokenizer, "--out", tmp_path / "shards", "--validation", "0.2", *more]
    assert main(list(map(str, command))) == 0
    return tmp_path / "shards"


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", ["bin", "offsets", "blocks"])
def test_a_shard_with_a_flipped_bit_is_one_sentence(tmp_path, tokenizer, capsys, suffix, compress):
    shards = prepared(tmp_path, tokenizer, *(["--compress"] if compress else []))
    (file,) = shards.glob(f"train-00000.{suffix}*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    capsys.readouterr()
    command = [
        "pretrain",
        "quickstart-smoke",
        "--data.source",
        str(shards),
        "--train.steps",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and file.name in error[0] and "damaged" in error[0]


def test_an_index_that_does_not_match_its_shards_is_one_sentence(tmp_path, tokenizer, capsys):
    shards = prepared(tmp_path, tokenizer)
    (shards / "train-00000.bin").write_bytes(b"ab")
    capsys.readouterr()
    assert main(["pretrain", "quickstart-smoke", "--data.source", str(shards), "--out", str(tmp_path / "run")]) == 2
    assert "train-00000.bin: truncated or damaged: 2 bytes instead of" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
