"""`shoestring evaluate`: tables, JSON, comparisons, and what it refuses."""

from __future__ import annotations

import json

import pytest

from shoestring.cli import main as cli
from shoestring.evaluate.suite import kept
from shoestring.models.adapters import attach
from shoestring.models.folder import load_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "cache_dir", lambda: tmp_path / "cache")


def ran(capsys, *arguments) -> str:
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> str:
    assert cli.main(["evaluate", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_table_of_groups_and_categories_with_transcripts_and_a_picture(capsys, base, tmp_path):
    answers, picture = tmp_path / "answers.jsonl", tmp_path / "scores.png"
    out = ran(capsys, base, "--only", "sorting, spelling", "--items", 3, "--transcripts", answers, "--plot", picture)
    for name in ("sorting", "numbers sorted", "words and letters", "spelling", "all"):
        assert name in out
    assert "0% (0% to 56%)" in out  # by Wilson, of three
    assert len(answers.read_text().splitlines()) == 9 and picture.stat().st_size > 1000


def test_json_has_each_score_and_its_interval(capsys, base):
    (found,) = json.loads(ran(capsys, base, "--only", "decimals compared", "--items", 4, "--json"))
    (score,) = found["categories"]
    assert score["of"] == 4 and score["low"] <= score["share"] <= score["high"] and 0 <= score["chosen"] <= 4
    assert found["groups"][0]["name"] == "comparisons" and found["total"]["of"] == 4 and found["side"] == "held-out"


def test_models_are_compared_side_by_side_and_an_adapter_is_one(capsys, base, tmp_path):
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=2), seed=1)
    save_adapter(decoder, tmp_path / "adapter", base)
    out = ran(capsys, base, tmp_path / "adapter", "--only", "spelling", "--items", 2)
    assert "no category in which" in out and "beyond chance" in out
    first = json.loads(
        ran(capsys, base, "--adapter", tmp_path / "adapter", "--only", "spelling", "--items", 2, "--json")
    )
    second = json.loads(ran(capsys, tmp_path / "adapter", "--only", "spelling", "--items", 2, "--json"))
    assert first[0]["categories"] == second[0]["categories"] and " with " in first[0]["model"]


def test_questions_are_shown_with_their_answers_and_with_a_models(capsys, base):
    out = ran(capsys, "--show", "tables")
    assert out.count("Q: ") == 5 and "| Name | Age |" in out
    out = ran(capsys, base, "--show", "spelling", "--items", 2)
    assert out.count("Q: ") == 2 and "(wrong; right would be: " in out


def test_answers_are_kept_until_they_are_asked_again(capsys, base, tmp_path):
    arguments = [base, "--only", "spelling", "--items", 2, "--json"]
    first = json.loads(ran(capsys, *arguments))[0]
    (file,) = (tmp_path / "cache" / "answers").iterdir()
    file.write_text(file.read_text().replace('"right": false', '"right": true'))
    assert json.loads(ran(capsys, *arguments))[0]["total"]["right"] == 2
    assert json.loads(ran(capsys, *arguments, "--again"))[0]["categories"] == first["categories"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one, two or three models"),
        (["a", "b", "c", "d"], "one, two or three models"),
        (["a", "--only", "sums"], "no category or group 'sums'"),
        (["a", "--items", "31"], "--items 31: from 1 to 30"),
        (["a", "--show", "nothing"], "no category 'nothing'"),
        (["a", "b", "--adapter", "c"], "--adapter is for one MODEL"),
        (["a", "--plot", "scores.jpg"], "ends in .png"),
        (["a", "--suite", "mmlu"], "--suite"),
    ],
)
def test_mistakes_are_told_before_a_model_is_looked_for(capsys, arguments, said):
    assert said in refused(capsys, *arguments)
