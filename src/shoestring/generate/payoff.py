"""Whether guessing ahead pays: the measured cost of passes over more tokens against the guesses that were right.

A pass over one token of each text costs about what reading the weights costs, and one over several is dearer by as much
as arithmetic costs beside that: little on some machines and with some number formats, all of it on others. So nothing
is assumed. With guesses that are right with probability a each, k of them bring 1 + a + ... + a^k tokens (arXiv
2211.17192, equation 1) for the seconds of a pass over 1 + k; the k with most tokens a second is taken, and it may be 0.
"""

from __future__ import annotations

from collections import deque

_KEPT = 7  # latest passes over so many tokens, of which the median counts
_FADING = 0.95  # what a judged guess counts, for each that was judged after it
_BELIEVED, _OF = 3.0, 5.0  # guesses right, of so many, before any was judged
_MARGIN = 1.03  # what guessing must bring over not guessing: the figures are noisy
_FIRST_WAIT, _LONGEST_WAIT = 16, 128  # passes without guesses before it is tried again
_CONTROL = 48  # passes with guesses before one is made without, as texts grow and passes become dearer
_TRIED = 3  # tokens guessed of a text where guessing is tried again


class Payoff:
    """most: tokens guessed of a text for one pass."""

    def __init__(self, most: int):
        self.most = most
        self._passes: dict[int, deque[float]] = {}  # tokens -> seconds of the latest passes over so many
        self._right, self._judged = _BELIEVED, _OF
        self._guess_seconds = 0.0  # that one more guessed token of all texts takes
        self._wait = _FIRST_WAIT
        self._without = self._with = 0  # passes since the latest with guesses, and without

    @property
    def share(self) -> float:
        """How likely a guess is right, where those before it were."""
        return self._right / self._judged

    def best(self, texts: int, guessing: int) -> int:
        """How many tokens to guess where `texts` run, of which `guessing` have guesses; 0: none.

        Each call is for one pass, and the answer is taken.
        """
        count = self._worth(texts, guessing) if self._known(texts) else 0
        if count and self._with >= _CONTROL:
            count = 0
        elif count:
            self._wait = _FIRST_WAIT
        elif self._known(texts) and self._without >= self._wait:
            count, self._wait = min(_TRIED, self.most), min(2 * self._wait, _LONGEST_WAIT)
        self._with, self._without = (self._with + 1, 0) if count else (0, self._without + 1)
        return count

    def passed(self, tokens: int, seconds: float) -> None:
        """A pass over so many tokens, none of them of a prompt, took so long."""
        self._passes.setdefault(tokens, deque(maxlen=_KEPT)).append(seconds)

    def judged(self, right: int, wrong: int) -> None:
        """Of one text's guesses, so many were right before one was wrong (1), or none was (0)."""
        fading = _FADING ** (right + wrong)
        self._right = fading * self._right + right
        self._judged = fading * self._judged + right + wrong

    def guessing(self, seconds: float) -> None:
        """One more guessed token of all texts took so long."""
        self._guess_seconds = seconds if not self._guess_seconds else 0.8 * self._guess_seconds + 0.2 * seconds

    def _known(self, tokens: int) -> bool:
        """Whether passes over so many were measured: not by one alone, which may be the first to touch memory."""
        return len(self._passes.get(tokens, ())) > 1

    def _worth(self, texts: int, guessing: int) -> int:
        """The number of guesses with most tokens a second."""
        best, rate = 0, _MARGIN * texts / self._seconds(texts)
        brought = float(texts)
        for count in range(1, self.most + 1):
            brought += guessing * self.share**count
            seconds = self._seconds(texts + guessing * count) + self._guess_seconds * count
            if brought / seconds > rate:
                best, rate = count, brought / seconds
        return best

    def _seconds(self, tokens: int) -> float:
        """What a pass over so many tokens takes: as measured, or on the line between those measured beside it.

        Beyond the largest one measured it is taken to cost no more, so that it is tried.
        """
        below = max((known for known in self._passes if known <= tokens and self._known(known)), default=None)
        above = min((known for known in self._passes if known >= tokens and self._known(known)), default=None)
        if below is None or above is None:
            return self._median(above if below is None else below)
        low, high = self._median(below), self._median(above)
        return low if above == below else low + (high - low) * (tokens - below) / (above - below)

    def _median(self, tokens: int | None) -> float:
        assert tokens is not None, "nothing was measured"
        passes = sorted(self._passes[tokens])
        return passes[(len(passes) - 1) // 2]
