"""Guessing ahead: several tokens of a text are guessed at little cost, and one pass over the model judges all of them.

Speculative decoding (arXiv 2211.17192, 2302.01318), in a form that is exact for each text and not only in distribution:
a token is chosen as it always is, from the model's own logits by the random number of its place, and a guess stands
where it is what was chosen. So penalties, constraints and seeds hold as they do without guesses, and the text is the
same, but for the last bits in which a pass over several tokens computes otherwise.

Guesses are what followed the last time that the text read like this (`lookup`, as in arXiv 2304.04487), or what a
smaller model chooses by the same random numbers (`draft`). Whether they pay is measured (`payoff`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoestring.generate.draft import Draft
from shoestring.generate.lookup import Lookup
from shoestring.generate.payoff import Payoff
from shoestring.generate.sampling import Draw
from shoestring.models.decoder import Decoder

MOST = 8  # tokens guessed of a text for one pass


@dataclass(frozen=True)
class Wanted:
    """A running text whose next tokens are to be guessed. slot: of the scheduler. draw: for the next token."""

    id: int
    slot: int
    draw: Draw


class Guesser(Protocol):
    """What guesses for one scheduler. seconds: that one guessed token took for all texts, where that was measured."""

    seconds: float | None

    def guess(self, texts: Sequence[Wanted], most: int) -> list[list[int]]:
        """The next tokens of each text, `most` or fewer."""
        ...


class Speculation:
    """How a model's texts are guessed, and what was learned of whether it pays: one for all its schedulers.

    draft: the decoder that guesses; None: the text itself. most: tokens guessed of a text for one pass.
    """

    def __init__(self, draft: Decoder | None = None, most: int = MOST):
        self.draft = draft
        self.most = most
        self.payoff = Payoff(most)
        self.clock: Callable[[], float] = time.perf_counter

    def guesser(self, slots: int, vocabulary: int | None) -> Guesser:
        """For a scheduler of so many slots."""
        if self.draft is None:
            return Lookup()
        return Draft(self.draft, slots, vocabulary, self.clock)

    def guess(self, guesser: Guesser, texts: Sequence[Wanted], rooms: Sequence[int]) -> list[list[int]]:
        """Guesses for each text, at most rooms[i] of them; none at all where it does not pay."""
        most = min(self.most, max(rooms))
        if most < 1:
            return [[] for _ in texts]
        if self.draft is not None:
            most = min(most, self.payoff.best(len(texts), len(texts)))
            if most < 1:
                return [[] for _ in texts]
        found = guesser.guess(texts, most)
        if guesser.seconds is not None:
            self.payoff.guessing(guesser.seconds)
        found = [guess[:room] for guess, room in zip(found, rooms, strict=True)]
        if self.draft is None and (guessing := sum(map(bool, found))):
            most = self.payoff.best(len(texts), guessing)
            found = [guess[:most] for guess in found]
        return [_usable(text.draw, guess) for text, guess in zip(texts, found, strict=True)]

    def passed(self, tokens: int, started: float) -> None:
        """A pass over so many tokens, none of them of a prompt, began then and has ended."""
        self.payoff.passed(tokens, self.clock() - started)

    def judged(self, right: int, wrong: int) -> None:
        """Of one text's guess, up to the first wrong token."""
        self.payoff.judged(right, wrong)


def _usable(draw: Draw, guess: list[int]) -> list[int]:
    """A guess up to where the text would end: which token ends it needs no guess behind it."""
    for count, token in enumerate(guess):
        if token in draw.ends:
            return guess[:count]
        if draw.guide is not None:
            before = [*draw.new, *guess[:count]]
            if not draw.guide.allowed(before, draw.ends, token + 1)[token]:
                return guess[:count]
            if draw.guide.reason([*before, token], draw.ends) is not None:
                return guess[:count]
    return guess
