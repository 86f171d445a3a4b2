"""Every process of a run over two machines, killed again and again at random instants, its losses as if nothing was."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.laptops.test_laptop_runs import SETTINGS, alone, begin, losses, machines  # noqa: F401

KILLS = 10
HANG = 60.0  # seconds in which a run that has lost a process must be under way again, or have ended
STEPS, EVERY = 3000, 20


@pytest.mark.long
@pytest.mark.parametrize("who", ["desk's worker", "anna's worker", "desk", "anna"])
def test_a_process_that_is_killed_at_random_instants_changes_no_loss(machines, base, examples, tmp_path, who):  # noqa: F811
    two, draw = machines(wait="300s"), random.Random(who)
    settings = {**SETTINGS, "train.steps": STEPS, "train.checkpoint_every": EVERY, "train.evaluate_every": 500}
    settings["optimizer.learning_rate"] = 1e-4  # at 1e-2 a difference of rounding is one of 0.3 after 1,500 steps
    begin(two, base, examples, settings)
    out = tmp_path / "desk" / "out"
    until(two, lambda: bool(list(out.glob("step-*"))), 300)
    for number in range(KILLS):
        starts = two.log("desk").count("plan      ")
        time.sleep(draw.uniform(0, 4))
        assert two.running["desk"].poll() is None, f"it was over before {number + 1} kills"
        kill(two, who)
        under_way(two, who, starts)
        time.sleep(draw.uniform(0, 8))  # while it opens the model, or trains again
    assert two.result("desk", 900)["steps"] == STEPS
    assert two.running["anna"].wait(HANG) == 0, two.log("anna")
    expected = alone(base, examples, tmp_path / "alone", settings)
    assert losses(out) == pytest.approx(expected, abs=1e-4)


def kill(two, who: str) -> None:
    """And do what a person would then."""
    name = who.removesuffix("'s worker")
    if who != name:
        until(two, lambda: bool(two.workers(name)), HANG)
        for worker in two.workers(name):
            os.kill(worker, signal.SIGKILL)
        return
    workers = two.workers(name)
    two.running[name].kill()
    two.running[name].wait()
    until(two, lambda: not any(alive(worker) for worker in workers), HANG)  # whoever began them is gone
    if name == "anna":
        two.join("anna")
    else:
        two.start("desk", "finetune", "--resume", "out", "--over", str(two.folder / "machines.yaml"), "--json")


def under_way(two, who: str, starts: int) -> None:
    """Until the run has begun again. One whose worker was killed three times before a step gives up, and is resumed by
    hand; one whose machines are killed never does."""
    deadline = time.monotonic() + HANG
    while two.log("desk").count("plan      ") <= starts:
        if two.running["desk"].poll() is not None:
            gave_up = "3 starts in a row came to no new step" in two.log("desk")
            assert gave_up and who.endswith("worker"), two.log("desk")
            print(f"gave up, and is resumed: {who}, behind {starts} starts")
            until(two, lambda: two.running["anna"].poll() is not None, HANG)
            listened = two.log("desk").count("listening")
            two.start("desk", "finetune", "--resume", "out", "--over", str(two.folder / "machines.yaml"), "--json")
            two.until("desk", "listening", HANG, listened + 1)
            two.join("anna")
            deadline = time.monotonic() + HANG
        assert time.monotonic() < deadline, f"{two.log('desk')}\n---\n{two.log('anna')}"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def until(two, condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{two.log('desk')}\n---\n{two.log('anna')}"
        time.sleep(0.05)
