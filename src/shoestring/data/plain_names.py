"""Names of special tokens in what people write: in a conversation they stay text, so that no message can close it.

The template's own names become tokens, those in a message do not. A message's are found by a mark behind their first
character, which a second rendering carries through the template; the same mark keeps the tokenizer from seeing the
name, and its tokens are then taken out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shoestring.core.errors import TokenizerError
from shoestring.data.tokenizer import Tokenizer

MARK = "\ufdd2"  # a noncharacter, which no text should contain
_KEYS = ("role", "type")  # of messages and schemas: templates compare them


class PlainNames:
    """The names of one tokenizer's special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special}
        escaped = [re.escape(name) for name in sorted(names, key=len, reverse=True) if len(name) > 1]
        self._tokenizer = tokenizer
        self._begin = re.compile(f"(?=({'|'.join(escaped)}))") if escaped else None

    def find(self, text: str) -> list[int]:
        """The indices at which a name begins."""
        return [] if self._begin is None else [found.start() for found in self._begin.finditer(text)]

    def rendered(self, render: Callable[[Any, Any], str], messages: Any, tools: Any) -> tuple[str, list[int]]:
        """A rendered conversation, and where in it the names begin that its messages or tools hold.

        Raises TokenizerError where the template writes something else once they are marked.
        """
        text = render(messages, tools)
        if not (self._holds(messages) or self._holds(tools)):
            return text, []
        marked = render(self._marked(messages), self._marked(tools))
        if MARK in text or marked.replace(MARK, "") != text:
            raise TokenizerError(
                "a message holds the name of a special token, which the chat template does not leave as it is",
                hint="take the token's name out of the text",
            )
        return text, [at - number - 1 for number, at in enumerate(_places(marked))]

    def encode_chat(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None = None) -> list[int]:
        """Ids of a conversation up to where the model is to answer. Raises TokenizerError."""
        text, begins = self.rendered(self._tokenizer.render_chat, list(messages), tools)
        return self.encode([(text, begins)])[0][0].tolist()

    def encode(self, pieces: Sequence[tuple[str, list[int]]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `Tokenizer.encode_with_starts` with special tokens, but for the names that begin where it is said."""
        encoded = self._tokenizer.encode_with_starts([_insert(*piece) for piece in pieces], specials=True)
        for number, (_, begins) in enumerate(pieces):
            if begins:
                ids, starts = encoded[number]
                marks = np.array(begins) + np.arange(len(begins)) + 1
                kept = ~np.isin(starts, marks)
                encoded[number] = ids[kept], starts[kept] - np.searchsorted(marks, starts[kept])
        return encoded

    def _holds(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._begin is not None and self._begin.search(value) is not None
        if isinstance(value, dict):
            return any(self._holds(part) for key, part in value.items() if key not in _KEYS)
        return isinstance(value, (list, tuple)) and any(map(self._holds, value))

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            return _insert(value, self.find(value))
        if isinstance(value, dict):
            return {key: part if key in _KEYS else self._marked(part) for key, part in value.items()}
        return [self._marked(part) for part in value] if isinstance(value, (list, tuple)) else value


def _insert(text: str, begins: list[int]) -> str:
    """The text with a mark behind the character at each of these indices."""
    borders = [0, *(begin + 1 for begin in begins), len(text)]
    return MARK.join(text[a:b] for a, b in zip(borders, borders[1:], strict=False))


def _places(text: str) -> list[int]:
    return [at for at, character in enumerate(text) if character == MARK]
