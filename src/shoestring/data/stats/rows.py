"""How well documents of given lengths fill rows: the padding of best fit, and what concatenation would cut.

Best fit goes by windows of about a million tokens, as it does in training, so that memory is bounded; here they are
of neighbouring documents. A document longer than a row is cut into whole rows and a rest, which is packed as
documents are.
"""

from __future__ import annotations

import numpy as np

from shoestring.data.supervised.packing import best_fit_decreasing

TOGETHER = 2**20  # tokens of a window, at least
_ROWS = 256  # of a window, at least


class RowCounts:
    """length: tokens of a row. documents; longer: those that no row holds whole; cut: those that concatenation cuts."""

    def __init__(self, length: int) -> None:
        assert length > 0
        self.length = length
        self.documents = self.longer = self.cut = 0
        self._place = self._tokens = self._rows = 0
        self._window: list[np.ndarray] = []
        self._held = 0

    def add(self, lengths: np.ndarray) -> None:
        """int64 [n]: tokens of documents, separators counted, in their order."""
        self.documents += len(lengths)
        self.longer += int((lengths > self.length).sum())
        ends = self._place + np.cumsum(lengths)
        self.cut += int(((ends - lengths) // self.length != (ends - 1) // self.length).sum())
        if len(ends):
            self._place = int(ends[-1]) % self.length
        most = max(TOGETHER, _ROWS * self.length)
        while len(lengths):
            taken = 1 + int(np.searchsorted(np.cumsum(lengths), most - self._held))
            self._window.append(lengths[:taken])
            self._held += int(lengths[:taken].sum())
            lengths = lengths[taken:]
            if self._held >= most:
                self._rows += self._packed()
                self._tokens += self._held
                self._window, self._held = [], 0

    @property
    def padding(self) -> float:
        """The share of what best fit's rows hold that is empty."""
        rows = self._rows + self._packed()
        return 1 - (self._tokens + self._held) / (rows * self.length) if rows else 0.0

    def _packed(self) -> int:
        """Rows that the window's documents take."""
        if not self._window:
            return 0
        lengths = np.concatenate(self._window)
        rests = lengths % self.length
        rests = rests[rests > 0]
        rows = best_fit_decreasing(rests, self.length, np.arange(len(rests)))
        return int((lengths // self.length).sum()) + len(rows)
