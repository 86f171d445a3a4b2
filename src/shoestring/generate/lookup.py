"""What followed the last time that a text read like this: guesses of its next tokens that cost nothing.

Copied from the prompt or from what was written: names, code that is changed, lists, an answer that quotes its question.
The latest earlier place of the text's last three tokens counts, or of its last two; where the copy runs into the text's
end it goes round, so that "a b a b" goes on with "a b".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoestring.generate.speculation import Wanted

_LENGTHS = (3, 2)  # of what must be alike, the longest first


class Lookup:
    """A `Guesser` from the texts themselves."""

    seconds: float | None = None

    def __init__(self) -> None:
        self._places: dict[int, Places] = {}

    def guess(self, texts: Sequence[Wanted], most: int) -> list[list[int]]:
        """Tokens that may come next in each text, none where nothing alike was there before."""
        self._places = {text.id: self._places.get(text.id) or Places() for text in texts}
        return [self._places[text.id].follow(text.draw.tokens, most) for text in texts]


class Places:
    """Where each short run of tokens of one growing text was last."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}  # a run of tokens -> the place behind it
        self._count = 0  # tokens whose runs are known: those that end before this place

    def follow(self, tokens: Sequence[int], most: int) -> list[int]:
        """`most` tokens that may come next, or none. tokens: those of before, and perhaps more."""
        size = len(tokens)
        if size < self._count:  # a step was interrupted, and its tokens were taken back
            self._next, self._count = {}, 0
        for place in range(self._count, size):  # the run that ends the text is looked for, and not yet known itself
            for length in _LENGTHS:
                if place >= length:
                    self._next[tuple(tokens[place - length : place])] = place
        self._count = size
        for length in _LENGTHS:
            start = self._next.get(tuple(tokens[size - length :])) if size > length else None
            if start is not None:
                return [tokens[start + i % (size - start)] for i in range(most)]
        return []


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning on."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # they are alike up to low, and not up to high
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
