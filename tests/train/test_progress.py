"""The line on the way: what a person needs first, within its line whatever a terminal echoes into it."""

import io
import re
import types

import pytest
import torch
from rich.console import Console

from shoestring.core import console
from shoestring.train import interrupt, progress
from shoestring.train.loop import StepEvent
from shoestring.train.progress import ProgressLine
from shoestring.train.state import HeldOut, TrainerState

FULL = "step 210/610  1:19 left  loss 3.21  held-out 2.31 bits/byte  41k tok/s  "


def event(step=210, last=False, stopping=""):
    state = TrainerState(step=step, total_steps=610, held_out=HeldOut(200, 1.6, 2.312, 10, 40, 1))
    pace = types.SimpleNamespace(seconds_left=lambda state: 79.0)
    loss = types.SimpleNamespace(mean=3.214)
    return StepEvent(state, loss, 1e-3, None, 0.2, 8200, last, stopping, pace)


def line(held_out="bits/byte"):
    return ProgressLine(1e6, 1e11, torch.device("cpu"), held_out)


@pytest.fixture
def terminal(monkeypatch):
    """What is drawn on a terminal of this many columns."""
    monkeypatch.setattr(progress, "_DRAWN_EVERY", 0.0)

    def of(columns):
        drawn = io.StringIO()
        shown = Console(file=drawn, force_terminal=True, width=columns, height=24)
        monkeypatch.setitem(console._consoles, "err", shown)
        return drawn

    return of


def plain(text):
    """Without colours; what moves the cursor is a return."""
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "\r", re.sub(r"\x1b\[[\d;]*m", "", text))


def test_elsewhere_the_line_says_everything(monkeypatch):
    monkeypatch.setitem(console._consoles, "err", Console(file=io.StringIO(), width=60, soft_wrap=True))
    whole = line()
    whole.after_step(event())
    assert console.err.file.getvalue().startswith(FULL) and console.err.file.getvalue().endswith("of matrix peak\n")
    assert re.fullmatch(re.escape(FULL) + r"[\d.]+ [MG]B  41% of matrix peak", whole.line(event()))
    assert "left" not in whole.line(event(last=True)) and "held-out 1.600  " in line("loss").line(event())


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (60, "step 210/610  1:19 left  loss 3.21  held-out 2.31"),
        (80, FULL.strip()),
        (200, FULL),
        (30, "step 210/610  1:19 left"),
    ],
)
def test_on_a_terminal_what_does_not_fit_goes_from_the_end_and_an_echo_has_room(terminal, columns, expected):
    drawn = terminal(columns)
    whole = line()
    for step in (208, 209, 210):
        whole.after_step(event(step, last=False, stopping="interrupted" if step == 210 else ""))
    whole.close()
    frames = [frame.rstrip() for frame in re.split(r"[\r\n]+", plain(drawn.getvalue())) if frame.strip()]
    assert frames[-1].startswith(expected) and (columns > 80 or frames[-1] == expected)
    assert max(map(len, frames)) <= columns - 4  # a ^C behind it, and another one
    assert drawn.getvalue().count("\n") == 1 and sum("step 210" in frame for frame in frames) <= 2
    assert ("━" in frames[-1]) is (columns == 200)


def test_one_thing_is_not_things():
    told = [{"event": "planned", "step": 0, "steps": steps} for steps in (1, 1200)]
    assert [progress._tell(values, event()) for values in told] == [
        "time      fits 1 step of 8,200 tokens",
        "time      fits 1,200 steps of 8,200 tokens",
    ]


@pytest.mark.parametrize(("tty", "start"), [(True, b"\r\x1b[2K"), (False, b"\n")])
def test_what_ctrl_c_says_takes_the_place_of_the_line_so_that_none_is_left_behind(monkeypatch, tty, start):
    written = []
    monkeypatch.setattr(interrupt.os, "isatty", lambda descriptor: tty)
    monkeypatch.setattr(interrupt.os, "write", lambda descriptor, text: written.append(text))
    interrupt.StopRequest()._handle(2, None)
    assert written == [start + b"stopping after this step; again to stop at once without saving\n"]


def test_a_plan_that_moves_is_told_once_at_the_end_and_only_when_it_moved_far():
    assert progress._tell({"event": "shortened", "step": 3, "from": 40, "to": 38}, event()) is None
    assert progress._tell_change(TrainerState(step=31, total_steps=31, planned_steps=40)) is None
    told = progress._tell_change(TrainerState(step=30, total_steps=30, planned_steps=40))
    assert told == "time      30 steps, not the 40 that fitted at first: later steps were slower"
    assert progress._tell_change(TrainerState(step=30)) is None


def test_a_sample_of_the_held_out_text_is_named():
    shown = event()
    shown.state.held_out.sample = True
    line = progress.ProgressLine(1.0, 1.0, torch.device("cpu")).line(shown)
    assert "held-out sample 2.31 bits/byte" in line
