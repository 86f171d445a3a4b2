"""What goes wrong in a run and does not end it: disks that are full, writes that fail, losses that are none or explode,
weights that were torn. Each is an event, nothing before the last checkpoint is lost, and a resume ends with the same
bits."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shoestring.train.checkpoint as checkpoint
from shoestring.core.errors import RunError
from shoestring.pretraining.job import pretrain
from shoestring.train.checkpoint import checkpoints, read_state
from shoestring.train.loop import Callback, train
from shoestring.train.metrics import Metrics, read_metrics
from shoestring.train.metrics_file import MetricsFile
from shoestring.train.objective import Loss, next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.pace import FixedSteps
from shoestring.train.resident import ResidentEngine
from shoestring.train.schedule import build_schedule
from shoestring.train.schedule_config import CosineConfig
from shoestring.train.state import TrainerState
from tests.train import tiny


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """-> a function that writes the tiny recipe; of more than its eight steps it measures the end alone."""
    folder = tmp_path_factory.mktemp("recipe")
    text = tiny.corpus(folder / "text")

    def write(steps=8):
        file = folder / f"recipe{steps}.yaml"
        written = tiny.recipe_text(text, steps)
        file.write_text(written if steps == 8 else written.replace("evaluate_every: 3", "evaluate_every: 100"))
        return file

    return write


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The eight steps, undisturbed."""
    return pretrain(recipe(), out=tmp_path_factory.mktemp("whole") / "run")


def weights(result) -> bytes:
    return (Path(result.checkpoint) / "model.safetensors").read_bytes()


def events(out) -> list[tuple[str, int]]:
    return [(line["event"], line["step"]) for line in read_metrics(Path(out) / "metrics.jsonl") if "event" in line]


def steps_written(out) -> list[int]:
    return [line["step"] for line in read_metrics(Path(out) / "metrics.jsonl") if "loss" in line]


# --- writing ------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """-> a function: writing a checkpoint fails as long as `when(step)` says so."""

    def fail(when, error=None):
        write = checkpoint.write_checkpoint

        def write_checkpoint(out, state, engine, keep, write_files):
            def write_some(folder):
                write_files(folder)
                if when(state.step):
                    raise error or OSError(errno.ENOSPC, "No space left on device", str(folder))

            return write(out, state, engine, keep, write_some)

        monkeypatch.setattr(checkpoint, "write_checkpoint", write_checkpoint)

    return fail


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "Input/output error")], ids=["full", "broken"])
def test_a_write_that_fails_leaves_the_checkpoint_before_and_the_run(recipe, whole, failing, tmp_path, error, capsys):
    failing(lambda step: step == 6, error)
    result = pretrain(recipe(), out=tmp_path / "run")
    assert [folder.name for folder in checkpoints(result.out)] == ["step-000003", "step-000008"]
    assert events(result.out) == [("not_written", 6)] and weights(result) == weights(whole)
    assert not [path for path in result.out.iterdir() if path.suffix == ".tmp"]
    told = capsys.readouterr().err
    assert told.count("not saved the checkpoint of step 6: ") == 1 and "tries again at the next one" in told


def test_the_end_waits_for_room_and_is_saved(recipe, failing, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_AGAIN", 1)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    tries = iter([True, True, False])
    failing(lambda step: step == 8 and next(tries))
    result = pretrain(recipe(), out=tmp_path / "run")
    assert result.checkpoint.name == "step-000008" and read_state(result.checkpoint).finished
    assert events(result.out) == [("not_written", 8)]


def test_an_end_that_finds_no_room_says_where_the_run_can_go_on(recipe, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PATIENCE", 3)
    monkeypatch.setattr(checkpoint, "_AGAIN", 1)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    with monkeypatch.context() as patch:
        write = checkpoint.write_checkpoint
        patch.setattr(checkpoint, "write_checkpoint", lambda out, state, *rest: _full(out, state, write, rest))
        with pytest.raises(RunError, match="step 8 could not be saved: .*full.*") as raised:
            pretrain(recipe(), out=tmp_path / "run")
    assert "the run goes on from" in str(raised.value) and "step-000006" in str(raised.value)
    assert checkpoints(tmp_path / "run")[-1].name == "step-000006" and events(tmp_path / "run") == [("not_written", 8)]
    result = pretrain(resume=tmp_path / "run")
    assert weights(result) == weights(whole)
    assert steps_written(result.out) == list(range(1, 9)) and events(result.out) == []


def _full(out, state, write, rest):
    if state.step == 8:
        raise RunError("the disk is full", str(out))
    return write(out, state, *rest)


def test_a_best_checkpoint_that_was_not_written_is_not_named(recipe, failing, tmp_path):
    """The one before is the best that there is."""
    failing(lambda step: step == 6)
    settings = {"train__keep": 1, "train__keep_best": True, "train__evaluate_tokens": 128}
    result = pretrain(recipe(), out=tmp_path / "run", **settings)
    best = (result.out / "best").resolve()
    assert best.name == "step-000003" and best.is_dir() and read_state(result.checkpoint).best_step == 3


def test_lines_that_find_no_room_wait_and_none_is_lost(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.jsonl")

    class Full:
        """A file that takes some bytes, and then no more."""

        def __init__(self, inner, room):
            self.inner, self.room = inner, room

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = self.inner.write(data[: self.room])
            self.room -= taken
            return taken

        def close(self):
            self.inner.close()

    file.write({"step": 1})
    full = Full(file._file, 5)
    file._file = full
    file.write({"step": 2})
    file.write({"step": 3})
    assert file.failed == "No space left on device" and file.lines_waiting == 2
    assert [line["step"] for line in read_metrics(file.path)] == [1]
    full.room = 10**6
    file.write({"step": 4})
    assert not file.failed
    file.close()
    assert [line["step"] for line in read_metrics(file.path)] == [1, 2, 3, 4]


def can_mount() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where one can be had."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = can_mount() and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    ).returncode == 0
    if not made:
        pytest.skip("a file system of its own wants root and mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_for_a_while_costs_a_run_nothing(recipe, whole, small_disk, monkeypatch, capsys):
    """From step 4 to step 6, with the checkpoint of step 6 in between."""
    after_step, filler = Metrics.after_step, small_disk / "filler"

    def fill(metrics, event):
        if event.state.step == 4:
            with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))
        if event.state.step == 7:
            filler.unlink()
        event.lines.append({"note": "x" * 5000})  # more than a page, of which the file's last one has room
        after_step(metrics, event)

    monkeypatch.setattr(Metrics, "after_step", fill)
    result = pretrain(recipe(), out=small_disk / "run")
    assert weights(result) == weights(whole) and steps_written(result.out) == list(range(1, 9))
    assert events(result.out) == [("not_written", 6)] and result.checkpoint.name == "step-000008"
    told = capsys.readouterr().err
    assert told.count("cannot be written") == 1 and told.count("is written again") == 1


# --- losses -------------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch):
    """-> a function: before those steps (counted from 1) `damage` is done to the model."""

    def poison(damage, *steps):
        forward_backward = ResidentEngine.forward_backward

        def poisoned_step(engine, microbatches):
            if engine.steps + 1 in steps:
                with torch.no_grad():
                    damage(engine.decoder)
            return forward_backward(engine, microbatches)

        monkeypatch.setattr(ResidentEngine, "forward_backward", poisoned_step)

    return poison


def ruin(decoder):
    decoder.norm.weight.fill_(math.nan)


def blow_up(decoder):
    decoder.norm.weight.mul_(1e4)


def test_weights_that_give_no_number_go_back_to_the_last_checkpoint(recipe, poisoned, tmp_path, capsys):
    poisoned(ruin, 5)
    result = pretrain(recipe(24), out=tmp_path / "run")
    assert [one for one in events(result.out) if one[0] != "skipped"] == [("rolled_back", 14)]
    assert [step for event, step in events(result.out) if event == "skipped"] == list(range(5, 15))
    (back,) = (line for line in read_metrics(result.out / "metrics.jsonl") if line.get("event") == "rolled_back")
    assert back["to"] == 3 and "10 steps in a row were skipped up to step 14" in back["reason"]
    losses = {line["step"]: line["loss"] for line in read_metrics(result.out / "metrics.jsonl") if "loss" in line}
    assert sorted(losses) == [*range(1, 5), *range(15, 25)] and losses[24] < losses[3]
    assert result.checkpoint.name == "step-000024" and read_state(result.checkpoint).rollbacks == 1
    assert "back      to the weights of step 3" in capsys.readouterr().err


def test_so_it_does_after_a_kill_in_between_with_the_same_bits(recipe, poisoned, tmp_path, monkeypatch):
    poisoned(ruin, 5)
    whole = pretrain(recipe(24), out=tmp_path / "whole")
    after_step = Metrics.after_step

    def die(metrics, event):
        after_step(metrics, event)
        if event.state.step == 9:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "after_step", die)
        with pytest.raises(ZeroDivisionError):
            pretrain(recipe(24), out=tmp_path / "cut")
    # What is saved is sound: the checkpoint due at step 6 would have been of ruined weights.
    assert [folder.name for folder in checkpoints(tmp_path / "cut")] == ["step-000003"]
    cut = pretrain(resume=tmp_path / "cut")
    assert weights(cut) == weights(whole) and events(cut.out) == events(whole.out)


def test_a_run_goes_back_so_often_and_no_more(recipe, poisoned, tmp_path):
    poisoned(ruin, *range(5, 60))
    with pytest.raises(RunError, match="10 steps in a row were skipped up to step 24") as raised:
        pretrain(recipe(60), out=tmp_path / "run", train__rollbacks=1)
    assert "the last checkpoint is" in str(raised.value)
    assert [one for one in events(tmp_path / "run") if one[0] != "skipped"] == [("rolled_back", 14)]
    with pytest.raises(RunError, match="up to step 14"):
        pretrain(recipe(60), out=tmp_path / "never", train__rollbacks=0)


def test_a_checkpoint_of_the_step_that_ruined_the_weights_is_not_gone_back_to(recipe, poisoned, tmp_path):
    """It is written before anybody can know."""
    poisoned(ruin, 7)
    result = pretrain(recipe(24), out=tmp_path / "run")
    (back,) = (line for line in read_metrics(result.out / "metrics.jsonl") if line.get("event") == "rolled_back")
    assert (back["step"], back["to"]) == (16, 3)  # step 6 has a checkpoint too, and it was the last that was done
    assert [folder.name for folder in checkpoints(result.out)] == ["step-000021", "step-000024"]


def test_a_run_does_not_end_with_weights_that_give_no_number(recipe, poisoned, tmp_path):
    poisoned(ruin, 6)
    result = pretrain(recipe(), out=tmp_path / "run")
    assert events(result.out)[-1] == ("rolled_back", 8) and result.checkpoint.name == "step-000008"
    assert math.isfinite(result.held_out_loss)


def test_an_explosion_goes_back_too(recipe, poisoned, tmp_path):
    poisoned(blow_up, 26)
    result = pretrain(recipe(42), out=tmp_path / "run", train__batch_tokens=256)
    found = [line for line in read_metrics(result.out / "metrics.jsonl") if line.get("event") == "rolled_back"]
    assert [(line["step"], line["to"]) for line in found] == [(35, 24)]
    assert "is an explosion" in found[0]["reason"]
    losses = [line["loss"] for line in read_metrics(result.out / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[20] and max(losses[36:]) < losses[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fine_tuning_goes_back_as_well(base, examples, tmp_path, monkeypatch, method):
    from shoestring.finetuning.job import finetune

    forward_backward = ResidentEngine.forward_backward

    def poisoned_step(engine, microbatches):
        if engine.steps == 4:
            with torch.no_grad():
                for parameter in engine.parameters():
                    parameter.fill_(math.nan)
        return forward_backward(engine, microbatches)

    monkeypatch.setattr(ResidentEngine, "forward_backward", poisoned_step)
    result = finetune(
        base, examples, out=tmp_path / "run", method=method, steps=18, train__checkpoint_every=3, train__answers=1,
        train__evaluate_every=3, train__evaluate_examples=2,
    )  # fmt: skip
    assert ("rolled_back", 14) in events(result.out)
    assert all(line["loss"] is not None for line in read_metrics(result.out / "metrics.jsonl")[-3:] if "loss" in line)
    assert result.steps == 18


def test_weights_torn_in_the_pass_backward_are_whole_again(recipe, tmp_path, monkeypatch):
    forward_backward = ResidentEngine.forward_backward

    def torn_step(engine, microbatches):
        if engine.steps != 4:
            return forward_backward(engine, microbatches)
        hook = engine.decoder.embedding.weight.register_hook(lambda gradient: gradient * math.nan)
        try:
            return forward_backward(engine, microbatches)
        finally:
            hook.remove()

    monkeypatch.setattr(ResidentEngine, "forward_backward", torn_step)
    result = pretrain(
        recipe(12), out=tmp_path / "run", optimizer__in_backward=True, train__clip=None, train__microbatch=4
    )
    assert events(result.out) == [("rolled_back", 5)] and result.checkpoint.name == "step-000012"
    losses = [line["loss"] for line in read_metrics(result.out / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


class Watched(Callback):
    """The weights and events after each step."""

    def __init__(self, model):
        self.model, self.weights, self.skipped = model, [], []

    def after_step(self, event):
        self.weights.append(self.model.embedding.weight.detach().clone())
        self.skipped.append(event.result.skipped)


class Batches:
    def __init__(self, rows):
        self.rows, self.n = rows, 0

    def __next__(self):
        self.n += 1
        return tiny.batch(self.rows, seed=self.n)

    def state(self):
        return {"n": self.n}

    def restore(self, state):
        self.n = state["n"]


class Exploding:
    """Next-token loss, a hundred times as large in one step."""

    def __init__(self, step):
        self.step, self.calls = step, 0

    def __call__(self, hidden_BTD, head, batch):
        self.calls += 1
        loss = next_token(hidden_BTD, head, batch)
        return Loss(loss.sum * 100, loss.count) if self.calls == self.step else loss

    def penalties(self, step):
        return []


@pytest.mark.parametrize(("rows", "explosion", "skipped"), [(16, 5.0, True), (16, None, False), (4, 5.0, False)])
def test_one_exploding_batch_is_left_out_where_it_is_large_enough_to_tell(rows, explosion, skipped):
    """Of 256 labels, and not of 64."""
    model = tiny.model()
    engine = ResidentEngine(lambda: model)
    engine.load()
    engine.begin(Exploding(25), AdamWConfig(learning_rate=1e-3))
    watched = Watched(model)
    state = train(
        engine, Batches(rows), 1e-3, build_schedule(CosineConfig(warmup=2)), FixedSteps(30), TrainerState(),
        explosion=explosion, callbacks=[watched],
    )  # fmt: skip
    assert watched.skipped == [step == 25 and skipped for step in range(1, 31)]
    assert torch.equal(watched.weights[23], watched.weights[24]) is skipped
    assert [event["event"] for event in state.events] == ["skipped"] * skipped
    assert len(state.recent_losses) == 30 - skipped and engine.steps == 30


def test_what_a_step_is_compared_with_is_part_of_the_state():
    state = TrainerState()
    for number in range(19):
        state.remember(3.0 + number / 100)
        assert state.loss_limit(5.0) == math.inf
    state.remember(math.nan)
    state.remember(9.0)
    assert state.loss_limit(5.0) == pytest.approx(5 + 3.095) and state.loss_limit(None) == math.inf
    again = TrainerState.from_json(json.loads(json.dumps(state.to_json())))
    assert again.recent_losses == state.recent_losses
    for number in range(300):
        state.remember(float(number))
    assert len(state.recent_losses) == 100 and state.recent_losses[0] == 200


def test_the_best_checkpoint_is_kept_beside_the_newest(recipe, tmp_path):
    """By the held-out sample: what is read at the end is more text, and no measure beside it."""
    settings = {"train__keep": 1, "train__keep_best": True, "train__evaluate_tokens": 128}
    settings["train__evaluate_every"] = 4
    result = pretrain(recipe(24), out=tmp_path / "run", optimizer__learning_rate=0.3, **settings)
    lines = read_metrics(result.out / "metrics.jsonl")
    measured = {line["step"]: line["held_out_loss"] for line in lines if line.get("held_out_set") == "sample"}
    best = min(measured, key=measured.get)
    assert (result.out / "best").resolve().name == f"step-{best:06d}"
    assert [folder.name for folder in checkpoints(result.out)] == sorted({f"step-{best:06d}", "step-000024"})
