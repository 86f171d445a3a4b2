"""`shoestring plan --calibrate`: what this machine's receipts say is shown, kept, and used by plans for it alone."""

from __future__ import annotations

import json

import pytest
import torch

from shoestring.cli.main import main
from shoestring.forecast import plan as planning
from shoestring.forecast.plan import make_plan
from shoestring.plan import calibration, receipt
from shoestring.plan.constants import TRAINING, USE
from shoestring.plan.receipt import Receipt, append, log, machine_key
from tests.forecast.machines import described


@pytest.fixture(autouse=True)
def _log(tmp_path, monkeypatch):
    """Four runs of a resident pretraining that took twice the time, and 10 MB more, and one that is damaged."""
    for module in (receipt, calibration):
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    one = Receipt(
        "pretrain", "resident", machine_key(torch.get_num_threads()), count=5, predicted_memory=5e8,
        measured_memory=5.1e8, constant=25e6, predicted_seconds=1.0, measured_seconds=2.0,
    )  # fmt: skip
    for _ in range(4):
        append(one, log())
    with open(log(), "a") as file:
        file.write("not a receipt\n")


def said(capsys, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_the_log_says_is_shown_with_the_runs_it_stands_on(capsys):
    code, out, _ = said(capsys, "plan", "--calibrate")
    assert code == 0 and "4 receipts of this machine" in out
    assert "pretrain  resident" in out and "1.40 (4 runs)" in out and "2.00 (4 runs)" in out
    assert f"passed over {log()}:5: no receipt" in out
    found = json.loads(said(capsys, "plan", "--calibrate", "--json")[1])
    assert found["corrections"][0] == {
        "job": "pretrain", "engine": "resident", "beside": 1.4, "beside_runs": 4, "seconds": 2.0, "seconds_runs": 4,
    }  # fmt: skip


def test_a_plan_for_this_machine_is_corrected_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr(planning, "_this_machine", lambda work: described())
    before = make_plan("quickstart-smoke", memory="2GB")
    assert "corrected" not in str(before)
    said(capsys, "plan", "--calibrate")
    after = make_plan("quickstart-smoke", memory="2GB")
    assert "corrected by 4 runs on this machine" in str(after)
    pairs = [
        (one, other) for one, other in zip(before.rows, after.rows, strict=True) if one.form.engine == "resident"
    ]
    for one, other in pairs:  # 1.4 times what a process keeps
        half = one.form.precision in ("bfloat16", "float16")
        more = round(0.4 * (USE + (0 if half else TRAINING)))
        assert other.memory == one.memory + more and other.step == pytest.approx(2 * one.step)
    others = [row for row in after.rows if row.form.engine == "checkpointed"]
    assert {row.corrected for row in others} == {"time corrected as that of other engines, by runs on this machine"}
    assert make_plan("quickstart-smoke", memory="2GB", machine=described()).chosen.corrected is None


def test_both_at_once(capsys, monkeypatch):
    monkeypatch.setattr(planning, "_this_machine", lambda work: described())
    code, out, err = said(capsys, "plan", "quickstart-smoke", "--memory", "2GB", "--calibrate")
    assert code == 0 and "corrected by 4 runs on this machine" in out and "4 receipts of this machine" in err


def test_nothing_to_plan_is_said_in_one_sentence(capsys):
    code, out, err = said(capsys, "plan")
    assert code == 2 and not out and "there is nothing to plan" in err
