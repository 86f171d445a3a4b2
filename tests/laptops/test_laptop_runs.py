"""Whole runs over processes of their own on this machine: the commands as people type them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shoestring.finetuning.job import finetune
from tests.finetuning.tiny import flags
from tests.laptops.ends import TOKEN

SETTINGS: dict[str, Any] = {
    "train.steps": 6, "train.batch_tokens": 512, "train.sequence_length": 128, "train.evaluate_every": 3,
    "train.checkpoint_every": 2, "optimizer.learning_rate": 1e-2, "data.validation": 0.2, "log.every": 1,
    "precision.compute": "float32",
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Machines:
    """Commands in processes of their own, each with a log and a cache of its own."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("desk", "anna"), wait: str = "60s"):
        self.folder, self.names, self.port = folder, names, free_port()
        self.running: dict[str, subprocess.Popen[str]] = {}
        machines = [{"name": name} for name in names]
        text = json.dumps({"listen": f"127.0.0.1:{self.port}", "wait": wait, "machines": machines})
        (folder / "machines.yaml").write_text(text)

    def start(self, name: str, *arguments: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        environment = {
            **os.environ, "SHOESTRING_TOKEN": TOKEN, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with open(folder / "log.txt", "a") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "shoestring", *arguments], stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment, cwd=folder,
            )  # fmt: skip

    def join(self, name: str) -> None:
        self.start(name, "join", f"127.0.0.1:{self.port}", "--name", name)

    def log(self, name: str) -> str:
        return (self.folder / name / "log.txt").read_text()

    def until(self, name: str, text: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log(name):
            assert self.running[name].poll() is None and time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)

    def result(self, name: str, seconds: float = 180) -> dict[str, Any]:
        said, _ = self.running[name].communicate(timeout=seconds)
        assert self.running[name].returncode == 0, self.log(name)
        return json.loads(said.strip().splitlines()[-1])

    def workers(self, name: str) -> list[int]:
        """Processes that a command has begun."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[1]) == self.running[name].pid:
                found.append(int(status.parent.name))
        return found

    def close(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def machines(tmp_path):
    made: list[Machines] = []

    def make(*arguments: Any, **given: Any) -> Machines:
        made.append(Machines(tmp_path, *arguments, **given))
        return made[-1]

    yield make
    for one in made:
        one.close()


def begin(machines: Machines, base: Path, examples: Path, settings: dict[str, Any] = SETTINGS) -> None:
    machines.start(
        "desk", "finetune", str(base), "--data", str(examples), "--over", str(machines.folder / "machines.yaml"),
        "--out", "out", "--json", *flags(settings),
    )  # fmt: skip
    machines.until("desk", "join      shoestring join")
    for name in machines.names[1:]:
        machines.join(name)


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def alone(base: Path, examples: Path, out: Path, settings: dict[str, Any] = SETTINGS) -> dict[int, float]:
    finetune(base, examples, out=out, overrides={**settings, "train.answers": 0})
    return losses(out)


def test_a_run_over_two_machines_learns_what_one_does(machines, base, examples, tmp_path):
    two = machines()
    begin(two, base, examples)
    result = two.result("desk")
    assert result["steps"] == 6 and set(result["machines"]) == {"desk", "anna"}
    assert two.running["anna"].wait(20) == 0 and "fetches" in two.log("anna")
    assert "does      finetune: layers 1 to 1 of 2, the head and its loss, with desk" in two.log("anna")
    expected = alone(base, examples, tmp_path / "alone")
    assert losses(tmp_path / "desk" / "out") == pytest.approx(expected, abs=1e-5)
    assert TOKEN not in two.log("anna")


@pytest.mark.long
@pytest.mark.parametrize("who", ["desk", "anna"])
def test_a_killed_worker_costs_nothing_past_the_last_checkpoint(machines, base, examples, tmp_path, who):
    two = machines()
    settings = {**SETTINGS, "train.steps": 40, "train.checkpoint_every": 5}
    begin(two, base, examples, settings)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "desk" / "out").glob("step-*")):
        assert time.monotonic() < deadline, two.log("desk")
        time.sleep(0.1)
    for worker in two.workers(who):
        os.kill(worker, signal.SIGKILL)
    result = two.result("desk")
    assert result["steps"] == 40 and "going on from step" in two.log("desk")
    expected = alone(base, examples, tmp_path / "alone", settings)
    assert losses(tmp_path / "desk" / "out") == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_a_machine_that_is_killed_and_joins_again_is_gone_on_with(machines, base, examples, tmp_path):
    two = machines()
    settings = {**SETTINGS, "train.steps": 40, "train.checkpoint_every": 5}
    begin(two, base, examples, settings)
    two.until("desk", "plan      ")
    time.sleep(12)
    two.running["anna"].kill()
    two.running["anna"].wait()
    two.join("anna")
    assert two.result("desk")["steps"] == 40
    expected = alone(base, examples, tmp_path / "alone", settings)
    assert losses(tmp_path / "desk" / "out") == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_ctrl_c_saves_the_run_which_then_goes_on_over_another_split(machines, base, examples, tmp_path):
    two = machines()
    settings = {**SETTINGS, "train.steps": 30, "train.checkpoint_every": 100}
    begin(two, base, examples, settings)
    out = tmp_path / "desk" / "out"
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() or not losses(out):
        assert time.monotonic() < deadline, two.log("desk")
        time.sleep(0.1)
    two.running["desk"].send_signal(signal.SIGINT)
    assert two.running["desk"].wait(60) == 130, two.log("desk")
    assert "shoestring finetune --resume" in two.log("desk") and list(out.glob("step-*"))
    assert two.running["anna"].wait(20) == 0
    two.start("desk", "finetune", "--resume", "out", "--over", str(tmp_path / "machines.yaml"), "--json")
    two.join("anna")
    assert two.result("desk")["steps"] == 30
    expected = alone(base, examples, tmp_path / "alone", settings)
    assert losses(out) == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_strangers_do_not_disturb_a_run(machines, base, examples, tmp_path):
    two = machines()
    settings = {**SETTINGS, "train.steps": 40}
    begin(two, base, examples, settings)
    two.until("desk", "plan      ")
    over = time.monotonic() + 20
    while two.running["desk"].poll() is None and time.monotonic() < over:
        with socket.create_connection(("127.0.0.1", two.port), 5) as stranger:
            stranger.sendall(os.urandom(1000))
        time.sleep(0.2)
    assert two.result("desk")["steps"] == 40 and "refused   127.0.0.1" in two.log("desk")
