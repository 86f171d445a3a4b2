"""The verbs `finetune` and `merge`, and what is done with what they leave, all on a tiny model that chats."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path

import pytest

from shoestring.cli.main import main
from tests.finetuning import tiny


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, examples, and a run made by the verb."""
    folder = tmp_path_factory.mktemp("desk")
    tiny.chat_model(folder / "model")
    tiny.sums(folder / "sums.jsonl")
    return folder


@pytest.fixture
def say(desk, monkeypatch, capsys):
    """Runs a command line on the desk, which must succeed, and gives what it prints."""
    monkeypatch.chdir(desk)

    def run(line: str, *more: str) -> str:
        code = main([*shlex.split(line), *more])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return shown.out

    return run


@pytest.fixture(scope="module")
def tuned(desk) -> dict:
    """What `finetune --json` says of a run in desk/run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        with contextlib.redirect_stdout(io.StringIO()) as text:
            arguments = ["finetune", "model", "--data", "sums.jsonl", "--rank", "4", "--out", "run", "--json"]
            assert main([*arguments, *tiny.flags(tiny.SHORT)]) == 0
    (line,) = text.getvalue().splitlines()
    return json.loads(line)


def test_the_result_is_one_json_object_with_places_figures_and_answers(desk, tuned):
    assert tuned["method"] == "lora" and tuned["steps"] == 6 and tuned["loss_after"] < tuned["loss_before"]
    assert (desk / tuned["model"] / "adapter_config.json").is_file() and (desk / tuned["plot"]).is_file()
    assert json.loads((desk / tuned["model"] / "adapter_config.json").read_text())["r"] == 4
    assert len(tuned["answers"]) == 2 and all(answer["after"] is not None for answer in tuned["answers"])


def test_the_closing_lines_are_commands_that_work(say):
    words = tiny.flags({**tiny.SHORT, "train.steps": 2})
    out = say("finetune model --data sums.jsonl --out shown --optimizer.weight_decay 0.1", *words)
    assert "before" in out and "Q: " in out
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith(("adapter", "chat", "merge")))
    assert lines["adapter"].endswith("(PEFT)")
    program, *chat = shlex.split(lines["chat"])
    assert program == "shoestring"
    assert say(shlex.join(chat), "--prompt", "1+1?", "--max-tokens", "3") != ""
    program, *merge = shlex.split(lines["merge"])
    merged = say(shlex.join(merge)).splitlines()[0].split(maxsplit=1)[1]
    assert (Path(merged) / "model.safetensors").is_file()


def test_a_run_its_adapter_and_its_merged_model_say_the_same(say, desk):
    """A model that has learned enough to answer otherwise than its base."""
    words = tiny.flags({**tiny.SHORT, "train.steps": 60, "train.evaluate_every": 60, "optimizer.learning_rate": 3e-2})
    model = json.loads(say("finetune model --data sums.jsonl --out long --json", *words))["model"]
    merged = json.loads(say("merge long --out plain --json"))["model"]
    assert merged == "plain" and not (desk / "plain" / "adapter_config.json").exists()
    for verb in ("chat", "generate"):
        said = [
            json.loads(say(f'{verb} {name} --prompt "3+4?" --temperature 0 --max-tokens 12 --json'))["text"]
            for name in ("long", model, "plain", "model")
        ]
        assert said[0] == said[1] == said[2] != said[3]


def test_a_finished_run_is_not_trained_again(say, tuned):
    again = json.loads(say("finetune --resume run --json"))
    figures = ("steps", "tokens", "model", "loss_before", "loss_after", "answers")
    assert [again[name] for name in figures] == [tuned[name] for name in figures]


@pytest.mark.parametrize("method", ["full", "dora", "qlora", "qlora --adapter.base nf4", "qlora --adapter.base int8"])
def test_every_method_runs_from_the_command_line(say, method):
    out = method.replace(" --adapter.base ", "-")
    words = tiny.flags({**tiny.SHORT, "train.steps": 2})
    result = json.loads(say(f"finetune model --data sums.jsonl --method {method} --out {out} --json", *words))
    assert result["steps"] == 2 and result["method"] == method.split()[0]
    assert "text" in json.loads(say(f"chat {out} --prompt 1+1? --max-tokens 2 --json"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("finetune model", "finetune needs --data"),
        ("finetune --data sums.jsonl", "finetune needs a model"),
        ("finetune model --data sums.jsonl --steps 3 --train.steps 4", "--steps and --train.steps say different"),
        ("finetune model --data sums.jsonl --adapter.rnk 4", "did you mean adapter.rank"),
        ("finetune model --data nothing.jsonl", "nothing.jsonl"),
        ("finetune nothing --data sums.jsonl", "nothing"),
        ("merge model", "nothing to merge"),
    ],
)
def test_a_mistake_is_a_sentence_and_leaves_nothing(desk, monkeypatch, capsys, line, sentence):
    monkeypatch.chdir(desk)
    before = sorted(desk.rglob("*"))
    assert main(shlex.split(line)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and sentence in shown.err
    assert sorted(desk.rglob("*")) == before
