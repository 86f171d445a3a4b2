"""Rows of text that is tokenized as it is read: nothing is written, and any place is found again.

The files of a source come in an order that (seed, epoch) decide, their documents one after another, in windows of
about a million tokens; in a window, documents share rows as `packing` says, and rows have an order of their own. A
place is [epoch, file, document, row]: the window that begins with this document of this file in the epoch's order,
and a row of it. To go on there the file is read again up to that document, without tokenizing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from shoestring.core.errors import DataError
from shoestring.data.order import Shuffle, mix, permutation
from shoestring.data.rows.best_fit import cut
from shoestring.data.rows.row import Filled
from shoestring.data.supervised.packing import best_fit_decreasing

TOGETHER = 2**20  # tokens of a window, at least
_AT_ONCE = 64  # documents that are tokenized together
_KEPT = 3  # windows in memory
Packing = Literal["concatenate", "best_fit"]


class TextFiles(Protocol):
    """What is read: `texts(number)` are the documents of file `number` to train on, in their order."""

    count: int
    fingerprint: str

    def texts(self, number: int) -> Iterator[str]: ...


class Part(NamedTuple):
    """Tokens begin … begin + length − 1 of a window's document. last: whether they end it."""

    document: int
    begin: int
    length: int
    last: bool


class Window(NamedTuple):
    """documents: each with its separator first; rows: the parts in each, in their order; end: where the next begins."""

    documents: list[np.ndarray]
    rows: list[list[Part]]
    end: tuple[int, int, int]


class OnTheFly:
    """encode: texts to ids, without separators. Raises DataError for a source without text, and as the source does."""

    def __init__(
        self,
        files: TextFiles,
        encode: Callable[[Sequence[str]], list[np.ndarray]],
        separator_id: int,
        length: int,
        seed: int,
        packing: Packing,
    ) -> None:
        self.length, self._seed, self._packing = length, seed, packing
        self._files, self._encode, self._separator = files, encode, separator_id
        self._windows: OrderedDict[tuple[int, int, int], Window] = OrderedDict()
        self._open: tuple[tuple[int, int, int], Iterator[str]] | None = None  # where a file is being read, and how

    def first(self) -> list[int]:
        return self._settled([0, 0, 0, 0])

    def after(self, place: list[int]) -> list[int]:
        return self._settled([*place[:3], place[3] + 1])

    def read(self, place: list[int], tokens: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> Filled:
        window, at = self._window(*place[:3]), 0
        for part in window.rows[place[3]]:
            ids, end = window.documents[part.document][part.begin :], at + part.length
            tokens[at:end] = ids[: part.length]
            labels[at : end - 1] = ids[1 : part.length]
            labels[end - 1] = self._separator if part.last else ids[part.length]
            starts[at] = True
            at = end
        return Filled(at)

    def identity(self) -> dict[str, Any]:
        return {
            "packing": f"{self._packing} on the fly",
            "seed": self._seed,
            "sequence_length": self.length,
            "source": self._files.fingerprint,
            "window": TOGETHER,
        }

    def checked(self, place: Any) -> list[int]:
        numbers = isinstance(place, list) and len(place) == 4 and all(type(n) is int and n >= 0 for n in place)
        if not numbers or place[1] >= self._files.count or place[3] >= len(self._window(*place[:3]).rows):
            raise DataError("the stream to resume says no place in its data", hint="remove this checkpoint folder")
        return [*place]

    def _settled(self, place: list[int]) -> list[int]:
        """The place itself, or where the row really is that is beyond the end of its window."""
        *begin, row = place
        empty = 0
        while row >= (count := len((window := self._window(*begin)).rows)):
            row -= count
            empty = empty + 1 if not count else 0
            if empty > 1:  # from one end of the source to the other
                raise DataError("no text to train on in this source", hint="give files that hold text")
            begin = [*window.end]
        return [*begin, row]

    def _window(self, epoch: int, file: int, document: int) -> Window:
        key = epoch, file, document
        if key not in self._windows:
            self._windows[key] = self._read(key)
            while len(self._windows) > _KEPT:
                self._windows.popitem(last=False)
        return self._windows[key]

    def _read(self, begin: tuple[int, int, int]) -> Window:
        """Tokens from here on, up to the end of the epoch at most."""
        epoch, file, document = begin
        order = Shuffle(self._seed, epoch, self._files.count)
        documents: list[np.ndarray] = []
        tokens, texts = 0, self._from(begin, order)
        while tokens < max(TOGETHER, self.length):
            some = [text for _, text in zip(range(_AT_ONCE), texts, strict=False)]
            for ids in self._encode(some):
                documents.append(np.concatenate([[self._separator], ids]))
                tokens += len(ids) + 1
            document += len(some)
            if len(some) == _AT_ONCE:
                continue
            file, document = file + 1, 0
            if file == self._files.count:
                return Window(documents, self._packed(documents, begin), (epoch + 1, 0, 0))
            texts = self._files.texts(order[file])
        self._open = (epoch, file, document), texts
        return Window(documents, self._packed(documents, begin), (epoch, file, document))

    def _from(self, begin: tuple[int, int, int], order: Shuffle) -> Iterator[str]:
        """The texts of a file from a document on: it is read on, where this is where reading stopped."""
        if self._open is not None and self._open[0] == begin:
            texts, self._open = self._open[1], None
            return texts
        texts = self._files.texts(order[begin[1]])
        for _ in range(begin[2]):
            if next(texts, None) is None:
                raise DataError("the source has fewer documents than when this run was saved")
        return texts

    def _packed(self, documents: list[np.ndarray], begin: tuple[int, int, int]) -> list[list[Part]]:
        key = 0
        for number in begin:
            key = mix(key ^ number)
        order = permutation(self._seed, key, len(documents))
        if self._packing == "concatenate":
            rows = _joined([documents[n] for n in order], order, self.length)
        else:
            parts = [
                Part(n, piece.place, piece.length, piece.last)
                for n, ids in enumerate(documents)
                for piece in cut(0, len(ids), self.length)
            ]
            lengths = np.array([part.length for part in parts], np.int64)
            packed = best_fit_decreasing(lengths, self.length, permutation(self._seed, key, len(parts)))
            rows = [[parts[n] for n in row] for row in packed]
        return [rows[n] for n in permutation(mix(self._seed), key, len(rows))]


def _joined(documents: list[np.ndarray], numbers: np.ndarray, length: int) -> list[list[Part]]:
    """One after another, cut wherever a row ends; only the last row may be short."""
    rows: list[list[Part]] = [[]]
    room = length
    for number, ids in zip(numbers.tolist(), documents, strict=True):
        begin = 0
        while begin < len(ids):
            if not room:
                rows.append([])
                room = length
            taken = min(room, len(ids) - begin)
            rows[-1].append(Part(number, begin, taken, begin + taken == len(ids)))
            begin, room = begin + taken, room - taken
    return [row for row in rows if row]
