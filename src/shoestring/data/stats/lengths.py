"""How long documents are, in constant memory: each length up to 65,535 is counted, longer ones by powers of two."""

from __future__ import annotations

import numpy as np

_EXACT = 1 << 16


class Lengths:
    """count, total, shortest and longest of what was added."""

    def __init__(self) -> None:
        self._each = np.zeros(_EXACT, np.int64)
        self._powers = np.zeros(64, np.int64)  # at b, lengths of b bits: 2^(b-1) ... 2^b - 1
        self.count = self.total = self.longest = 0
        self.shortest: int | None = None

    def add(self, lengths: np.ndarray) -> None:
        """int64 [n], none below zero."""
        if not len(lengths):
            return
        self.count += len(lengths)
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        low = int(lengths.min())
        self.shortest = low if self.shortest is None else min(self.shortest, low)
        self._each += np.bincount(lengths[lengths < _EXACT], minlength=_EXACT)
        self._powers += np.bincount(np.frexp(lengths)[1], minlength=64)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> int:
        """The length that this share of the documents does not exceed; of a long one the upper end of its power."""
        wanted = share * self.count
        up_to = np.cumsum(self._each)
        if self.count and up_to[-1] >= wanted:
            return int(np.searchsorted(up_to, max(wanted, 1)))
        bits = int(np.searchsorted(np.cumsum(self._powers), wanted))
        return min(self.longest, 2**bits - 1)

    def bins(self) -> list[tuple[int, int, int]]:
        """(least, largest, how many documents) by powers of two, from the first that has any to the last."""
        filled = np.flatnonzero(self._powers).tolist()
        bits = range(filled[0], filled[-1] + 1) if filled else range(0)
        return [((1 << b) >> 1, (1 << b) - 1, int(self._powers[b])) for b in bits]
