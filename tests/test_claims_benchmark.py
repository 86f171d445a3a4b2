"""The four claims: what counts as met, what is said of a miss, and that a quick run measures all that is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import claims
from benchmarks.claims import EXERCISES, GROUPS, judged
from shoestring.data.synthetic.kinds import KINDS
from shoestring.evaluate.suite.categories.every import GROUPS as ALL_GROUPS


def all_met() -> dict[str, Any]:
    return {
        "size": {
            "before": {"weight_bytes": 400}, "after": {"weight_bytes": 100}, "perplexity_before": 10.0,
            "perplexity_after": 10.3, "suite_before": 0.5, "suite_after": 0.485, "chosen": "gptq-4-32",
            "questions": 900, "groups_before": {"facts": 0.5}, "groups_after": {"facts": 0.4},
        },
        "memory": {"float32": {"grown": 500, "resident": 800}, "small": {"grown": 150, "resident": 450}},
        "speed": {"float32": 10.0, "small": 20.0},
        "student": {
            "parameters": 70, "teacher_parameters": 100, "suite_before": 0.4, "suite_after": 0.36, "seconds": 3600.0,
            "groups_before": {"patterns": 0.4}, "groups_after": {"patterns": 0.36},
        },
    }  # fmt: skip


def test_claims_that_are_just_met_count() -> None:
    figures = judged(all_met())
    assert figures["claims_met"] == figures["claims_measured"] == 4 and "missed" not in figures
    assert figures["size_saved"] == pytest.approx(0.75) and figures["size_suite_kept"] == pytest.approx(0.97)
    assert figures["size_perplexity_gap"] == pytest.approx(0.03) and figures["memory_saved"] == pytest.approx(0.7)
    assert figures["memory_saved_of_the_whole_process"] == pytest.approx(0.4375)
    assert figures["decoding_speedup"] == 2 and figures["student_fewer_parameters"] == pytest.approx(0.3)
    assert figures["student_suite_kept"] == pytest.approx(0.9) and figures["student_minutes"] == 60


@pytest.mark.parametrize(
    ("claim", "place", "value", "reason"),
    [
        ("size", ("after", "weight_bytes"), 101, "74.8% of the bytes saved, not 75%"),
        ("size", ("perplexity_after",), 10.4, "perplexity +4.0%, not within 3%"),
        ("size", ("suite_after",), 0.48, "96.0% of the suite's score kept, not 97%"),
        ("size", ("suite_before",), 0.0, "answers none"),
        ("memory", ("small", "grown"), 160, "68.0% saved, not 70%"),
        ("speed", ("small",), 19.0, "1.90 times as fast, not 2"),
        ("student", ("parameters",), 71, "29.0% fewer parameters, not 30%"),
        ("student", ("suite_after",), 0.3, "75.0% of the suite's score kept, not 90%"),
        ("student", ("seconds",), 3660.0, "61.0 minutes, not 60"),
    ],
)  # fmt: skip
def test_each_miss_is_told_with_its_figure(claim: str, place: tuple[str, ...], value: float, reason: str) -> None:
    found = all_met()
    inner = found[claim]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    figures = judged(found)
    assert figures["claims_met"] == 3 and list(figures["missed"]) == [claim] and reason in figures["missed"][claim]


def test_what_is_not_measured_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    found = all_met()
    claims.report({name: found[name] for name in ("memory", "speed")})
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {
        "memory_saved": 0.7, "memory_saved_of_the_whole_process": 0.4375, "decoding_speedup": 2.0, "claims_met": 2,
        "claims_measured": 2,
    }  # fmt: skip
    claims.report(found)
    out = capsys.readouterr().out
    assert "patterns" in out and "gptq-4-32" in out and json.loads(out.splitlines()[-1])["claims_met"] == 4


def test_a_quick_run_measures_all_that_is_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By workers that answer at once."""
    whole, asked = all_met(), []

    def run_worker(module: str, flag: str, what: str, _: str, settings: str) -> dict[str, Any]:
        given = json.loads(settings)
        asked.append((what, given))
        if what == "suite":
            first = given["model"] == "m"
            return {"share": 0.5 if first else 0.49, "of": 3, "groups": {"conversation": 0.5}, "left_out": {}}
        if what == "text":
            return {"calibration": "c", "held_out": "h", "conversations": 2}
        if what == "perplexity":
            return {"perplexity": 10.0 if given["model"] == "m" else 10.2, "tokens": 9}
        if what == "compress":
            assert given["calibrate"] == "c"
            return {key: whole["size"][key] for key in ("before", "after", "chosen")}
        if what == "student":
            names = ("parameters", "teacher_parameters", "seconds")
            return {"model": "s", **{key: whole["student"][key] for key in names}}
        small = given["weights"] == "file"
        return {"grown": 1 if small else 5, "resident": 2 if small else 6, "tokens_per_second": 9.0 if small else 3.0}

    monkeypatch.setattr(claims, "run_worker", run_worker)
    monkeypatch.setattr("benchmarks.measure.run_worker", lambda module, *words: run_worker(module, *words))
    figures = judged(claims.measure("m", claims.CLAIMS, tmp_path, quick=True, minutes=60.0))
    assert figures["claims_measured"] == 4 == figures["claims_met"] and figures["decoding_speedup"] == 3
    assert [what for what, _ in asked].count("suite") == 4
    assert claims.measure("m", ("speed",), tmp_path, quick=True, minutes=1.0).keys() == {"speed"}


def test_exercises_and_groups_are_there_and_rows_are_conversations(tmp_path: Path) -> None:
    assert set(EXERCISES) <= set(KINDS) and set(GROUPS) <= set(ALL_GROUPS)
    claims.write_exercises(tmp_path / "rows.jsonl", 100)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) >= 90 and all(row["messages"][-1]["role"] == "assistant" for row in rows)
