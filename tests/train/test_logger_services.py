"""TensorBoard and Weights & Biases: what a run has given them, read back; and services that fail."""

import collections
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.pretraining.job import pretrain
from shoestring.train.loggers import Spooled
from shoestring.train.metrics import Metrics
from shoestring.train.metrics_file import MetricsFile
from tests.train import tiny
from tests.train.wandb_service import service


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"the package {package} is not installed (pip install {package})")


class Fake:
    """A service that takes so many figures, and then fails for a while."""

    def __init__(self, kept, has=-1, room=10**6):
        self.kept, self.has, self.room, self.closed = kept, has, room, False

    def add(self, step, figures):
        if self.room <= 0:
            raise ConnectionError("the other side has gone")
        self.room -= 1
        self.kept.append((step, figures))

    def close(self):
        self.closed = True


def line(step, **values):
    return {"step": step, "tokens": 10 * step, "loss": 1.0 / step, **values}


def test_a_service_that_fails_is_told_once_and_brought_up_to_date_at_the_end(tmp_path, capsys):
    file, kept = MetricsFile(tmp_path / "metrics.jsonl"), []
    services = iter([Fake(kept, room=3), Fake(kept, has=3)])
    logger = Spooled("fake", lambda: next(services), file.path)
    for step in range(1, 9):
        values = line(step)
        file.write(values)
        logger.add(values)
    assert [step for step, _ in kept] == [1, 2, 3]
    logger.close()
    assert [step for step, _ in kept] == list(range(1, 9)) and kept[-1][1]["loss"] == 1 / 8
    assert capsys.readouterr().err.count("fake      has failed: the other side has gone") == 1


def test_one_that_is_never_there_ends_nothing(tmp_path, capsys):
    tried = []

    def begin():
        tried.append(1)
        raise OSError("no route to host")

    logger = Spooled("fake", begin, tmp_path / "metrics.jsonl")
    logger.add(line(1))
    logger.close()
    assert len(tried) == 2 and capsys.readouterr().err.count("no route to host") == 1


def test_a_run_that_goes_on_gives_what_the_service_has_not_and_nothing_twice(tmp_path):
    """It was killed at step 6, the service has 6 of what came before, and the run goes on from step 4."""
    file, kept = MetricsFile(tmp_path / "metrics.jsonl"), []
    for step in range(1, 5):
        file.write(line(step))
    ahead = Spooled("fake", lambda: Fake(kept, has=6), file.path)
    for step in range(5, 9):
        ahead.add(line(step))
    assert [step for step, _ in kept] == [7, 8]
    behind = Spooled("fake", lambda: Fake(kept, has=2), file.path)
    behind.add(line(5))
    assert [step for step, _ in kept] == [7, 8, 3, 4, 5]


def test_what_is_no_figure_is_not_given(tmp_path):
    kept = []
    logger = Spooled("fake", lambda: Fake(kept), tmp_path / "metrics.jsonl")
    logger.add({"step": 1, "sample": "text", "prompt": "x"})
    logger.add({"step": 2, "event": "rolled_back", "to": 1})
    logger.add({"step": 3, "loss": None, "lr": 0.5, "bits_per_byte": 2.0, "held_out_set": "sample"})
    assert kept == [(3, {"lr": 0.5, "sample_bits_per_byte": 2.0})]


@pytest.fixture
def killed_and_resumed(tmp_path, monkeypatch):
    """-> a function: a run of eight steps with these settings, killed after step 5 and resumed from step 3."""

    def run(**settings):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
        after_step = Metrics.after_step

        def die(metrics, event):
            after_step(metrics, event)
            if event.state.step == 5:
                raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(Metrics, "after_step", die)
            with pytest.raises(ZeroDivisionError):
                pretrain(recipe, out=tmp_path / "run", **settings)
        return pretrain(resume=tmp_path / "run").out

    return run


@needs("tensorboard")
def test_tensorboard_reads_each_step_once(killed_and_resumed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = killed_and_resumed(log__tensorboard=True)
    read = EventAccumulator(str(out / "tensorboard"))
    read.Reload()
    losses = {event.step: event.value for event in read.Scalars("loss")}
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    expected = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert len(read.Scalars("loss")) == 8 and losses == pytest.approx(expected)
    assert [event.step for event in read.Scalars("held_out_loss")] == [3, 6, 8]


def wandb_history(file):
    """The points in a file of wandb's: LevelDB's log format (blocks of 32 KiB; checksum, length, kind) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, points = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.HasField("history"):
                found = {"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                         for item in record.history.item}  # fmt: skip
                points.append({"step": record.history.step.num, **found})
    return points


@pytest.fixture
def fresh_wandb(monkeypatch):
    """It reads its variables once in a process."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


@needs("wandb")
def test_wandb_offline_keeps_one_run_with_every_point_once(killed_and_resumed, fresh_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = killed_and_resumed(log__wandb="tests")
    name = (out / "run-id").read_text().strip()
    files = sorted(out.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2 and {file.name for file in files} == {f"run-{name}.wandb"}
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    expected = collections.defaultdict(dict)
    for values in lines:
        expected[values["step"]] |= values
    points = {point["step"]: point for point in wandb_history(files[-1])}
    assert sorted(points) == list(range(1, 9)) == sorted(expected)
    for step, point in points.items():
        assert point["loss"] == expected[step]["loss"] and point["lr"] == expected[step]["lr"]
    assert points[8]["bits_per_byte"] == expected[8]["bits_per_byte"] and "held_out_loss" not in points[4]


@needs("wandb")
@pytest.mark.long
def test_wandb_that_is_not_reached_keeps_the_figures_for_later(tmp_path, fresh_wandb, monkeypatch, capsys):
    """Nothing listens at that address; the key is none."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("shoestring.train.loggers._SIGN_IN", 5)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    out = pretrain(recipe, out=tmp_path / "run", log__wandb="tests").out
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    assert sorted(point["step"] for point in wandb_history(file)) == list(range(1, 9))
    told = capsys.readouterr().err
    assert told.count("cannot be reached") == 1 and "`wandb sync`" in told


@needs("wandb")
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_killed_run_whose_connection_was_lost_goes_on_as_one_curve(tmp_path):
    """The service has what came before step 3; the rest was on its way when everything was killed."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    with service() as (stands_in, address):
        env = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}

        def session(last):
            command = [sys.executable, "-m", "tests.train.wandb_run", str(recipe), str(out), str(last)]
            root = Path(__file__).parents[2]
            return subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=200)

        killed = session(5)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        (run,) = stands_in.history
        assert run == (out / "run-id").read_text().strip()
        before = [point["_step"] for point in stands_in.points(run)]
        assert before in ([1], [1, 2])  # the newest point may still be added to, and is kept back
        stands_in.away = False
        resumed = session(0)
        assert resumed.returncode == 0, resumed.stderr
        lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
        losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
        points = stands_in.points(run)
        assert list(stands_in.history) == [run] and [point["_step"] for point in points] == list(range(1, 9))
        assert {point["_step"]: point["loss"] for point in points} == losses
