"""How sure a score is, and whether two models differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z = 1.959963984540054  # of 95%


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927), which holds for few items too; (0, 1) of none."""
    if not of:
        return 0.0, 1.0
    share, z2 = right / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(middle - half, 0.0) if right else 0.0, min(middle + half, 1.0) if right < of else 1.0


def mcnemar(only_first: int, only_second: int) -> float:
    """The chance of a difference as large between two models that are alike: exact, two-sided (McNemar 1947).

    only_first, only_second: questions that one of them alone has right.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    if not n:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    return min(2 * tail, 1.0)


def holm(chances: Sequence[float]) -> list[float]:
    """The same chances, corrected for there being several (Holm 1979)."""
    order = sorted(range(len(chances)), key=chances.__getitem__)
    corrected, highest = [0.0] * len(chances), 0.0
    for place, number in enumerate(order):
        highest = max(highest, min((len(chances) - place) * chances[number], 1.0))
        corrected[number] = highest
    return corrected
