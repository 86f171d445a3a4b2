"""Documents brought together into rows by best fit: one that fits into a row is never cut, and little is padded.

Packing all documents of a corpus at once would take a number for each of them. So it goes by windows: some hundreds of
stretches of the corpus, at places that (seed, epoch) decide, whose documents share rows (best fit decreasing, as in
arXiv 2404.10830). A document longer than a row is cut into whole rows and a rest, which is packed as documents are.
The rows of a window come in an order of their own. Only windows that rows are taken from are packed, by lengths alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from shoestring.core.errors import DataError
from shoestring.data.order import Shuffle, mix, permutation
from shoestring.data.rows.row import Filled
from shoestring.data.stored import StoredDocuments
from shoestring.data.supervised.packing import best_fit_decreasing

STRETCH = 2**14  # tokens that are read from one place
TOGETHER = 2**20  # tokens of a window, at least
_ROWS = 256  # of a window, at least
_KEPT = 3  # windows in memory


class Piece(NamedTuple):
    """Tokens of a document that stand in a row, its separator included. last: whether it ends the document."""

    place: int
    length: int
    last: bool


class Window(NamedTuple):
    """rows: the pieces in each; order: in which rows come."""

    rows: list[list[Piece]]
    order: np.ndarray

    def row(self, number: int) -> list[Piece]:
        return self.rows[int(self.order[number])]


class BestFit:
    """A place is [epoch, window, row]. Raises DataError for a split without documents."""

    def __init__(self, stored: StoredDocuments, length: int, seed: int) -> None:
        if not stored.count:
            raise DataError(f"no documents in {stored.split}", str(stored.folder), "use more text")
        self.length, self._seed, self._stored = length, seed, stored
        self._stretches = -(-stored.tokens // STRETCH)
        self._of_window = max(TOGETHER, _ROWS * length) // STRETCH
        self.windows = -(-self._stretches // self._of_window)
        self._kept: OrderedDict[tuple[int, int], Window] = OrderedDict()

    def first(self) -> list[int]:
        return self._settled([0, 0, 0])

    def after(self, place: list[int]) -> list[int]:
        epoch, window, row = place
        return self._settled([epoch, window, row + 1])

    def read(self, place: list[int], tokens: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> Filled:
        at = 0
        for piece in self._row(place):
            end = at + piece.length
            ids = self._stored.ids(piece.place, piece.length + (not piece.last))  # what follows is its last label
            tokens[at:end] = ids[: piece.length]
            labels[at : end - 1], labels[end - 1] = (
                ids[1 : piece.length],
                self._stored.separator_id if piece.last else ids[-1],
            )
            starts[at] = True
            at = end
        return Filled(at)

    def spans(self, place: list[int]) -> list[tuple[int, int, int]]:
        found = []
        for piece in self._row(place):
            number, begin, low, high = self._stored.covering(piece.place, piece.length)[0]
            found.append((number, low - begin, high - begin))
        return found

    def ids(self, document: int) -> np.ndarray:
        place, length, _ = self._stored.document(document)
        return self._stored.ids(place, length)

    def identity(self) -> dict[str, Any]:
        return {
            "packing": "best_fit",
            "seed": self._seed,
            "sequence_length": self.length,
            "tokens": self._stored.tokens,
            "documents": self._stored.count,
            "stretches": [STRETCH, self._of_window],
        }

    def checked(self, place: Any) -> list[int]:
        numbers = isinstance(place, list) and len(place) == 3 and all(type(n) is int and n >= 0 for n in place)
        if not numbers or place[1] >= self.windows or place[2] >= len(self._window(place[0], place[1]).rows):
            raise DataError("the stream to resume says no place in its data", hint="remove this checkpoint folder")
        return [*place]

    def padding(self) -> float:
        """The share of the first window's inputs that are padding."""
        rows = self._window(*self.first()[:2]).rows
        used = sum(piece.length for row in rows for piece in row)
        return 1 - used / (len(rows) * self.length)

    def _row(self, place: list[int]) -> list[Piece]:
        epoch, window, row = place
        return self._window(epoch, window).row(row)

    def _settled(self, place: list[int]) -> list[int]:
        """The place itself, or where the row really is that is beyond the end of its window."""
        epoch, window, row = place
        while row >= (count := len(self._window(epoch, window).rows)):
            row -= count
            epoch, window = (epoch, window + 1) if window + 1 < self.windows else (epoch + 1, 0)
        return [epoch, window, row]

    def _window(self, epoch: int, number: int) -> Window:
        key = epoch, number
        if key not in self._kept:
            self._kept[key] = self._packed(epoch, number)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _packed(self, epoch: int, number: int) -> Window:
        shuffle = Shuffle(self._seed, epoch, self._stretches)
        chosen = range(number * self._of_window, min((number + 1) * self._of_window, self._stretches))
        pieces: list[Piece] = []
        for stretch in sorted(shuffle[n] for n in chosen):
            low = stretch * STRETCH
            for place, length in zip(*self._stored.beginning_in(low, low + STRETCH), strict=True):
                pieces += cut(int(place), int(length), self.length)
        lengths = np.array([piece.length for piece in pieces], np.int64)
        own = mix(epoch * self.windows + number)  # another order in each window
        rows = best_fit_decreasing(lengths, self.length, permutation(self._seed, own, len(pieces)))
        order = permutation(mix(self._seed), own, len(rows))
        return Window([[pieces[n] for n in row] for row in rows], order)


def cut(place: int, length: int, most: int) -> list[Piece]:
    """A document in as few pieces as can be, all but the last as long as a row."""
    begins = range(0, length, most)
    return [Piece(place + begin, min(most, length - begin), begin + most >= length) for begin in begins]
