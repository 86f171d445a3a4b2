"""A run over machines whose workers are scripted: who leaves is noticed, waited for, and gone on with or without."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shoestring.core.errors import NetworkError, RunError
from shoestring.laptops import coordinate, joining, link
from shoestring.laptops.config import Address, MachinesConfig
from shoestring.laptops.coordinate import Coordinator
from shoestring.laptops.crew import Crew
from shoestring.laptops.joining import Joiner
from shoestring.laptops.order import Order
from shoestring.laptops.share import Shared
from shoestring.plan.ranges import even_split
from tests.laptops.ends import TOKEN

MACHINE = {
    "memory": 8e9, "process": 2e8, "checkpointing": 7e7, "int8_gain": 1.0, "cores": 4, "threads": 4,
    "bandwidth": 2e10, "pace": 1.0,
    "flops": {"float32": 1e11, "bfloat16": 1e11},
}  # fmt: skip
LAYERS = 6


class Scripted:
    """In the place of `process.Worker`: does what the script says for its machine and start, else waits to be stopped.

    script: {(name, number of the start): (seconds, outcome or None for a sudden end)}.
    """

    script: dict[tuple[str, int], tuple[float, str | None]] = {}
    begun: list[tuple[str, int, tuple[tuple[int, int], ...]]] = []

    def __init__(self, arguments, heard, folder, log=None, environment=None):
        self.heard, self.orders, self.over = heard, queue.Queue(), threading.Event()
        self.alive = True
        threading.Thread(target=self._run, daemon=True).start()

    def tell(self, **values: Any) -> None:
        self.orders.put(values)

    def stop(self, grace: float = 0) -> None:
        self.over.set()

    kill = stop

    def wait(self, seconds: float | None = None) -> int:
        return 0

    def _run(self) -> None:
        order = Order.of(self.orders.get()["order"])
        name = order.names[order.rank]
        Scripted.begun.append((name, order.number, order.split.ranges))
        if order.rank == 0:
            self.heard({"store": 1234})
        seconds, outcome = Scripted.script.get((name, order.number), (60.0, "stopped"))
        if self.over.wait(seconds):
            outcome = "stopped"
        if outcome is not None:
            self.heard({"outcome": outcome, "why": f"{name} says {outcome}", "result": {"text": name, "json": {}}})
        self.alive = False
        self.heard({"ended": 0 if outcome else -9})


class Work:
    """Of six layers and no files. steps: of the last checkpoint, one more with each start."""

    out, resume = Path("runs/x"), "continue with: shoestring finetune --resume runs/x"

    def __init__(self):
        self.steps = 0

    def orders(self, number, present, crew, say):
        self.steps += 1
        split = even_split(LAYERS, len(present))
        names = tuple(one.name for one in present)
        for one in present[1:]:
            one.member.shared = Shared()
            one.member.shared.begin(number)
        return [
            Order(number, "finetune", rank, split, LAYERS, names, None, 10**9, 1.0, "run-1")
            for rank in range(len(present))
        ]

    def step(self):
        return self.steps

    def arguments(self, order):
        return {"out": "runs/x", "here": "127.0.0.1"}


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    Scripted.script, Scripted.begun = {}, []
    monkeypatch.setattr(coordinate, "Worker", Scripted)
    monkeypatch.setattr(joining, "Worker", Scripted)
    monkeypatch.setattr(coordinate, "AFTER_A_LOSS", 0.2)
    monkeypatch.setattr(coordinate, "_LOOK", 0.05)
    monkeypatch.setattr(joining, "AGAIN", 0.2)
    monkeypatch.setattr(link, "_ENOUGH", 0.01)


@pytest.fixture
def run(tmp_path):
    """begin(names, wait) -> coordinator; then join(name) and outcome()."""

    class Run:
        def begin(self, *names: str, wait: str = "30s") -> None:
            machines = [{"name": name} for name in ("desk", *names)]
            config = MachinesConfig.model_validate({"machines": machines, "wait": wait})
            self.lines: list[str] = []
            self.crew = Crew(config, Address("127.0.0.1", 0), TOKEN, MACHINE, self.lines.append)
            self.found: list[Any] = []
            self.work = Work()
            self.coordinator = Coordinator(self.crew, self.work, self.lines.append)
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()
            self.joined: dict[str, threading.Thread] = {}
            self.ended: dict[str, Any] = {}
            self.wires: dict[str, Any] = {}

        def _run(self) -> None:
            try:
                self.found.append(self.coordinator.run())
            except BaseException as error:
                self.found.append(error)
            self.crew.close("it is over")

        def join(self, name: str) -> Joiner:
            place = tmp_path / name
            joiner = Joiner(self.crew.address, TOKEN, name, None, MACHINE, self.lines.append, folder=place)
            made = joiner._joined

            def kept():
                self.wires[name] = made()
                return self.wires[name]

            joiner._joined = kept

            def work() -> None:
                try:
                    self.ended[name] = joiner.run()
                except BaseException as error:
                    self.ended[name] = error

            self.joined[name] = threading.Thread(target=work, daemon=True)
            self.joined[name].start()
            return joiner

        def impatient(self) -> None:
            self.crew.config = self.crew.config.model_copy(update={"wait": 1.0})

        def outcome(self, seconds: float = 20) -> Any:
            self.thread.join(seconds)
            assert not self.thread.is_alive(), self.lines
            return self.found[0]

    made = Run()
    yield made
    made.crew.close("the test is over")


def until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def starts() -> list[tuple[str, int]]:
    return sorted((name, number) for name, number, _ in Scripted.begun)


def test_a_run_comes_to_its_end_and_everyone_is_told(run):
    Scripted.script = {("desk", 1): (0.2, "finished"), ("anna", 1): (0.3, "finished")}
    run.begin("anna")
    run.join("anna")
    result = run.outcome()
    assert result["text"] == "desk" and set(result["peaks"]) == {"desk", "anna"}
    run.joined["anna"].join(5)
    assert run.ended["anna"] == "it is over"
    assert any("does      finetune: layers 3 to 5 of 6, the head" in line for line in run.lines)


def test_a_worker_that_is_killed_is_begun_again_by_all_with_the_same_machines(run):
    Scripted.script = {
        ("anna", 1): (0.2, None), ("desk", 2): (0.2, "finished"), ("anna", 2): (0.2, "finished"),
    }  # fmt: skip
    run.begin("anna")
    run.join("anna")
    assert run.outcome()["text"] == "desk"
    assert starts() == [("anna", 1), ("anna", 2), ("desk", 1), ("desk", 2)]
    assert any("stopped   anna: its worker ended with exit code -9; going on from step" in line for line in run.lines)


def test_a_machine_that_leaves_for_good_is_gone_on_without(run):
    Scripted.script = {("desk", 2): (0.2, "finished"), ("bert", 2): (0.2, "finished")}
    run.begin("anna", "bert")
    joiner = run.join("anna")
    run.join("bert")
    until(lambda: len(Scripted.begun) == 3)
    run.impatient()
    joiner._joined = lambda: (_ for _ in ()).throw(NetworkError("gone for good"))
    run.wires["anna"].close()
    assert run.outcome()["text"] == "desk"
    assert [ranges for name, number, ranges in Scripted.begun if number == 2] == [((0, 3), (3, 6))] * 2
    assert any(line.startswith("without   anna") for line in run.lines)


def test_a_machine_whose_connection_was_cut_comes_back_by_itself(run):
    Scripted.script = {("desk", 2): (0.2, "finished"), ("anna", 2): (0.2, "finished")}
    run.begin("anna")
    run.join("anna")
    until(lambda: len(Scripted.begun) == 2)
    run.wires["anna"].close()
    assert run.outcome()["text"] == "desk"
    assert starts() == [("anna", 1), ("anna", 2), ("desk", 1), ("desk", 2)]


def test_a_machine_that_comes_late_is_taken_in(run):
    Scripted.script = {(name, 2): (0.3, "finished") for name in ("desk", "anna", "bert")}
    run.begin("anna", "bert", wait="2s")
    run.join("anna")
    until(lambda: len(Scripted.begun) == 2, 20)
    run.join("bert")
    assert run.outcome()["text"] == "desk"
    assert [ranges for _, number, ranges in Scripted.begun if number == 2] == [((0, 2), (2, 4), (4, 6))] * 3


def test_a_mistake_of_the_user_ends_the_run_everywhere_with_its_sentence(run):
    Scripted.script = {("anna", 1): (0.2, "failed")}
    run.begin("anna")
    run.join("anna")
    error = run.outcome()
    assert isinstance(error, RunError) and error.message == "anna says failed" and error.where == "anna"
    run.joined["anna"].join(5)
    assert run.ended["anna"] == "it is over"


def test_a_run_that_gets_nowhere_gives_up(run):
    Scripted.script = {("anna", number): (0.05, "crashed") for number in range(1, 9)}
    run.begin("anna")
    run.work.step = lambda: 0
    run.join("anna")
    error = run.outcome()
    assert isinstance(error, RunError) and "3 starts in a row" in error.message and "--resume" in str(error)


def test_a_machine_that_goes_before_the_first_step_again_and_again_is_waited_for(run):
    run.begin("anna")
    run.work.step = lambda: 0
    run.join("anna")
    for times in range(1, 6):
        until(lambda times=times: [name for name, *_ in Scripted.begun].count("anna") == times)
        last = Scripted.begun[-1][1]
        if times == 5:
            Scripted.script = {(name, last + 1): (0.2, "finished") for name in ("desk", "anna")}
        run.wires["anna"].close()
    assert run.outcome()["text"] == "desk"
    assert sum(line.startswith("stopped   anna") for line in run.lines) == 5


def test_ctrl_c_on_the_first_machine_stops_all_after_the_step(run):
    run.begin("anna")
    run.join("anna")
    until(lambda: len(Scripted.begun) == 2)
    run.coordinator.interrupted = True
    assert isinstance(run.outcome(), KeyboardInterrupt)
    run.joined["anna"].join(5)
    assert run.ended["anna"] == "it is over"


def test_ctrl_c_on_a_friends_machine_lets_the_others_go_on(run):
    Scripted.script = {(name, 2): (0.2, "finished") for name in ("desk", "bert")}
    run.begin("anna", "bert")
    joiner = run.join("anna")
    run.join("bert")
    until(lambda: len(Scripted.begun) == 3)
    run.impatient()
    joiner._leave(run.wires["anna"])
    assert run.outcome()["text"] == "desk"
    assert [ranges for _, number, ranges in Scripted.begun if number == 2] == [((0, 3), (3, 6))] * 2
    assert any("stopped   anna: someone stopped it there" in line for line in run.lines)


def test_nobody_comes(run):
    run.begin("anna", wait="1s")
    error = run.outcome()
    assert isinstance(error, NetworkError) and "none of anna came within" in error.message


def test_an_order_says_what_it_is_or_is_refused():
    from shoestring.laptops.wire import LinkError

    order = Order(1, "finetune", 1, even_split(6, 2, 4), 6, ("desk", "anna"), 10**9, 5, 0.5, "run-1", (), (("a", "b"),))
    assert Order.of(order.to_json()) == order
    for wrong in (
        {"verb": "rm"}, {"rank": 2}, {"out": "../x"}, {"layers": 7}, {"split": {"ranges": [[0, 6]], "microbatches": 1}},
        {"names": []}, {"files": [{"path": "/a"}]}, {"digests": 3},
    ):  # fmt: skip
        with pytest.raises(LinkError):
            Order.of({**order.to_json(), **wrong})
    with pytest.raises(LinkError):
        Order.of(None)
