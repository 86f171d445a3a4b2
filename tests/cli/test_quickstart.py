"""`shoestring quickstart`: the whole way, with a network and without one."""

import json
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.models.get import get
from tests.train import tiny


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    """A recipe of a few steps on a little text, in the folder where everything happens."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "little.yaml"
    file.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    return file


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """pip finds no index, and nothing is in the cache yet."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def test_without_a_network_it_says_so_and_the_rest_succeeds(recipe, no_network, capsys):
    assert main(["quickstart", "--recipe", str(recipe)]) == 0
    out = capsys.readouterr().out
    (sentence,) = [line for line in out.splitlines() if line.startswith("It could not be fetched")]
    assert "pip could not fetch" in sentence
    assert "Paris" not in out and "try next" in out
    assert "shoestring get smollm2-135m" in out and "shoestring chat" not in out
    assert Path("runs/little-1/latest/config.json").is_file()


def test_its_report_says_what_the_run_measured_and_where_everything_is(recipe, no_network, capsys):
    assert main(["quickstart", "--recipe", str(recipe), "--out", "here", "--json"]) == 0
    shown = capsys.readouterr().out
    report = json.loads(shown)
    assert shown.count("\n") == 1
    assert set(report) == {"training", "sample", "chat", "seconds", "peak_memory"}
    training = report["training"]
    metrics = [json.loads(line) for line in Path("here/metrics.jsonl").read_text().splitlines()]
    assert training["bits_per_byte"] == metrics[-1]["bits_per_byte"] and training["steps"] == 8
    assert training["xz_bits_per_byte"] == 8 * training["xz_bytes"] / training["held_out_bytes"]
    assert Path(training["plot"]).read_bytes().startswith(b"\x89PNG")
    assert report["sample"]["text"] and "could not fetch" in report["chat"]["error"]
    assert report["peak_memory"] >= training["peak_memory"] > 0


def test_the_smoke_recipe_goes_the_whole_way_to_paris(tmp_path, monkeypatch, capsys):
    get("smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--recipe", "quickstart-smoke"]) == 0
    out = capsys.readouterr().out
    headings = [line for line in out.splitlines() if line[:2] in ("1.", "2.", "3.", "4.")]
    assert len(headings) == 4
    assert "Paris" in out.partition("What is the capital of France?")[2]
    for line in out.partition("try next\n")[2].splitlines():
        assert "shoestring" in line
    for place in ("latest", "loss.png", "metrics.jsonl", "recipe.yaml"):
        assert f"runs/quickstart-smoke-1/{place}" in out and Path("runs/quickstart-smoke-1", place).exists()


def test_a_recipe_that_does_not_exist_is_a_sentence(capsys):
    assert main(["quickstart", "--recipe", "quickstrt"]) == 2
    assert "did you mean quickstart?" in capsys.readouterr().err
