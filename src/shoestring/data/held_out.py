"""One pass over a split for measuring: every token is a label exactly once, in the order of the source."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from shoestring.data.batch import Batch
from shoestring.data.loader import ExternalVectors, to_batch
from shoestring.data.order import Shuffle
from shoestring.data.shards import ShardFolder
from shoestring.data.stored import StoredDocuments


class Text(Protocol):
    """Documents one after another, each with its separator first: `tokens` of them, for `bytes` of text."""

    tokens: int
    bytes: int
    documents: int

    def read(self, place: int, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Fill tokens [n] from a place on; mark in starts [n], all False before, where documents begin."""
        ...

    def covering(self, place: int, count: int) -> list[tuple[int, int, int, int]]:
        """(document, where it begins, low, high) of each that has some of `count` tokens from a place on."""
        ...


class TextPass:
    """Iterating gives Batch [<= microbatch, T]; the last row is padded with segment -1 and label -100.

    `tokens` is the number of labels and `bytes` the text they stand for, so that bits per byte = sum of
    losses / ln 2 / bytes. Rank r takes every world-th row. vectors: (place, count) -> external ones [count, E].
    """

    def __init__(
        self,
        text: Text,
        separator_id: int,
        sequence_length: int,
        microbatch: int,
        separate_documents: bool = True,
        rank: int = 0,
        world: int = 1,
        vectors: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self._text, self._separator = text, separator_id
        self._length, self._rows, self._separate = sequence_length, microbatch, separate_documents
        self._rank, self._world, self._vectors = rank, world, vectors
        self.tokens, self.bytes, self.documents = text.tokens, text.bytes, text.documents

    def __iter__(self) -> Iterator[Batch]:
        rows = range(self._rank, -(-self.tokens // self._length), self._world)
        for first in range(0, len(rows), self._rows):
            group = rows[first : first + self._rows]
            shape = (len(group), self._length + 1)
            tokens, starts = np.zeros(shape, np.int64), np.zeros(shape, bool)
            used = np.empty(len(group), np.int64)
            external = []
            for n, row in enumerate(group):
                place = row * self._length
                used[n] = count = min(self._length, self.tokens - place)
                self._text.read(place, tokens[n, :count], starts[n, :count])
                if place + count == self.tokens:
                    tokens[n, count], starts[n, count] = self._separator, True
                else:
                    self._text.read(place + count, tokens[n, count:], starts[n, count:])
                if self._vectors is not None:
                    found = self._vectors(place, count)
                    external.append(np.pad(found, ((0, self._length - count), (0, 0))))
            row_labels = tokens[:, 1:].copy()
            yield to_batch(tokens[:, :-1].copy(), row_labels, starts[:, :-1], self._separate, used, external)


class SequentialPass(TextPass):
    """Over a split of shards. max_tokens: keep whole documents, chosen by hash, until they have that many. external:
    gives Batch.external_BTE."""

    def __init__(
        self,
        shards: ShardFolder,
        split: str,
        sequence_length: int,
        microbatch: int,
        separate_documents: bool = True,
        max_tokens: int | None = None,
        rank: int = 0,
        world: int = 1,
        external: ExternalVectors | None = None,
    ) -> None:
        stored = StoredDocuments(shards, split)
        text: Text
        if max_tokens is not None and stored.tokens > max_tokens:
            text = _Chosen(stored, max_tokens)
        else:
            text = _Whole(stored, shards.byte_count(split))

        def vectors(place: int, count: int) -> np.ndarray:
            assert external is not None
            parts = []
            for number, begin, low, high in text.covering(place, count):
                start, length, _ = stored.document(number)
                parts.append(external(number, stored.ids(start, length), low - begin, high - begin))
            return np.concatenate(parts)

        super().__init__(
            text, stored.separator_id, sequence_length, microbatch, separate_documents, rank, world,
            None if external is None else vectors,
        )  # fmt: skip


class Passes:
    """Several passes, one after another."""

    def __init__(self, passes: Sequence[TextPass]) -> None:
        self._passes = passes
        self.tokens, self.bytes, self.documents = (
            sum(getattr(one, name) for one in passes) for name in ("tokens", "bytes", "documents")
        )

    def __iter__(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self._passes)


class _Whole:
    """All documents."""

    def __init__(self, stored: StoredDocuments, bytes: int) -> None:
        self.tokens, self.documents, self.bytes = stored.tokens, stored.count, bytes
        self.read, self.covering = stored.read, stored.covering


class _Chosen:
    """Some documents, by hash, in their order, one after another."""

    def __init__(self, stored: StoredDocuments, tokens: int) -> None:
        self._stored = stored
        shuffle, numbers, found = Shuffle(0, 0, stored.count), [], 0
        while found < tokens and len(numbers) < stored.count:
            numbers.append(shuffle[len(numbers)])
            found += stored.document(numbers[-1])[1]
        self._numbers = sorted(numbers)
        places, lengths, sizes = zip(*map(stored.document, self._numbers), strict=True)
        self._places: list[int] = list(places)
        self._begins = list(itertools.accumulate(lengths, initial=0))
        self.tokens, self.bytes, self.documents = self._begins[-1], sum(sizes), len(numbers)

    def read(self, place: int, tokens: np.ndarray, starts: np.ndarray) -> None:
        for n, begin, low, high in self._covered(place, len(tokens)):
            tokens[low - place : high - place] = self._stored.ids(self._places[n] + low - begin, high - low)
            starts[low - place] = low == begin

    def covering(self, place: int, count: int) -> list[tuple[int, int, int, int]]:
        return [(self._numbers[n], begin, low, high) for n, begin, low, high in self._covered(place, count)]

    def _covered(self, place: int, count: int) -> list[tuple[int, int, int, int]]:
        """(which of the chosen, where it begins, low, high)."""
        found, end = [], place + count
        n = bisect_right(self._begins, place) - 1
        while n < len(self._numbers) and self._begins[n] < end:
            low, high = max(place, self._begins[n]), min(end, self._begins[n + 1])
            found.append((n, self._begins[n], low, high))
            n += 1
        return found


class Listed:
    """Documents that are in memory, each [t] with its separator first. bytes: of their text."""

    def __init__(self, documents: Sequence[np.ndarray], bytes: int) -> None:
        self._ids = np.concatenate([np.zeros(0, np.int64), *documents])
        self._begins = list(itertools.accumulate(map(len, documents), initial=0))
        self.tokens, self.bytes, self.documents = len(self._ids), bytes, len(documents)

    def read(self, place: int, tokens: np.ndarray, starts: np.ndarray) -> None:
        tokens[:] = self._ids[place : place + len(tokens)]
        for _, begin, low, _ in self.covering(place, len(tokens)):
            starts[low - place] = low == begin

    def covering(self, place: int, count: int) -> list[tuple[int, int, int, int]]:
        found, n = [], bisect_right(self._begins, place) - 1
        while n < self.documents and self._begins[n] < place + count:
            low, high = max(place, self._begins[n]), min(place + count, self._begins[n + 1])
            found.append((n, self._begins[n], low, high))
            n += 1
        return found
