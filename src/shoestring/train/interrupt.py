"""Ctrl-C and SIGTERM: finish the step, save, leave. A second Ctrl-C leaves at once.

A signal handler may run between any two bytecodes, so it only sets a flag; the loop looks at it after each
step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from shoestring.core.errors import RunError
from shoestring.core.interrupt import EXIT_CODE, leave


class Interrupted(RunError):
    """The user asked the run to stop; its state is saved."""

    exit_code = EXIT_CODE


class StopRequest:
    """`with StopRequest() as stop:` … `if stop.requested:`.

    In other threads than the main one nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            leave()
        self.requested = True
        # os.write, because the console may be in the middle of a line and holds a lock.
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"\nstopping after this step; again to stop at once without saving\n")
