"""Which candidate is tried next, and which of those that were tried is taken: pure functions of what was measured.

Quality is what is left of the model's own, on text that nothing was calibrated with: perplexity before by perplexity
after, e^(loss before − loss after). With the suite it is the smaller of that and the share of right answers after by
that before: a model is as good as the worse of the two says. Figures above 1, by chance, count as they are.

    target   the best of those that are small enough
    keep     the smallest of those that are good enough

Within a family fewer bytes are taken to lose more. So under a target only the largest that is small enough of each
family is tried; to keep a quality a family is gone down until it has lost too much, and nothing is tried that is not
smaller than the smallest that is good enough. Pruning, with its training, is dear: under a target it is tried only
where all else loses more than a twentieth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoestring.compression.compress.candidates import PRUNED, Candidate

AS_GOOD = 0.999  # quality that nothing dearer could make noticeably better
WELL = 0.95  # quality that pruning is not tried to better


@dataclass(frozen=True)
class Figures:
    """Of the model as it is, or of a candidate. loss: nats per token of held-out text. suite: share of right answers.
    failed: why it could not be made; then the other figures mean nothing. decoding: as `report.Decoding`."""

    bytes: int
    loss: float = math.nan
    bits_per_byte: float | None = None
    suite: float | None = None
    seconds: float = 0.0
    decoding: dict[str, Any] | None = None
    failed: str | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class Goal:
    """limit: bytes at most, or share: of the quality at least. before: the model as it is."""

    before: Figures
    limit: int | None
    share: float | None

    def quality(self, found: Figures) -> float:
        """0 for what could not be made, or whose loss is no number."""
        if found.failed is not None or not math.isfinite(found.loss):
            return 0.0
        kept = math.exp(min(self.before.loss - found.loss, 700.0))
        if self.before.suite and found.suite is not None:
            kept = min(kept, found.suite / self.before.suite)
        return kept

    def met(self, found: Figures) -> bool:
        if found.failed is not None or not math.isfinite(found.loss):
            return False
        if self.limit is not None:
            return found.bytes <= self.limit
        assert self.share is not None
        return self.quality(found) >= self.share and found.bytes < self.before.bytes


def best(found: Mapping[str, Figures], goal: Goal) -> str | None:
    """The key of what is taken now; None where nothing meets the goal. Of equals the first that was tried."""
    keys = [key for key, figures in found.items() if goal.met(figures)]
    if goal.limit is not None:
        return max(keys, key=lambda key: goal.quality(found[key]), default=None)
    return min(keys, key=lambda key: (found[key].bytes, -goal.quality(found[key])), default=None)


def why_not(
    candidate: Candidate, family: Sequence[Candidate], found: Mapping[str, Figures], goal: Goal
) -> str | None:
    """Why a candidate need not be tried, as things stand; None where it should be."""
    tried = [(other, found[other.key]) for other in family if other.key in found]
    chosen = best(found, goal)
    if goal.limit is not None:
        if candidate.bytes > goal.limit:
            return "larger than the target"
        for other, figures in tried:
            if goal.met(figures) and other.bytes >= candidate.bytes:
                return f"finer was small enough: {other.name}"
        if chosen is not None and goal.quality(found[chosen]) >= AS_GOOD:
            return "nothing was lost already"
        if candidate.family == PRUNED and chosen is not None and goal.quality(found[chosen]) >= WELL:
            return "little was lost without pruning"
        return None
    for other, figures in tried:
        if figures.failed is None and not goal.met(figures) and other.bytes >= candidate.bytes:
            return f"finer lost too much: {other.name}"
    if candidate.bytes >= goal.before.bytes:
        return "no smaller than the model is"
    if chosen is not None and candidate.bytes >= found[chosen].bytes:
        return "no smaller than what was good enough"
    return None


def following(
    families: Sequence[Sequence[Candidate]], found: Mapping[str, Figures], goal: Goal
) -> Candidate | None:
    """The next one to try; None where nothing is left."""
    for family in families:
        for candidate in family:
            if candidate.key not in found and why_not(candidate, family, found, goal) is None:
                return candidate
    return None
