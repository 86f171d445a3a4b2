"""A run that was killed and resumed is the run that was not; nothing half written is left or believed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shoestring.core import matmul
from shoestring.core.errors import DataError, RunError
from shoestring.core.matmul_choice import Table
from shoestring.pretraining.job import pretrain
from shoestring.train import checkpoint, evaluation
from shoestring.train.interrupt import Interrupted
from shoestring.train.metrics import read_metrics
from shoestring.train.run_folder import LOCK
from tests.train import tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture
def recipe(tmp_path, source):
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny.recipe_text(source))
    return file


def weights(run: Path):
    return load_file(run / "latest" / "model.safetensors")


def assert_same_run(first: Path, second: Path):
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    moments = [load_file(run / "latest" / "trainer" / "optimizer.safetensors") for run in (first, second)]
    assert all(moments[0][name].equal(moments[1][name]) for name in moments[0])


@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_random_instants_ends_with_bit_identical_weights(tmp_path, source, seed):
    check_killed_runs(tmp_path, source, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 11))
def test_more_instants(tmp_path, source, seed):
    check_killed_runs(tmp_path, source, seed)


def losses(run: Path):
    lines = read_metrics(run / "metrics.jsonl")
    return [(line["step"], line.get("loss"), line.get("bits_per_byte")) for line in lines]


def check_killed_runs(folder, source, seed, change=lambda text: text):
    (folder / "recipe.yaml").write_text(change(tiny.recipe_text(source, steps=60)))
    script = [sys.executable, str(ROOT / "tests/train/killed_runs.py"), str(folder), str(seed)]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] == 8
    whole, cut = folder / "whole", folder / "cut"
    assert_same_run(whole, cut)
    first, second = (losses(run) for run in (whole, cut))
    assert first == second, "every step stands in metrics.jsonl once"
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_other_seeds_give_other_weights(recipe, tmp_path):
    """The comparison above could not pass by accident."""
    pretrain(recipe, out=str(tmp_path / "a"), train__steps=2)
    pretrain(recipe, out=str(tmp_path / "b"), train__steps=2, seed=2)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert not all(a[name].equal(b[name]) for name in a)


def test_only_the_newest_checkpoints_are_kept(recipe, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out))
    assert [path.name for path in checkpoint.checkpoints(out)] == ["step-000006", "step-000008"]
    assert (out / "latest").resolve().name == "step-000008"


def test_a_finished_run_says_so_and_is_left_as_it_is(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    result = pretrain(recipe, out=str(out))
    before = (out / "latest" / "model.safetensors").stat().st_mtime_ns
    again = pretrain(resume=out / "latest")
    assert "is finished" in capsys.readouterr().err
    assert again.steps == result.steps == 8 and again.bits_per_byte == result.bits_per_byte
    assert (out / "latest" / "model.safetensors").stat().st_mtime_ns == before


def test_a_resume_with_other_settings_is_refused_by_name(recipe, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out))
    with pytest.raises(RunError, match="optimizer.learning_rate, seed") as error:
        pretrain(resume=out, overrides={"optimizer.learning_rate": "1e-4", "seed": "3"})
    assert "0.003 in the run, 0.0001 now" in str(error.value)
    pretrain(resume=out, overrides={"train.keep": "1", "log.every": "2"})


def test_a_folder_with_a_run_is_not_overwritten(recipe, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out), train__steps=1)
    with pytest.raises(RunError, match="run in this folder already"):
        pretrain(recipe, out=str(out), train__steps=1)
    with pytest.raises(RunError, match="no run to resume"):
        pretrain(resume=tmp_path / "elsewhere")


def test_a_resumed_run_multiplies_as_it_began(recipe, tmp_path, monkeypatch, capsys):
    """Whatever the machine's table says by then; another processor's choices are left, in a sentence."""
    monkeypatch.setattr(matmul, "WORTHWHILE", 0)

    def begin(library):
        monkeypatch.setattr(matmul, "TABLE", Table(matmul.libraries, library))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    begin("onednn")
    pretrain(recipe, out=str(whole))
    used = checkpoint.read_state(whole / "latest").matmul["choices"]
    assert used and set(used.values()) == {"onednn"}
    pretrain(recipe, out=str(cut))
    for path in checkpoint.checkpoints(cut)[1:]:  # as if it had been killed after the first
        shutil.rmtree(path)
    shutil.copytree(cut, tmp_path / "elsewhere", symlinks=True)
    begin("")
    monkeypatch.setattr(matmul.TABLE, "entry", lambda kind: {"library": "torch"})
    pretrain(resume=cut)
    assert "libraries" not in capsys.readouterr().err
    assert_same_run(whole, cut)

    begin("torch")
    pretrain(resume=tmp_path / "elsewhere")
    assert "matrix products were made by other libraries" in capsys.readouterr().err
    assert set(checkpoint.read_state(tmp_path / "elsewhere" / "latest").matmul["choices"].values()) == {"torch"}


def test_a_full_disk_is_a_sentence_and_keeps_the_checkpoint_before(recipe, tmp_path, monkeypatch):
    write, out, calls = checkpoint.save_file, tmp_path / "run", []

    def full(tensors, file, *rest):
        calls.append(file)
        if len(calls) >= 3:  # from the optimizer's tensors of the second checkpoint on
            Path(file).write_bytes(b"part")
            raise OSError(28, "No space left on device")
        write(tensors, file, *rest)

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(checkpoint, "PATIENCE", 1)
    monkeypatch.setattr(checkpoint, "_AGAIN", 1)
    with pytest.raises(RunError, match="(?i)full|no space"):
        pretrain(recipe, out=str(out))
    monkeypatch.undo()
    assert [path.name for path in checkpoint.checkpoints(out)] == ["step-000003"]
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != LOCK]
    pretrain(resume=out)
    pretrain(recipe, out=str(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", out)


def test_a_damaged_trainer_state_is_a_sentence(recipe, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out))
    (out / "latest" / "trainer" / "state.json").write_text("{}")
    with pytest.raises(RunError, match="not a trainer state"):
        pretrain(resume=out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_resumed_run_is_the_whole_one(source, tmp_path, number):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(tiny.recipe_text(source, steps=400))
    command = [sys.executable, "-m", "shoestring", "pretrain", str(recipe), "--out", str(out)]
    command += ["--train.evaluate_every", "1000", "--train.checkpoint_every", "1000"]
    run = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(number)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130, told
    assert f"shoestring pretrain --resume {out}" in told and "Traceback" not in told
    saved = checkpoint.checkpoints(out)
    assert len(saved) == 1 and read_metrics(metrics)[-1]["step"] == checkpoint.read_state(saved[0]).step


def test_a_resume_on_changed_text_is_refused(tmp_path):
    folder = tiny.corpus(tmp_path / "text")
    (tmp_path / "recipe.yaml").write_text(tiny.recipe_text(folder, steps=300))
    monitor = tmp_path / "run"
    with pytest.raises(Interrupted):
        stop_at(tmp_path / "recipe.yaml", monitor)
    (folder / "part03.py").write_text("changed = True\n" * 50)
    with pytest.raises(DataError, match="has changed since this run began"):
        pretrain(resume=monitor)


def stop_at(recipe: Path, out: Path) -> None:
    """Train, and raise the signal in this process while the first evaluation runs."""
    with pytest.MonkeyPatch.context() as patch:
        measure = evaluation.measure

        def measure_and_stop(*arguments):
            signal.raise_signal(signal.SIGINT)
            return measure(*arguments)

        patch.setattr(evaluation, "measure", measure_and_stop)
        pretrain(recipe, out=str(out))
