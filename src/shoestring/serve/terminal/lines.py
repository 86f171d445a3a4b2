'''Messages from a keyboard or a pipe: a line each, or several lines.

A \\ at a line's end and """ open more lines. What is pasted arrives at once: where readline knows of pasting
(GNU, from 8.1 on) it is one line with newlines in it that can be edited, elsewhere the lines that wait behind the first
one belong to it.
'''

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

from shoestring.core.errors import DataError
from shoestring.serve.terminal.history import History
from shoestring.serve.terminal.keyboard import Keyboard

QUOTES = '"""'
_PASTED = 0.05  # seconds within which the next line of something pasted comes, and none that is typed
_FIRST, _MORE = "> ", ". "


class Lines:
    """source: text. interactive: a person types. is_command: of a line alone. note: tells a person something."""

    def __init__(
        self,
        source: TextIO,
        keyboard: Keyboard,
        interactive: bool,
        is_command: Callable[[str], bool],
        note: Callable[[str], object],
        history: History | None = None,
    ):
        self._source, self._keyboard, self._interactive = source, keyboard, interactive
        self._is_command, self._note = is_command, note
        self._history = history
        self._readline: Any = None

    def begin(self) -> None:
        """Line editing and what was typed in earlier chats, where the system has them."""
        if not self._typed:
            return
        try:
            import readline
        except ImportError:
            return
        self._readline = readline
        readline.parse_and_bind("set enable-bracketed-paste on")
        if hasattr(readline, "set_auto_history"):
            readline.set_auto_history(False)
        self._history = self._history or History()
        readline.clear_history()
        for text in self._history.read():
            readline.add_history(text)

    @property
    def _typed(self) -> bool:
        return self._interactive and self._source is sys.stdin

    def message(self) -> tuple[str, bool] | None:
        """The next message, and whether it was quoted, so that it is no command; None at the end of the input.

        Raises DataError for what is not UTF-8.
        """
        line = self._line(_FIRST)
        if line is None:
            return None
        quoted = line.lstrip().startswith(QUOTES)
        if quoted:
            text = self._quoted(line.strip().removeprefix(QUOTES))
        else:
            text = self._continued(line)
        self._remember(f"{QUOTES}{text}{QUOTES}" if quoted else text)
        return text, quoted

    def _continued(self, line: str) -> str:
        """With the lines behind those that end in a backslash."""
        lines = [line.rstrip("\r\n")]
        while _goes_on(lines[-1]):
            lines[-1] = lines[-1].rstrip()[:-1]
            more = self._line(_MORE)
            if more is None:
                break
            lines.append(more.rstrip("\r\n"))
        return "\n".join(lines)

    def _quoted(self, line: str) -> str:
        """A message up to the quotes that end it, or the end of the input."""
        lines: list[str] = []
        more: str | None = line
        while more is not None:
            text = more.rstrip()
            if text.endswith(QUOTES):
                lines.append(text.removesuffix(QUOTES))
                break
            lines.append(text)
            more = self._line(_MORE)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        """The next line, with what was pasted behind it; None at the end of the input."""
        try:
            if not self._typed:
                return self._source.readline() or None
            line, lines = self._input(prompt), list[str]()
            while line is not None:
                lines.append(line)
                if self._is_command(lines[0]) or not self._keyboard.waits(_PASTED):
                    break
                line = self._input("")
        except UnicodeDecodeError:
            raise DataError("the text is not UTF-8", "(standard input)") from None
        return "\n".join(lines) if lines else None

    def _input(self, prompt: str) -> str | None:
        if typed := self._keyboard.offer():
            self._note(f"(typed during the answer, and not sent: {typed})")
        try:
            text = input(prompt)
        except EOFError:
            return None
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _remember(self, text: str) -> None:
        text = text.strip()
        if self._readline is not None and self._history is not None and text and self._history.add(text):
            self._readline.add_history(text)


def _goes_on(line: str) -> bool:
    """Whether it ends in a backslash that is not itself the second of two."""
    bare = line.rstrip()
    return (len(bare) - len(bare.rstrip("\\"))) % 2 == 1
