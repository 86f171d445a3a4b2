"""The log of receipts and what is made of it: factors beside brute force, torn and foreign lines, who may use them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shoestring.core.errors import BudgetError
from shoestring.models.config import ModelConfig
from shoestring.plan import calibration, receipt
from shoestring.plan.calibration import FEWEST, calibrate, corrected, corrections_by, corrections_of
from shoestring.plan.choose import choose
from shoestring.plan.predict import predict
from shoestring.plan.receipt import Item, Receipt, append, keep, log, machine_key, read, receipt_of
from shoestring.plan.shapes import KEPT, Correction, EngineSpec, JobShape, Machine, Options, Prediction

HERE = machine_key(1)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def made(job: str = "finetune", engine: str = "resident", **changes) -> Receipt:
    plain = Receipt(
        job, engine, HERE, "2026-11-30T08:00:00+00:00", count=3, predicted_memory=1e9, measured_memory=1.01e9,
        predicted_tensors=7e8, measured_tensors=7e8, constant=25e6, predicted_seconds=2.0, measured_seconds=3.0,
        items=(Item("weights", "bytes", 5e8, 5e8), Item("a step", "seconds", 2.0, 3.0)),
    )  # fmt: skip
    return replace(plain, **changes)


def runs(count: int = 200, seed: int = 1) -> list[Receipt]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        found.append(
            made(
                draw.choice(["pretrain", "finetune", "distill"]), draw.choice(["resident", "streamed"]),
                machine=draw.choice([HERE, "another | 1 threads"]),
                measured_memory=None if draw.random() < 0.2 else 1e9 + draw.uniform(-4e7, 9e7),
                measured_tensors=None if draw.random() < 0.2 else 7e8 + draw.uniform(-1e6, 1e6),
                measured_seconds=None if draw.random() < 0.2 else draw.uniform(1, 5),
                device=draw.choice(["cpu"] * 9 + ["cuda"]), processes=draw.choice([1] * 9 + [2]),
            )  # fmt: skip
        )
    return found


def test_factors_are_medians_over_the_newest_runs():
    receipts = runs(900)
    expected: dict = defaultdict(lambda: ([], []))
    for one in receipts:
        if (one.device, one.processes) != ("cpu", 1):
            continue
        memory, seconds = expected[one.job, one.engine]
        if one.measured_memory is not None:
            tensors = 0.0 if one.measured_tensors is None else one.measured_tensors - 7e8
            memory.append(max(25e6 + one.measured_memory - 1e9 - tensors, 0) / 25e6)
        if one.measured_seconds is not None:
            seconds.append(one.measured_seconds / 2.0)
    found, too_few = corrections_by(receipts)
    assert not too_few and len(found) == 6
    for correction in found:
        memory, seconds = (each[-calibration.NEWEST :] for each in expected[correction.job, correction.engine])
        assert correction.beside == pytest.approx(max(np.quantile(memory, 0.5), 1.0))
        assert correction.seconds == pytest.approx(np.quantile(seconds, 0.5))
        assert (correction.beside_runs, correction.seconds_runs) == (len(memory), len(seconds))


def test_small_runs_promise_no_less_memory_and_say_nothing_of_time():
    small = [made(measured_memory=0.98e9, predicted_seconds=0.01, measured_seconds=0.09) for _ in range(5)]
    (correction,), _ = corrections_by(small)
    assert (correction.beside, correction.beside_runs) == (1.0, 5)
    assert (correction.seconds, correction.seconds_runs) == (1.0, 0)


def test_one_wild_run_in_five_moves_nothing_far():
    plain = [made(measured_seconds=3.0 + 0.01 * n) for n in range(8)]
    wild = [made(measured_seconds=90.0, measured_memory=9e9) for _ in range(2)]
    (before,), (after,) = corrections_by(plain)[0], corrections_by([*plain, *wild])[0]
    assert after.seconds == pytest.approx(before.seconds, rel=0.01) and after.beside == pytest.approx(before.beside)


def test_fewer_runs_correct_nothing_and_are_told():
    found, too_few = corrections_by([made() for _ in range(FEWEST - 1)])
    assert found == () and too_few == (("finetune", "resident", FEWEST - 1),)


def test_only_this_machines_receipts_count_and_what_was_found_is_kept():
    for one in runs():
        append(one, log())
    found = calibrate(1)
    assert found.corrections == corrections_by([one for one in runs() if one.machine == HERE])[0]
    for job in ("pretrain", "finetune", "distill"):
        assert set(corrections_of(job, 1)) == {one for one in found.corrections if one.job == job}
    assert corrections_of("finetune", 2) == () and corrections_of("serve", 1) == ()
    assert calibration.forget(1) and corrections_of("finetune", 1) == () and not calibration.forget(1)


def test_a_torn_last_line_is_passed_over_and_the_next_one_stands_alone():
    for _ in range(3):
        append(made(), log())
    whole = log().read_bytes()
    log().write_bytes(whole[:-40])
    kept, damaged = read(log())
    assert len(kept) == 2 and [one.why for one in damaged] == ["cut off"]
    append(made(job="distill"), log())
    kept, damaged = read(log())
    assert [one.job for one in kept] == ["finetune", "finetune", "distill"] and len(damaged) == 1


def test_lines_that_are_no_receipts_are_named_and_stay():
    good = json.dumps(made().to_json())
    lines = [
        good, "nonsense", '{"receipt": 2}', json.dumps({**made().to_json(), "predicted_seconds": "long"}),
        json.dumps({**made().to_json(), "items": [[1, 2, 3, 4]]}), "[" * 5000, good.replace("1000000000.0", "NaN"),
        json.dumps({**made().to_json(), "count": -1}), "\x00\ufffd", good, good,
    ]  # fmt: skip
    log().write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    before = log().read_bytes()
    found = calibrate(1)
    assert found.receipts == 3 and found.corrections[0].seconds == 1.5
    assert [one.where.rpartition(":")[2] for one in found.damaged] == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert "passed over" in str(found) and "predicted_seconds is no number" in str(found)
    assert log().read_bytes() == before


def test_a_damaged_calibration_corrects_nothing_and_is_made_anew():
    for _ in range(3):
        append(made(), log())
    file = log().with_name("calibration.json")
    for text in ("", "[]", json.dumps({HERE: 3}), json.dumps({HERE: {"factors": [{"job": 1}, 7]}})):
        file.write_text(text)
        assert corrections_of("finetune", 1) == ()
    wild = {"job": "finetune", "engine": "resident", "beside": 1, "beside_runs": 3, "seconds": 1e9, "seconds_runs": 3}
    file.write_text(json.dumps({HERE: {"factors": [wild]}}))
    assert corrections_of("finetune", 1) == ()
    assert corrections_of("finetune", 1) == () and calibrate(1).corrections == corrections_of("finetune", 1) != ()


def test_no_log_is_no_error():
    found = calibrate(1)
    assert found.receipts == 0 and found.corrections == () and "0 receipts" in str(found)


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert keep(made(), tmp_path / "file")
    assert len(read(log())[0]) == 1  # the log has it all the same


_WRITER = """
import sys
from shoestring.plan.receipt import Receipt, append, log, machine_key
while True:
    append(Receipt(sys.argv[1], "resident", machine_key(1), "now", count=1), log(), shared=True)
    print(flush=True)
"""


def test_writers_that_are_killed_lose_no_receipt_of_one_another():
    """Three at once, each killed in the middle of its work: every receipt that was announced is there."""
    told = {}
    writers = {
        name: subprocess.Popen([sys.executable, "-c", _WRITER, name], stdout=subprocess.PIPE, env={**os.environ})
        for name in ("pretrain", "finetune", "distill")
    }
    try:
        for name, writer in writers.items():
            assert writer.stdout is not None
            for _ in range(20):
                assert writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            told[name] = 20 + len(writer.stdout.read().splitlines())
    finally:
        for writer in writers.values():
            writer.kill()
            writer.wait()
    append(made("after"), log(), shared=True)
    kept, damaged = read(log())
    for name, count in told.items():
        assert sum(one.job == name for one in kept) in (count, count + 1)
    assert len(damaged) <= 3 and kept[-1].job == "after"


# --- what a plan makes of it ------------------------------------------------------------------------------------


CONFIG = ModelConfig.model_validate({
    "vocabulary": 2000, "width": 256, "layers": 6, "context": 512, "attention": {"heads": 4, "kv_heads": 2,
    "head_width": 64}, "feed_forward": {"width": 700},
})  # fmt: skip
SHAPE = JobShape(CONFIG, 4, 256)
PLAIN = Machine(process=300_000_000, flops=5e10)


def with_corrections(*corrections: Correction) -> Machine:
    return replace(PLAIN, corrections=corrections)


def test_a_prediction_says_that_it_was_corrected_and_every_line_adds_up():
    machine = with_corrections(Correction("pretrain", "resident", 1.6, 12, 1.3, 9))
    before, after = (predict(SHAPE, EngineSpec("resident", 4), each) for each in (PLAIN, machine))
    lines = dict(after.beside)
    assert after.total == sum(size for _, size in after.lines) and after.tensors == before.tensors
    assert lines[KEPT] == round(1.6 * dict(before.beside)[KEPT])
    assert after.seconds == pytest.approx(1.3 * before.seconds)
    assert sum(seconds for _, seconds in after.time) == pytest.approx(after.seconds)
    assert str(after.correction) == "corrected by 12 runs on this machine" and before.correction is None


def test_a_receipt_of_a_corrected_plan_keeps_what_was_predicted_before():
    machine = with_corrections(Correction("pretrain", "resident", 1.6, 12, 1.3, 9))
    before, after = (predict(SHAPE, EngineSpec("resident", 4), each) for each in (PLAIN, machine))
    one = receipt_of(
        after, "pretrain", "resident", 1, peak=after.total, tensors=after.tensor_bytes, seconds=after.seconds,
        count=5, items=[],
    )  # fmt: skip
    assert one.predicted_memory == pytest.approx(before.total, abs=1)
    assert one.predicted_seconds == pytest.approx(before.seconds)
    assert one.told_memory == pytest.approx(after.total, abs=1) and one.told_seconds == pytest.approx(after.seconds)
    # so that calibrating again gives the same factors, not their squares
    assert calibration.kept_beside(one) == pytest.approx(1.6, abs=1e-6)
    assert calibration.slower(one) == pytest.approx(1.3)


def test_an_engine_without_runs_is_compared_by_the_factor_of_the_others():
    options = Options(("resident", "checkpointed"), 4)
    slow = with_corrections(Correction("pretrain", "resident", 1.0, 0, 3.0, 5))
    assert choose(SHAPE, slow, 64_000_000_000, options).spec.engine == "resident"
    both = with_corrections(slow.corrections[0], Correction("pretrain", "checkpointed", 1.0, 0, 0.5, 5))
    assert choose(SHAPE, both, 64_000_000_000, options).spec.engine == "checkpointed"


def test_a_corrected_constant_counts_in_the_budget():
    needed = predict(SHAPE, EngineSpec("resident", 4), PLAIN).total
    options, budget = Options(("resident",), 4, microbatch=4), round(needed / 0.97) + 1_000_000
    assert choose(SHAPE, PLAIN, budget, options).spec.engine == "resident"
    with pytest.raises(BudgetError):
        choose(SHAPE, with_corrections(Correction("pretrain", "resident", 3.0, 4, 1.0, 0)), budget, options)


def test_no_correction_is_no_change():
    plain = Prediction((("weights", 5),), ((KEPT, 3),), 1.0)
    assert corrected(plain, None) is plain


def test_a_receipt_reads_line_by_line():
    text = str(made())
    assert "finetune, resident, 3 steps measured" in text
    assert "0.50 GB" in text and "+50.0%" in text and "2.00 s" in text
    assert made().line() == "peak 1.01 GB (1.00 GB predicted), 3.00 s a step (2.00 s predicted)"
    assert receipt.row(Item("kept activations", "bytes", 12.0, None)) == ("kept activations", "12 B", "", "")
