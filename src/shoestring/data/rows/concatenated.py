"""Rows cut from one long stream of documents: nothing is padded, and documents are cut where rows end.

The documents of a split, in their order and the first again after the last, are one stream: separator, tokens,
separator, tokens, ... Cut k of an epoch is its tokens s + kT .. s + (k+1)T, of which the last is only a label; s
changes from epoch to epoch, so that rows do. The cuts are permuted, because neighbours come from the same document,
and a batch of them is nearly one example: its gradient is so noisy that training barely moves.

A run whose first stages have shorter rows reads the same cuts piece by piece (`cut`): each row of a step opens a cut of
its own, the next step has the cuts' second pieces, and so on. So a batch still comes from as many places as it has
rows, no token is read twice, and where the length changes, only what is left of the open cuts is passed over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shoestring.core.errors import DataError
from shoestring.data.order import Shuffle, mix
from shoestring.data.rows.row import Filled
from shoestring.data.stored import StoredDocuments

_MOST_SAMPLES = 2**40  # that any run takes


class Concatenated:
    """A place is [sample, taken]: the first open cut, counted over all epochs, and the pieces read of it and those
    with it.

    lanes: rows of one optimizer step; each then reads its own stretch of the stream from cut to cut, so that a document
    goes on in the same row of the next step, and so do its positions. Raises DataError for fewer tokens than a row (of
    each lane).
    """

    def __init__(self, stored: StoredDocuments, length: int, seed: int, lanes: int | None = None) -> None:
        assert length > 0
        self.length, self._whole, self._seed, self._lanes = length, length, seed, lanes
        self._stored = stored
        samples = stored.tokens // length
        self.samples_per_epoch = samples - samples % (lanes or 1)
        if self.samples_per_epoch == 0:
            rows = "a sequence" if lanes is None else f"{lanes} sequences"
            raise DataError(
                f"{stored.tokens:,} tokens in {stored.split}, less than {rows} of {length:,}",
                str(stored.folder),
                "use more text or a shorter train.sequence_length",
            )
        self._pieces = self._group = 1  # of a cut; cuts whose pieces are read in turn
        self._shuffles: dict[int, Shuffle] = {}

    def cut(self, place: list[int], length: int, rows: int) -> list[int]:
        """Rows of `length`, a divisor of the whole one, from the returned place on, `rows` cuts being open at a time;
        what is left of those that were open is passed over."""
        assert self._whole % length == 0 and self._lanes is None
        sample, taken = place
        if taken:
            sample += self._group
        self.length, self._pieces = length, self._whole // length
        self._group = rows if self._pieces > 1 else 1
        return [sample, 0]

    def first(self) -> list[int]:
        return [0, 0]

    def after(self, place: list[int]) -> list[int]:
        sample, taken = place
        groups, taken = divmod(taken + 1, self._group * self._pieces)
        return [sample + groups * self._group, taken]

    def read(self, place: list[int], tokens: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> Filled:
        at, sample = self._at(place)
        read, begins = np.empty(self.length + 1, np.int64), np.zeros(self.length + 1, bool)
        self._stored.read(at, read, begins)
        tokens[:], labels[:], starts[:] = read[:-1], read[1:], begins[:-1]
        if self._lanes is None:
            return Filled(self.length)
        # A document cut by the lane's beginning starts at position 0 as well.
        begun = sample % self.samples_per_epoch // self._lanes * self._whole
        return Filled(self.length, min(self._stored.offset(at % self._stored.tokens), begun))

    def spans(self, place: list[int]) -> list[tuple[int, int, int]]:
        at, _ = self._at(place)
        return [(n, low - begin, high - begin) for n, begin, low, high in self._stored.covering(at, self.length)]

    def ids(self, document: int) -> np.ndarray:
        place, length, _ = self._stored.document(document)
        return self._stored.ids(place, length)

    def identity(self) -> dict[str, Any]:
        pieces = {"pieces": self._pieces, "group": self._group} if self._pieces > 1 else {}
        return {
            "packing": "concatenate",
            "seed": self._seed,
            "sequence_length": self._whole,
            "samples_per_epoch": self.samples_per_epoch,
            "lanes": self._lanes,
            **pieces,
        }

    def checked(self, place: Any) -> list[int]:
        numbers = isinstance(place, list) and len(place) == 2 and all(type(n) is int for n in place)
        if not numbers or not 0 <= place[0] < _MOST_SAMPLES or not 0 <= place[1] < self._group * self._pieces:
            raise DataError("the stream to resume says no place in its data", hint="remove this checkpoint folder")
        return [*place]

    def _at(self, place: list[int]) -> tuple[int, int]:
        """The first token of a row, and its cut, counted over all epochs."""
        piece, member = divmod(place[1], self._group)
        sample = place[0] + member
        epoch, number = divmod(sample, self.samples_per_epoch)
        begin = mix(mix(self._seed) ^ epoch) % self._stored.tokens if epoch else 0
        return begin + self._cut(epoch, number) * self._whole + piece * self.length, sample

    def _cut(self, epoch: int, number: int) -> int:
        if self._lanes is not None:
            step, lane = divmod(number, self._lanes)
            return lane * (self.samples_per_epoch // self._lanes) + step
        if epoch not in self._shuffles:
            self._shuffles = {e: shuffle for e, shuffle in self._shuffles.items() if e == epoch - 1}
            self._shuffles[epoch] = Shuffle(self._seed, epoch, self.samples_per_epoch)
        return self._shuffles[epoch][number]
