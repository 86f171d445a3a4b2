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

    def __init__(
        self, folder: Path, names: tuple[str, ...] = ("desk", "anna"), wait: str = "300s", host: str = "127.0.0.1",
        spaces: dict[str, str] | None = None,
    ):  # fmt: skip
        """spaces: the network namespace of each, where they have one."""
        self.folder, self.names, self.port = folder, names, free_port()
        self.host, self.spaces = host, spaces or {}
        self.running: dict[str, subprocess.Popen[str]] = {}
        machines = [{"name": name} for name in names]
        text = json.dumps({"listen": f"{host}:{self.port}", "wait": wait, "machines": machines})
        (folder / "machines.yaml").write_text(text)

    def start(self, name: str, *arguments: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        environment = {
            **os.environ, "SHOESTRING_TOKEN": TOKEN, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        inside = ["ip", "netns", "exec", self.spaces[name]] if self.spaces else []
        with open(folder / "log.txt", "a") as log:
            self.running[name] = subprocess.Popen(
                [*inside, sys.executable, "-m", "shoestring", *arguments], stdout=subprocess.PIPE, stderr=log,
                text=True, env=environment, cwd=folder,
            )  # fmt: skip

    def join(self, name: str) -> None:
        self.start(name, "join", f"{self.host}:{self.port}", "--name", name)

    def log(self, name: str) -> str:
        return (self.folder / name / "log.txt").read_text()

    def until(self, name: str, text: str, seconds: float = 300, times: int = 1) -> None:
        deadline = time.monotonic() + seconds
        while self.log(name).count(text) < times:
            assert self.running[name].poll() is None and time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)

    def result(self, name: str, seconds: float = 500) -> dict[str, Any]:
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
    assert two.running["anna"].wait(60) == 0 and "fetches" in two.log("anna")
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
    deadline = time.monotonic() + 300
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
def test_ctrl_c_saves_the_run_which_then_goes_on_when_all_join_again(machines, base, examples, tmp_path):
    two = machines()
    settings = {**SETTINGS, "train.steps": 30, "train.checkpoint_every": 100}
    begin(two, base, examples, settings)
    out = tmp_path / "desk" / "out"
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() or not losses(out):
        assert time.monotonic() < deadline, two.log("desk")
        time.sleep(0.1)
    two.running["desk"].send_signal(signal.SIGINT)
    assert two.running["desk"].wait(60) == 130, two.log("desk")
    assert "shoestring finetune --resume" in two.log("desk") and list(out.glob("step-*"))
    assert two.running["anna"].wait(60) == 0
    two.start("desk", "finetune", "--resume", "out", "--over", str(tmp_path / "machines.yaml"), "--json")
    two.until("desk", "join      shoestring join", times=2)
    two.join("anna")
    assert two.result("desk")["steps"] == 30
    expected = alone(base, examples, tmp_path / "alone", settings)
    assert losses(out) == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_ctrl_c_on_a_friends_machine_saves_the_run_which_waits_for_it(machines, base, examples, tmp_path):
    two = machines(wait="500s")
    settings = {**SETTINGS, "train.steps": 40, "train.checkpoint_every": 100}
    begin(two, base, examples, settings)
    out = tmp_path / "desk" / "out"
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() or not losses(out):
        assert time.monotonic() < deadline, two.log("desk")
        time.sleep(0.1)
    two.running["anna"].send_signal(signal.SIGINT)
    assert two.running["anna"].wait(60) == 130, two.log("anna")
    assert "leaving   after this step" in two.log("anna")
    two.until("desk", "stopped   anna: someone stopped it there; going on from step")
    two.join("anna")
    assert two.result("desk")["steps"] == 40
    expected = alone(base, examples, tmp_path / "alone", settings)
    assert losses(out) == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_strangers_do_not_disturb_a_run(machines, base, examples, tmp_path):
    two = machines()
    settings = {**SETTINGS, "train.steps": 40}
    begin(two, base, examples, settings)
    two.until("desk", "plan      ")
    over, strangers = time.monotonic() + 20, 0
    while two.running["desk"].poll() is None and time.monotonic() < over:
        try:
            with socket.create_connection(("127.0.0.1", two.port), 5) as stranger:
                stranger.sendall(os.urandom(1000))
        except ConnectionRefusedError:  # the run is over
            break
        strangers += 1
        time.sleep(0.2)
    assert two.result("desk")["steps"] == 40 and "refused   127.0.0.1" in two.log("desk")
    assert strangers >= 3


def open_ports(pids: list[int]) -> dict[int, str]:
    """Ports on which these processes listen, with their addresses, as /proc has them."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except OSError:
                continue
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            address, _, port = words[1].partition(":")
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found[int(port, 16)] = address
    return found


@pytest.mark.long
def test_every_open_port_is_of_the_address_named_and_outlives_random_bytes(machines, base, examples, tmp_path):
    two = machines()
    settings = {**SETTINGS, "train.steps": 60}
    begin(two, base, examples, settings)
    out = tmp_path / "desk" / "out"
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() or not losses(out):
        assert time.monotonic() < deadline, two.log("desk")
        time.sleep(0.1)
    pids = [process.pid for process in two.running.values()]
    ports = open_ports([*pids, *two.workers("desk"), *two.workers("anna")])
    assert len(ports) >= 3 and set(ports.values()) == {"0100007F"}, ports  # door, store and gloo: 127.0.0.1 alone
    for port in ports:
        for raw in (os.urandom(5000), b"", bytes(8), b"\xff" * 64):
            with socket.create_connection(("127.0.0.1", port), 5) as stranger:
                stranger.sendall(raw)
    assert two.result("desk")["steps"] == 60 and "going on from" not in two.log("desk")


@pytest.fixture
def spaces():
    """Two network namespaces with a link between them."""
    names = {name: f"shoe-{os.getpid()}-{name}" for name in ("desk", "anna")}
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "add", names["desk"]], capture_output=True).returncode:
        pytest.skip("only root on Linux makes network namespaces")
    try:
        run = subprocess.check_call
        run(["ip", "netns", "add", names["anna"]])
        run(
            ["ip", "link", "add", "veth0", "netns", names["desk"], "type", "veth", "peer", "veth0", "netns",
             names["anna"]]
        )  # fmt: skip
        for name, address in (("desk", "10.213.78.1/24"), ("anna", "10.213.78.2/24")):
            run(["ip", "-n", names[name], "addr", "add", address, "dev", "veth0"])
            run(["ip", "-n", names[name], "link", "set", "veth0", "up"])
            run(["ip", "-n", names[name], "link", "set", "lo", "up"])
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.long
def test_a_cut_link_is_noticed_within_a_minute_and_mended(machines, spaces, base, examples, tmp_path):
    two = machines(host="10.213.78.1", spaces=spaces, wait="300s")
    settings = {**SETTINGS, "train.steps": 60, "train.checkpoint_every": 5}
    begin(two, base, examples, settings)
    out = tmp_path / "desk" / "out"
    deadline = time.monotonic() + 300
    while not list(out.glob("step-*")):
        assert time.monotonic() < deadline, two.log("desk")
        time.sleep(0.1)
    subprocess.check_call(["ip", "-n", spaces["anna"], "link", "set", "veth0", "down"])
    cut = time.monotonic()
    two.until("desk", "going on from step", 60)
    two.until("anna", "lost      the first machine", 60)
    assert time.monotonic() - cut < 60
    subprocess.check_call(["ip", "-n", spaces["anna"], "link", "set", "veth0", "up"])
    assert two.result("desk")["steps"] == 60
    expected = alone(base, examples, tmp_path / "alone", settings)
    assert losses(out) == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_a_link_that_becomes_slow_makes_a_run_slow_and_nothing_else(machines, spaces, base, examples, tmp_path):
    two = machines(host="10.213.78.1", spaces=spaces, wait="300s")
    settings = {**SETTINGS, "train.steps": 300, "train.checkpoint_every": 5, "train.evaluate_every": 300}
    settings["optimizer.learning_rate"] = 1e-4  # at which rounding stays rounding
    begin(two, base, examples, settings)
    out = tmp_path / "desk" / "out"

    def until(step: int) -> float:
        deadline = time.monotonic() + 300
        while not (out / "metrics.jsonl").exists() or max(losses(out), default=0) < step:
            assert two.running["desk"].poll() is None and time.monotonic() < deadline, two.log("desk")
            time.sleep(0.02)
        return time.monotonic()

    until(20)
    before = max(losses(out))
    began = until(before + 10)
    until(before + 20)
    fast = (time.monotonic() - began) / 10
    for space in spaces.values():
        limit = ["tbf", "rate", "2mbit", "burst", "32kb", "latency", "400ms"]
        subprocess.check_call(["tc", "-n", space, "qdisc", "add", "dev", "veth0", "root", *limit])
    slowed = max(losses(out))
    began = until(slowed + 2)
    slow = (until(slowed + 12) - began) / 10
    for space in spaces.values():
        subprocess.check_call(["tc", "-n", space, "qdisc", "del", "dev", "veth0", "root"])
    assert two.result("desk")["steps"] == 300
    assert slow > 3 * fast, f"a step took {slow:.3f} s over the slow link and {fast:.3f} before"
    assert two.log("desk").count("plan      ") == 1, "nothing was begun again"
    assert losses(out) == pytest.approx(alone(base, examples, tmp_path / "alone", settings), abs=1e-4)
