"""`--evaluate core`: the suite before and after a fine-tuning, asked once each, and which differences are real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shoestring.core.errors import ConfigError, RunError
from shoestring.evaluate.suite import kept
from shoestring.evaluate.suite.results import Answered, Evaluation, Score
from shoestring.evaluate.suite.run import evaluate
from shoestring.finetuning import suite_scores
from shoestring.finetuning.config import finetune_recipe
from shoestring.finetuning.job import finetune
from shoestring.finetuning.suite_scores import Asked, compared
from shoestring.generate.language_model import LanguageModel
from tests.finetuning.tiny import SHORT

ONLY = ("spelling", "copying", "digits of numbers")
FEW = {**SHORT, "train.steps": 2, "train.answers": 0, "evaluate.suite": "core", "evaluate.items": 2}


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of earlier runs of these tests are not in the way."""
    monkeypatch.setattr(kept, "cache_dir", lambda: tmp_path / "cache")


def test_a_run_shows_the_suite_before_and_after_and_asks_once(
    base: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[str] = []

    def counting(model: LanguageModel, **settings):
        asked.append(settings["name"])
        return evaluate(model, **settings)

    monkeypatch.setattr(suite_scores, "evaluate", counting)
    out = tmp_path / "run"
    settings = {**FEW, "evaluate.only": list(ONLY[:2])}
    result = finetune(base, examples, overrides={**settings, "out": str(out)})
    assert asked == [str(base), str(out)] and result.suite is not None
    for model, side in ((base, result.suite.before), (out, result.suite.after)):
        expected, _ = evaluate(LanguageModel.load(model), only=ONLY[:2], items=2)
        assert side.scores == expected.scores and {score.name for score in side.scores} == set(ONLY[:2])
        assert side.total.of == 4
    saved = json.loads((out / "suite.json").read_text())
    assert saved["before"]["checkpoint"] == "" and saved["after"]["checkpoint"] == result.best.name
    shown = result.to_json()["suite"]
    assert [one["name"] for one in shown["groups"]] == ["words and letters"] and "real" in shown["categories"][0]
    assert json.loads(json.dumps(shown)) == shown
    assert "suite     right, with 95% intervals" in str(result) and "words and letters" in str(result)

    again = finetune(resume=out)
    assert asked == [str(base), str(out)] and again.suite == result.suite
    (out / "suite.json").write_text(json.dumps({"before": saved["before"]}))  # killed before its end
    assert finetune(resume=out).suite.categories == result.suite.categories and asked == [str(base), *[str(out)] * 2]
    longer = finetune(resume=out, overrides={"train.steps": 3})
    assert asked[3:] == ([str(out)] if longer.best != result.best else []) and str(base) not in asked[1:]
    (out / "suite.json").write_text("[]")
    with pytest.raises(RunError, match="not the suite's scores"):
        finetune(resume=out)


def test_asking_changes_nothing_of_the_run(base: Path, examples: Path, tmp_path: Path) -> None:
    plain = finetune(base, examples, overrides={**SHORT, "train.steps": 2, "out": str(tmp_path / "plain")})
    asked = finetune(base, examples, overrides={**FEW, "evaluate.only": [ONLY[0]], "out": str(tmp_path / "asked")})
    files = [result.checkpoint / "adapter_model.safetensors" for result in (plain, asked)]
    assert files[0].read_bytes() == files[1].read_bytes() and asked.tensor_memory == plain.tensor_memory
    assert plain.suite is None and plain.to_json()["suite"] is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluate.suite": "core", "budget.engine": "streamed"}, "evaluate.suite asks thousands of tokens"),
        ({"evaluate.suite": "core", "evaluate.only": "[spellling]"}, "no category or group 'spellling'"),
        ({"evaluate.suite": "core", "evaluate.items": 0}, "evaluate.items"),
        ({"evaluate.suite": "cores"}, "core"),
        ({"evaluate.items": 3}, "evaluate.suite is null"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        finetune_recipe("m", "d", settings)
    assert finetune_recipe("m", "d", {"evaluate.suite": "core"}).evaluate.items == 30


def test_a_model_that_has_to_be_streamed_is_refused_with_what_to_do(
    base: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoestring.finetuning import job

    monkeypatch.setattr(job.FinetuneJob, "streams", True)
    with pytest.raises(ConfigError, match="streamed layers") as caught:
        finetune(base, examples, overrides={**FEW, "out": str(tmp_path / "run")})
    assert "shoestring evaluate MODEL OUT" in str(caught.value) and not (tmp_path / "run").exists()


def _asked(rights: dict[str, list[bool]], left_out: dict[str, str], checkpoint: str = "") -> Asked:
    """Answers to categories a, b, ... of the group "g"."""
    answered = [
        Answered(name, f"{name}{number}", "", "", right)
        for name, all in rights.items()
        for number, right in enumerate(all)
    ]
    scores = tuple(Score(name, "g", sum(all), len(all), 0.0) for name, all in rights.items())
    return Asked(checkpoint, Evaluation("m", "held-out", scores, 1.0, left_out), answered)


def test_only_differences_beyond_chance_are_called_better_or_worse() -> None:
    first = _asked({"a": [False] * 20, "b": [True] * 20, "c": [False] * 20, "d": [True] * 20}, {"e": "no sandbox"})
    second = _asked(
        {"a": [True] * 20, "b": [False] * 20, "c": [True] * 2 + [False] * 18, "e": [True] * 20}, {"d": "no room"}, "s"
    )
    found = compared(first, second)
    lines = "\n".join(found.lines())
    assert {one.name: one.real for one in found.categories} == {"a": True, "b": True, "c": False}
    assert "better    a (0% → 100%)" in lines and "worse     b (100% → 0%)" in lines and "c (" not in lines
    assert "left out  e: no sandbox" in lines and "left out  d: no room" in lines
    assert (found.all.first, found.all.second) == (20 / 60, 22 / 60) and not found.all.real
    assert found.before.total.of == found.after.total.of == 60
    same = compared(first, replace(first, checkpoint="s"))
    assert "better    in no category beyond chance" in "\n".join(same.lines())
