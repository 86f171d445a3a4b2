"""Every run leaves a receipt: in its folder, in the machine's log, and on its report page."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import shoestring
from shoestring.cli.main import main
from shoestring.plan import calibration, receipt
from shoestring.plan.calibration import calibrate
from shoestring.plan.receipt import NAME, Receipt, log, read
from shoestring.plan.shapes import KEPT
from shoestring.train.report.read import read_run
from tests.compression.distill import distilling
from tests.finetuning import tiny as finetuning
from tests.train import tiny


@pytest.fixture(autouse=True)
def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of this test's own, beside the one cache of kernels and measurements."""
    (tmp_path / "log").mkdir()
    for module in (receipt, calibration):
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "log")


def recipe(tmp_path: Path, steps: int = 8, extra: str = "") -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "corpus"), steps, extra))
    return file


def finetune(base: Path, examples: Path, out: Path, **changes):
    return shoestring.finetune(base, examples, overrides={**finetuning.SHORT, "out": str(out), **changes})


def last(file: Path) -> Receipt:
    found, damaged = read(file)
    assert not damaged
    return found[-1]


def test_pretraining(tmp_path: Path):
    result = shoestring.pretrain(recipe(tmp_path), out=tmp_path / "run")
    one = last(result.out / NAME)
    assert one == last(log())
    assert (one.job, one.engine, one.device, one.processes, one.count) == ("pretrain", "resident", "cpu", 1, 6)
    assert one.told_memory == pytest.approx(result.predicted_memory, abs=1)
    assert one.measured_tensors == result.tensor_memory
    assert result.step_seconds == one.measured_seconds > 0 and result.predicted_step_seconds == one.told_seconds > 0
    items = {item.what: item for item in one.items}
    assert items["weights"].measured == pytest.approx(items["weights"].predicted, rel=0.02)
    assert items["moments"].measured == pytest.approx(items["moments"].predicted, rel=0.02)
    assert items[KEPT].predicted > 0 and items["process, before the model"].measured is not None
    whole = items["forward and backward"].measured + items["moving the weights"].measured
    assert items["a step"].measured == pytest.approx(whole) and items["all steps"].measured > 6 * 0.5 * whole
    assert "a step" in str(result) and "predicted)" in str(result)


@pytest.mark.parametrize("engine", ["resident", "checkpointed", "streamed"])
def test_finetuning(engine: str, base: Path, examples: Path, tmp_path: Path):
    result = finetune(base, examples, tmp_path / "run", **{"budget.engine": engine})
    one = last(result.out / NAME)
    assert (one.job, one.engine) == ("finetune", engine) and one.count == 4
    adapters = next(item for item in one.items if item.what == "adapters and their moments")
    assert adapters.measured == pytest.approx(adapters.predicted, rel=0.02)


def test_each_session_leaves_one_and_the_page_shows_the_newest(tmp_path: Path):
    file = recipe(tmp_path)
    result = shoestring.pretrain(file, out=tmp_path / "run")
    shoestring.pretrain(resume=result.out, overrides={"train.steps": 12})
    found, _ = read(result.out / NAME)
    assert [one.count for one in found] == [6, 2]
    run = read_run(result.out)
    assert run.receipts == found
    shown = shoestring.report(result.out)
    page = shown.out.read_text(encoding="utf-8")
    assert "Predicted and measured" in page and "between steps: held-out losses, checkpoints" in page
    assert "1 earlier session" in page
    assert shown.runs["run"]["step_seconds"] == found[-1].measured_seconds


def test_a_foreign_receipt_does_nothing_on_the_page(tmp_path: Path):
    result = shoestring.pretrain(recipe(tmp_path, 4), out=tmp_path / "run")
    one = last(result.out / NAME).to_json()
    one["items"] = [["<script>x</script>", "bytes", 1e17, None]]
    with open(result.out / NAME, "a") as file:
        file.write(json.dumps(one) + "\n" + '{"receipt": 1, "items": 7}\n' + "x" * 100_000)
    page = shoestring.report(result.out).out.read_text(encoding="utf-8")
    assert "&lt;script&gt;x&lt;/script&gt;" in page and "<script>x" not in page


def test_quantizing(base: Path, examples: Path, tmp_path: Path):
    result = shoestring.quantize(base, tmp_path / "q", calibrate=examples, group=16, rows=4, context=64, held_out=2)
    one = last(log())
    assert result.receipt == one and (one.job, one.engine, one.unit, one.count) == ("quantize", "gptq", "block", 2)
    assert one.predicted_seconds and one.measured_seconds and one.predicted_memory
    assert json.loads((tmp_path / "q" / "compression.json").read_text())["receipt"]["engine"] == "gptq"
    assert "a block" in str(result)


def test_distilling(base: Path, examples: Path, tmp_path: Path):
    distilling.smaller(base, tmp_path / "student")
    result = distilling.run(base, tmp_path / "student", examples, tmp_path / "run", **{"train.steps": 5})
    one = last(result.out / NAME)
    assert (one.job, one.count) == ("distill", 3) and one == last(log())
    assert {"the teacher's passes", "teacher and student compared"} <= {item.what for item in one.items}


def test_generating_and_scoring(base: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["generate", str(base), "--prompt", "1+2?", "--max-tokens", "6", "--temperature", "0"]
    for memory, engine, predicted in (("8GB", "resident", True), (None, "resident", False)):
        assert main([*words, *(["--memory", memory] if memory else [])]) == 0
        one = last(log())
        assert (one.job, one.engine, one.unit) == ("generate", engine, "use")
        assert one.predicted_seconds and one.measured_seconds
        assert bool([item for item in one.items if item.unit == "bytes"]) == predicted
    assert main(["perplexity", str(base), "--data", str(examples), "--memory", "8GB"]) == 0
    one = last(log())
    assert (one.job, one.engine) == ("perplexity", "resident") and one.measured_seconds
    capsys.readouterr()


def test_a_run_that_was_stopped_leaves_one(tmp_path: Path):
    """Ctrl-C after the fourth step: what was measured until then."""
    file, out = recipe(tmp_path, 5000), tmp_path / "run"
    child = subprocess.Popen(
        [
            sys.executable, "-m", "shoestring", "pretrain", str(file), "--out", str(out), "--train.most_epochs", "100",
        ],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        metrics = out / "metrics.jsonl"
        while child.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 6):
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    finally:
        child.kill()
    one = last(out / NAME)
    assert one.count >= 1 and one.measured_seconds


def test_a_machines_runs_correct_its_plans_and_say_so(base: Path, examples: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "_LEAST", 0.0)  # these are short
    for number in range(3):
        finetune(base, examples, tmp_path / f"run{number}")
    (factor,) = calibrate(torch.get_num_threads()).corrections
    assert (factor.job, factor.engine, factor.seconds_runs) == ("finetune", "resident", 3)
    capsys.readouterr()
    result = finetune(base, examples, tmp_path / "after")
    assert "corrected by 3 runs on this machine" in capsys.readouterr().err
    one = last(result.out / NAME)
    assert one.factor == pytest.approx(factor.seconds)
    assert one.told_seconds == pytest.approx(one.predicted_seconds * factor.seconds)
