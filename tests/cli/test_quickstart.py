"""`shoestring quickstart`: the whole way, with a network and without one."""

import json
import shlex
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.models.get import get
from tests.finetuning import tiny as chats
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


@pytest.mark.long
def test_the_smoke_recipe_goes_the_whole_way_to_paris(tmp_path, monkeypatch, capsys):
    get("smollm2-135m")
    monkeypatch.chdir(tmp_path)
    words = ["--recipe", "quickstart-smoke", "--finetune-time", "1s", "--problems", "4"]
    assert main(["quickstart", *words]) == 0
    out = capsys.readouterr().out
    headings = [line for line in out.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert len(headings) == 5
    assert "Paris" in out.partition("What is the capital of France?")[2]
    for line in out.partition("try next\n")[2].splitlines():
        assert "shoestring" in line
    for place in ("latest", "loss.png", "metrics.jsonl", "recipe.yaml", "sums/latest", "exercises"):
        assert f"runs/quickstart-smoke-1/{place}" in out and Path("runs/quickstart-smoke-1", place).exists()


def test_the_model_that_is_asked_learns_sums_and_its_answers_are_counted(recipe, capsys):
    model = str(chats.chat_model(Path("chats")))
    words = ["--recipe", str(recipe), "--out", "here", "--model", model, "--finetune-time", "1s", "--problems", "7"]
    assert main(["quickstart", *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tuned = report["finetuning"]
    assert tuned["problems"] == 7 and tuned["steps"] > 0 and tuned["method"] == "lora"
    assert 0 <= tuned["right_before"] <= 7 and 0 <= tuned["right_after"] <= 7 and len(tuned["answers"]) == 3
    assert tuned["model"] == str(Path("here/sums/latest")) and Path(tuned["model"], "adapter_config.json").is_file()
    learned, asked = (
        [json.loads(line) for line in Path("here/exercises", name).read_text().splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    )
    problems = {problem for row in learned for problem in row["problem"].split("; ")}
    assert len(problems) > 1000 and not problems & {row["problem"] for row in asked}
    for answer, row in zip(tuned["answers"], asked, strict=False):
        assert answer["question"] == row["messages"][0]["content"] and answer["expected"] == row["answer"]
    assert report["peak_memory"] >= tuned["peak_memory"] > 0
    within = tuned["within_memory"]
    assert within["steps"] > 0 and 0 < within["peak_memory"] < 1e9 and within["out"] == str(Path("here/sums-in-1gb"))
    assert 0.5 < tuned["peak_memory"] / tuned["predicted_memory"] < 2 and tuned["peak_memory"] < 1e9


def test_what_is_told_of_the_lesson_are_answers_side_by_side_and_commands_that_work(recipe, monkeypatch, capsys):
    monkeypatch.setattr("shoestring.cli.quickstart_finetune.EXERCISES", 600)  # all that one second learns
    model = str(chats.chat_model(Path("chats")))
    words = ["--recipe", str(recipe), "--model", model, "--finetune-time", "1s", "--problems", "2"]
    assert main(["quickstart", *words]) == 0
    out = capsys.readouterr().out
    lesson = out.partition("4. Teaching it")[2].partition("5. Done")[0]
    assert lesson.count("Q: ") == 4 and "2 problems" in lesson and "predicted, 1GB allowed" in lesson
    cells = [line.split() for line in lesson.splitlines() if line.startswith(("before ", "after "))]
    assert [cell[0] for cell in cells[-2:]] == ["before", "after"] and all(len(cell) == 3 for cell in cells[-2:])
    commands = [shlex.split(line) for line in out.partition("try next\n")[2].splitlines()]
    called = [next(i for i, word in enumerate(words) if word.endswith("shoestring")) for words in commands]
    commands = [words[at + 1 :] for at, words in zip(called, commands, strict=True)]
    for verb, *rest in commands:
        if verb in ("generate", "merge") or (verb == "chat" and "--prompt" in rest):
            assert main([verb, *rest, *(["--max-tokens", "2"] if verb != "merge" else [])]) == 0
    assert {verb for verb, *_ in commands} == {"generate", "chat", "merge", "finetune", "pretrain"}


def test_a_time_that_is_none_is_told_before_anything_begins(recipe, capsys):
    assert main(["quickstart", "--recipe", str(recipe), "--finetune-time", "soon"]) == 2
    assert "train.time: expected a duration" in capsys.readouterr().err and not Path("runs").exists()


def test_a_recipe_that_does_not_exist_is_a_sentence(capsys):
    assert main(["quickstart", "--recipe", "quickstrt"]) == 2
    assert "did you mean quickstart?" in capsys.readouterr().err
