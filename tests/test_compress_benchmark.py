"""The figures of the table of compressions are those that are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import compress


def case(before: float, after: float) -> dict[str, Any]:
    side = {"weight_bytes": 10**6, "decoding": {"memory": 2 * 10**6, "tokens_per_second": 9.0}}
    return {
        "before": {**side, "perplexity": before}, "after": {**side, "perplexity": after}, "conversations": after,
        "seconds": 3.0, "peak_memory": 10**9,
    }  # fmt: skip


def test_gaps_are_of_the_best_method_and_against_rounding_to_nearest(monkeypatch, capsys) -> None:
    ends = {"rtn 8 rows": 10.01, "rtn 4": 11, "gptq 4": 10.5, "learned 4": 10.2}
    found = {"": {"conversations": 10.0}, **{name: case(10, end) for name, end in ends.items()}}
    asked: list[dict[str, Any]] = []

    def worker(module: str, flag: str, given: str) -> dict[str, Any]:
        asked.append(compress.json.loads(given))
        return found[asked[-1]["case"]]

    monkeypatch.setattr(compress, "run_worker", worker)
    compress.table("folder", [name for name in found if name], 64, 7)
    figures = compress.json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["int8_gap"] == pytest.approx(0.001) and figures["int4_gap"] == pytest.approx(0.02)
    assert figures["int4_gap_over_rtn"] == pytest.approx(0.2)
    assert figures["gptq_4_gap"] == pytest.approx(0.05) == figures["gptq_4_conversations_gap"]
    assert [given["settings"].get("steps") for given in asked] == [None, None, None, None, 7]


def test_each_method_is_set_against_the_library_of_its_own(monkeypatch, capsys) -> None:
    ours = {"rtn 4": 11.0, "gptq 4": 10.2, "awq 4": 10.8, "learned 4": 10.1}
    theirs = {"gptq 4": 10.4, "awq 4": 10.7, "learned 4": 10.3}

    def worker(module: str, flag: str, given: str) -> dict[str, Any]:
        asked = compress.json.loads(given)
        if not asked["case"]:
            return {"conversations": 10.0}
        made = case(10, (theirs if "python" in asked else ours)[asked["case"]])
        if "python" in asked:
            assert asked["python"] == "python-of-theirs"
            del made["before"]
        return made

    monkeypatch.setattr(compress, "run_worker", worker)
    compress.table("folder", list(ours), 64, 7, "python-of-theirs")
    figures = compress.json.loads(capsys.readouterr().out.splitlines()[-1])
    for method in ("gptq", "awq", "learned"):
        assert figures[f"{method}_over_peer"] == pytest.approx(ours[f"{method} 4"] / theirs[f"{method} 4"], rel=1e-3)
    assert figures["auto-round_4_gap"] == pytest.approx(0.03) and figures["int4_gap"] == pytest.approx(0.01)
    assert not any("over_peer" in name for name in compress.required({"gptq 4": case(10, 10.2)}))


def test_every_case_is_one_that_quantize_takes() -> None:
    from shoestring.compression.quantize.config import quantize_config

    for settings in compress.CASES.values():
        assert quantize_config({**settings, "calibrate": "stdlib"}).method == settings["method"]
    assert set(compress.BEST_OF) < set(compress.CASES)
