"""Ctrl-C is heard at any moment of a command, and ends it.

Python makes KeyboardInterrupt of the signal between two bytecodes of the main thread. That comes late where a library
computes for minutes, and not at all where it is raised in what the interpreter calls by itself and whose exceptions it
drops, such as the callbacks that end every import. So a Ctrl-C during an import ends the process right there, and a
thread hears each one as well: what nobody has answered a while later ends the process too, as does a second one.
Whoever takes the signal over meanwhile (`train.interrupt`) is left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

EXIT_CODE = 130  # 128 + SIGINT, what shells expect of an interrupted command
PATIENCE = 3.0  # seconds in which things may be tidied up
_NUDGE = 0.05  # seconds
_IMPORTING = "<frozen importlib._bootstrap>"
_RESTORE: list[Callable[[], None]] = []
_SHOW_CURSOR = b"\x1b[?25h"  # which a progress line hides


class _Asked:
    """open: Ctrl-C was pressed, and nobody has answered yet. at: when Python last came to it."""

    open = False
    at = -1e9


@contextlib.contextmanager
def listening(to_the_end: bool = False) -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, which somebody must have `answered` within PATIENCE.

    to_the_end: of the process; what is left of it then ends at once. In other threads than the main one, and where
    Ctrl-C is ignored, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    answered()
    heard, told = os.pipe()
    if os.name == "posix":
        os.set_blocking(told, False)
    signal.signal(signal.SIGINT, _raise)
    woken = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=[heard], name="ctrl-c", daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if to_the_end else before)
        signal.set_wakeup_fd(woken)
        os.close(told)  # which ends the thread


def answered() -> None:
    """Whoever catches KeyboardInterrupt says so: the command goes on, or ends in its own time."""
    _Asked.open = False


@contextlib.contextmanager
def restoring(restore: Callable[[], None]) -> Iterator[None]:
    """What must be put back at the end of the block, or when the process is left from inside it."""
    _RESTORE.append(restore)
    try:
        yield
    finally:
        _RESTORE.remove(restore)
        restore()


def leave() -> NoReturn:
    """End the process now, whatever it is doing."""
    end_process("interrupted", EXIT_CODE)


def end_process(said: str, code: int) -> NoReturn:
    """Now, from any thread. said: on stderr, where it is something."""
    for restore in _RESTORE:
        with contextlib.suppress(Exception):
            restore()
    with contextlib.suppress(OSError):  # nobody may be there to read it
        os.write(2, (_SHOW_CURSOR + b"\n") * os.isatty(2) + (f"{said}\n".encode() if said else b""))
    os._exit(code)


def _raise(number: int, frame: FrameType | None) -> None:
    if _Asked.open or _importing(frame):
        leave()
    _Asked.open, _Asked.at = True, time.monotonic()
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _listen(heard: int) -> None:
    while number := os.read(heard, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _raise:
            for seconds, then in ((_NUDGE, _nudge), (PATIENCE, _insist)):
                timer = threading.Timer(seconds, then, [time.monotonic()])
                timer.daemon = True
                timer.start()
    os.close(heard)


def _nudge(since: float) -> None:
    """Readline's wait for a key is not woken by a signal that came just before it: any later one does that."""
    if os.name == "posix":
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGWINCH)


def _insist(since: float) -> None:
    """Unless Python has come to what was heard at that time, and somebody has answered."""
    listens = signal.getsignal(signal.SIGINT) is _raise
    if listens and (_Asked.open or _Asked.at < since - 1):
        leave()
