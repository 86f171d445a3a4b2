"""docs/cluster.md, followed to the letter on two "machines": network namespaces of this one, joined by a cable."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.ranks import ROOT, environment

PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
ONE, TWO = (f"shoestring-{number}-{os.getpid()}" for number in (1, 2))  # tests run side by side
MACHINES = {ONE: "192.168.1.10", TWO: "192.168.1.11"}


def told(*command: str) -> str:
    """Why a command failed, "" where it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""


def commands() -> list[str]:
    """The blocks of "Two machines", for the first and for the second one, as they stand."""
    section = PAGE.split("## Two machines")[1].split("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[:2]


@pytest.fixture
def machines():
    """Two network namespaces whose eth0 have the addresses of the page."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces want Linux, root and iproute2 (ip netns)")
    steps = [("ip", "netns", "add", name) for name in MACHINES]
    steps += [("ip", "link", "add", "eth0", "netns", ONE, "type", "veth", "peer", "name", "eth0", "netns", TWO)]
    for name, address in MACHINES.items():
        inside = ("ip", "-n", name)
        steps += [(*inside, "addr", "add", f"{address}/24", "dev", "eth0")]
        steps += [(*inside, "link", "set", device, "up") for device in ("lo", "eth0")]
    try:
        for step in steps:
            if why := told(*step):
                pytest.skip(f"network namespaces cannot be made here: {' '.join(step)}: {why}")
        yield
    finally:
        for name in MACHINES:
            told("ip", "netns", "del", name)


def begin(folder: Path) -> list[subprocess.Popen[str]]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, "bash", "-ec", command], cwd=folder, env=environment(PATH=path), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        for name, command in zip(MACHINES, commands(), strict=True)
    ]  # fmt: skip


def ends(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each says, once all have ended well."""
    try:
        found = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(err for _, err in found)
    return [err for _, err in found]


def steps(out: Path) -> list[int]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def workers(machine: str) -> list[int]:
    """Processes of `shoestring pretrain` in a namespace, without the torchrun that started them."""
    listed = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True, check=True)
    found = []
    for pid in map(int, listed.stdout.split()):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"shoestring" in arguments and not any(b"torchrun" in part for part in arguments):
            found.append(pid)
    return found


def test_the_two_machines_are_given_the_same_command_but_for_two_words():
    first, second = (command.split() for command in commands())
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert differing == [("is_host=1", "is_host=0"), ("192.168.1.10", "192.168.1.11")]


@pytest.mark.long
def test_two_machines_train_one_model_by_the_commands_of_the_page(machines, tmp_path):
    first, second = ends(begin(tmp_path))
    out = tmp_path / "runs" / "two"
    assert steps(out) == list(range(1, 13))
    sessions = [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]
    assert sessions[0]["processes"] == 2 and sessions[-1]["how"] == "finished"
    assert "held-out" in first and "held-out" not in second, "the first one tells"


@pytest.mark.long
def test_a_rank_that_is_killed_on_the_second_machine_comes_back_and_the_run_goes_on(machines, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    ends(begin(whole))
    processes, metrics = begin(cut), cut / "runs" / "two" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and any(n >= 5 for n in steps(metrics.parent))):
        time.sleep(0.02)
    (pid,) = workers(TWO)
    os.kill(pid, signal.SIGKILL)
    told_by = ends(processes)
    assert steps(metrics.parent) == list(range(1, 13))
    weights = [(run / "runs" / "two" / "latest" / "model.safetensors").read_bytes() for run in (whole, cut)]
    assert weights[0] == weights[1]
    sessions = [json.loads(line) for line in (metrics.parent / "sessions.jsonl").read_text().splitlines()]
    began = [line for line in sessions if line["session"] == "began"]
    assert [line.get("restart") for line in began] == [None, "1"] and began[1]["step"] == 4
    assert "rank 1" in told_by[0], told_by[0]
