"""Work that takes long has a line, and work that does not has none."""

import io
import time

import pytest
from rich.console import Console

from shoestring.core import console, waiting


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(waiting, "FIRST", 0.05)
    monkeypatch.setattr(waiting, "AGAIN", 0.05)

    def on(**how):
        stream = io.StringIO()
        monkeypatch.setitem(console._consoles, "err", Console(file=stream, width=60, **how))
        return stream

    return on


def test_where_there_is_no_terminal_a_line_comes_after_a_while_and_again(shown):
    stream = shown()
    with waiting.waiting("before    measuring", 128) as told:
        told.advance(12)
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 1 and lines[0].startswith("before    measuring: 12 of 128, 0.")
    time.sleep(0.1)
    assert stream.getvalue().splitlines() == lines, "and none after the work"


def test_the_time_left_is_that_of_the_others_at_the_rate_so_far(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    told = waiting.Waiting("asking", 100)
    told.found(40)
    clock[0] += 10
    assert told.line() == "asking: 40 of 100, 0:10"
    told.advance(20)
    assert told.line() == "asking: 60 of 100, 0:10, 0:20 left"
    told.advance(40)
    assert told.line() == "asking: 100 of 100, 0:10"


def test_quick_work_is_not_told(shown):
    stream = shown()
    with waiting.waiting("loading"):
        pass
    time.sleep(0.1)
    assert stream.getvalue() == ""


def test_a_terminal_shows_it_and_forgets_it(shown):
    stream = shown(force_terminal=True)
    with waiting.waiting("answers   3 questions"):
        time.sleep(0.05)
    assert "answers   3 questions: 0." in stream.getvalue() and stream.getvalue().endswith("\x1b[2K")


def test_what_goes_wrong_goes_through(shown):
    stream = shown()
    with pytest.raises(ZeroDivisionError), waiting.waiting("loading"):
        time.sleep(0.1)
        _ = 1 / 0
    assert stream.getvalue().startswith("loading: ")


def test_other_processes_are_silent(shown, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    stream = shown()
    with waiting.waiting("loading"):
        time.sleep(0.1)
    assert stream.getvalue() == ""
