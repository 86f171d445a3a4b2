"""From token ids to text that can be shown: whole characters, ended by stop strings wherever token borders
fall.

Text that may still turn out to begin a stop string is held back. Which text comes out depends on the
characters alone: the stop string that is complete first wins, so the same text cut into other tokens ends at
the same place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import TextIO

from shoestring.core.word_wrap import WordWrap
from shoestring.data.tokenizer import Tokenizer

# Control characters of a model's text could steer the user's terminal; newline and tab are kept.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class StopStrings:
    """Cuts a stream of text at the first stop string."""

    def __init__(self, stops: Iterable[str]):
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """What is certain to be shown; sets `stopped`, after which nothing more comes."""
        if self.stopped:
            return ""
        if not self.stops:
            return text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and turned out not to be a stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The longest proper start of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TextStream:
    """One row's tokens in, its text out."""

    def __init__(self, tokenizer: Tokenizer, stops: Iterable[str] = ()):
        self._characters = tokenizer.stream()
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def add(self, token: int) -> str:
        return self._stops.add(self._characters.add(token))

    def finish(self) -> str:
        """The rest, when no stop string ended the text; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._stops.add(self._characters.finish())
        return text + self._stops.finish()


def without_controls(text: str) -> str:
    """Text that is safe to write to a terminal."""
    return text.translate(_CONTROLS)


class TextOutput:
    """A model's text as it comes: exactly to a file or a pipe; at a terminal without control characters, its lines
    broken between words."""

    def __init__(self, output: TextIO):
        self._output = output
        width = shutil.get_terminal_size().columns
        self._wrap = WordWrap(output.write, width) if output.isatty() else None

    def add(self, piece: str) -> None:
        if self._wrap is None:
            self._output.write(piece)
        else:
            self._wrap.width = shutil.get_terminal_size().columns  # it may have been resized
            self._wrap.add(without_controls(piece))
        self._output.flush()

    def end(self) -> None:
        """Behind the last piece: what was held back, and a newline."""
        if self._wrap is not None:
            self._wrap.end()
        self._output.write("\n")
        self._output.flush()
