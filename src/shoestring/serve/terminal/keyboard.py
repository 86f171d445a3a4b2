"""The keyboard while a model answers: what is typed then is not shown in the answer, and not sent as the next question.

It waits, to be edited, at the next prompt. POSIX terminals; elsewhere nothing is done.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TextIO

from shoestring.core import interrupt

_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?")  # what arrows and function keys send


class Keyboard:
    """source: where a person types. typed: what came during an answer, one line."""

    def __init__(self, source: TextIO):
        self._source = source
        self.typed = ""

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """No echo and no lines while this lasts; Ctrl-C works."""
        try:
            import termios
        except ImportError:  # not Unix
            yield
            return
        try:
            terminal = self._source.fileno()
            before = termios.tcgetattr(terminal)
        except (OSError, ValueError, termios.error):  # no terminal
            yield
            return
        during = termios.tcgetattr(terminal)
        during[3] &= ~(termios.ECHO | termios.ICANON)
        with interrupt.restoring(lambda: termios.tcsetattr(terminal, termios.TCSANOW, before)):
            termios.tcsetattr(terminal, termios.TCSANOW, during)
            try:
                yield
            finally:
                self.typed = _waiting(terminal)

    def waits(self, seconds: float) -> bool:
        """Whether something to read is there, or comes within this time."""
        try:
            import select

            return bool(select.select([self._source], [], [], seconds)[0])
        except (OSError, ValueError):  # no file, or Windows, where only sockets can be asked
            return False

    def offer(self) -> str:
        """Put what was typed into the next line that `input` reads; -> what was typed where readline cannot."""
        typed, self.typed = self.typed, ""
        try:
            import readline

            readline.set_startup_hook((lambda: readline.insert_text(typed)) if typed else None)
        except (ImportError, AttributeError):
            return typed
        return ""


def _waiting(terminal: int) -> str:
    """What was typed and not read, printable letters only, as one line; an erased letter is erased."""
    import select

    raw = b""
    while select.select([terminal], [], [], 0)[0]:
        more = os.read(terminal, 4096)
        if not more:
            break
        raw += more
    text = ""
    for letter in _SEQUENCE.sub("", raw.decode("utf-8", "ignore")):
        if letter in "\x7f\b":
            text = text[:-1]
        else:
            text += letter if letter.isprintable() else " "
    return " ".join(text.split())
