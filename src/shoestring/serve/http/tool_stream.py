"""From the text of an answer with calls, piece by piece, to what OpenAI's deltas carry: words, calls, their arguments.

The text obeys `tool_grammar`, so a call is exactly what its form says, unless the text was cut in it. Words that may
still turn out to begin a call are held back.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from shoestring.serve.http.tool_form import ToolForm

Delta = dict[str, Any]


class ToolStream:
    """One choice's text in, deltas out. must: whether the text begins with a call. calls: how many have begun."""

    def __init__(self, form: ToolForm, names: Sequence[str], must: bool):
        self.calls = 0
        self._begins = {form.begin(name): name for name in names}
        self._trigger, self._behind = form.trigger, form.behind
        self._held = ""  # not yet understood
        self._state = self._call if must else self._words
        self._depth, self._quoted, self._escaped = 0, False, False
        self._deltas: list[Delta] = []

    def add(self, text: str) -> list[Delta]:
        """What is certain now."""
        self._held += text
        while self._state():
            pass
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> list[Delta]:
        """What was held back, when the text has come to its end: words, unless they are half of a call that was cut."""
        rest, self._held = self._held, ""
        if self._state != self._words:
            return []
        self._say(rest)
        deltas, self._deltas = self._deltas, []
        return deltas

    # Each takes from what is held; -> whether the next state may go on at once.

    def _words(self) -> bool:
        at = self._held.find(self._trigger)
        if at >= 0:
            self._say(self._held[:at].rstrip())
            self._held, self._state = self._held[at:], self._call
            return True
        # White space before a call belongs to the call.
        sure = len(self._held) - _overlap(self._held, self._trigger)
        sure = len(self._held[:sure].rstrip())
        self._say(self._held[:sure])
        self._held = self._held[sure:]
        return False

    def _say(self, words: str) -> None:
        if words and not (self.calls and not words.strip()):
            self._deltas.append({"content": words})

    def _call(self) -> bool:
        for begin, name in self._begins.items():
            if self._held.startswith(begin):
                function = {"name": name, "arguments": ""}
                call = {"index": self.calls, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
                self._deltas.append({"tool_calls": [{**call, "function": function}]})
                self.calls += 1
                self._held, self._state = self._held[len(begin) :], self._arguments
                return True
        return False

    def _arguments(self) -> bool:
        for at, character in enumerate(self._held):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted = True
            else:
                self._depth += (character in "{[") - (character in "}]")
            if self._depth == 0 and not self._quoted:
                self._argue(self._held[: at + 1])
                self._held, self._state = self._held[at + 1 :], self._end
                return True
        self._argue(self._held)
        self._held = ""
        return False

    def _argue(self, text: str) -> None:
        if text:
            self._deltas.append({"tool_calls": [{"index": self.calls - 1, "function": {"arguments": text}}]})

    def _end(self) -> bool:
        if len(self._held) < len(self._behind):
            return False
        self._held = self._held[len(self._behind) :]
        self._state = self._words
        return True


def _overlap(text: str, begin: str) -> int:
    """The longest proper start of `begin` that `text` ends with."""
    for length in range(min(len(begin) - 1, len(text)), 0, -1):
        if text.endswith(begin[:length]):
            return length
    return 0
