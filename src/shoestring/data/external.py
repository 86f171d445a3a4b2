"""One external vector for each finished span of a document, aligned to our tokens without looking ahead.

A document's tokens, its separator first, are cut into spans of S. Span j's text goes through an encoder that sees
both ways (`models.encoder`), so its vector knows every token up to (j + 1)S − 1; token n gets the vector of span
⌊n/S⌋ − 1, the last one that ended before it, and the first S tokens get zeros. What precedes a token alone decides
its vector, so training and decoding make the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from shoestring.data.loader import ExternalVectors
from shoestring.data.shards import ShardFolder
from shoestring.data.tokenizer import Tokenizer

GROUP = 4  # spans of a document that are encoded together, so that a vector does not depend on who asks
_REMEMBERED = 4096  # vectors kept in memory where there is no store

Encode = Callable[[list[str]], np.ndarray]


class External(Protocol):
    """A source of vectors for the tokens of a document."""

    width: int

    def vectors(self, ids: Sequence[int] | np.ndarray, start: int, stop: int) -> np.ndarray:
        """float32 [stop − start, E] for tokens start .. stop of a document that begins with `ids` [>= stop]."""
        ...

    def of_split(self, shards: ShardFolder, split: str, folder: Path) -> ExternalVectors:
        """The same for the documents of a split, by number. folder: where vectors may be kept between runs."""
        ...


class SpanVectors:
    """encode: texts -> float32 [N, width]. span: S. fingerprint: of the encoder, to tell stored vectors apart."""

    def __init__(self, tokenizer: Tokenizer, encode: Encode, width: int, span: int, fingerprint: str = ""):
        self.tokenizer, self.encode, self.width, self.span = tokenizer, encode, width, span
        self.fingerprint = fingerprint
        self._remembered: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def vectors(self, ids: Sequence[int] | np.ndarray, start: int, stop: int) -> np.ndarray:
        first, last = max(start // self.span - 1, 0), (stop - 1) // self.span
        return self._align(self._of_spans(ids, first, last), first, start, stop)

    def of_split(self, shards: ShardFolder, split: str, folder: Path) -> ExternalVectors:
        """The same for a split's documents by number, each vector computed once and kept in a folder in `folder`."""
        lengths = np.concatenate([np.diff(shards.offsets(shard)[0]) for shard in shards.of(split)] or [[]])
        key = json.dumps([shards.index["sha256"], split, self.fingerprint, self.span])
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        store = SpanStore(folder / name, lengths.astype(np.int64), self.span, self.width)

        def vectors(number: int, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
            first, last = max(start // self.span - 1, 0), (stop - 1) // self.span
            spans = store.get(number, first, last, lambda low, high: self._encode(ids, low, high))
            return self._align(spans, first, start, stop)

        return vectors

    def _align(self, spans: np.ndarray, first: int, start: int, stop: int) -> np.ndarray:
        """Spread the vectors of spans first, first + 1, ... over tokens start .. stop."""
        wanted = np.arange(start, stop) // self.span - 1
        out = np.zeros((stop - start, self.width), np.float32)
        out[wanted >= 0] = spans[wanted[wanted >= 0] - first]
        return out

    def _of_spans(self, ids: Sequence[int] | np.ndarray, first: int, last: int) -> np.ndarray:
        """[last − first, E], from memory where they are."""
        keys = [np.asarray(self._ids(ids, j), np.int64).tobytes() for j in range(first, last)]
        missing = [j for j, key in zip(range(first, last), keys, strict=True) if key not in self._remembered]
        out = np.empty((last - first, self.width), np.float32)
        found = dict(zip(missing, self._texts(ids, missing), strict=True))
        for row, (j, key) in enumerate(zip(range(first, last), keys, strict=True)):
            out[row] = found[j] if j in found else self._remembered[key]
            self._remembered[key] = out[row].copy()
            self._remembered.move_to_end(key)
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return out

    def _encode(self, ids: np.ndarray, first: int, last: int) -> np.ndarray:
        return self._texts(ids, list(range(first, last)))

    def _texts(self, ids: Sequence[int] | np.ndarray, spans: list[int]) -> np.ndarray:
        if not spans:
            return np.zeros((0, self.width), np.float32)
        return self.encode([self.tokenizer.decode([int(i) for i in self._ids(ids, j)]) for j in spans])

    def _ids(self, ids: Sequence[int] | np.ndarray, j: int) -> Sequence[int] | np.ndarray:
        span = ids[j * self.span : (j + 1) * self.span]
        assert len(span) == self.span, "a span that is not finished has no vector"
        return span


class SpanStore:
    """Vectors of all finished spans of a split's documents, in two memory-mapped files, filled as they are asked for.

        vectors   float32 [spans, E], a hole in the file where nothing was computed yet
        done      uint8 [spans]: 1 where the vector stands

    lengths: tokens of each document. Several processes may fill one store: they would write the same.
    """

    def __init__(self, folder: Path, lengths: np.ndarray, span: int, width: int):
        self._begins = np.concatenate([[0], np.cumsum(lengths // span)])
        spans = int(self._begins[-1])
        folder.mkdir(parents=True, exist_ok=True)
        self._vectors = _mapped(folder / "vectors", np.dtype("<f4"), (spans, width))
        self._done = _mapped(folder / "done", np.dtype("u1"), (spans,))

    def get(
        self, number: int, first: int, last: int, compute: Callable[[int, int], np.ndarray]
    ) -> np.ndarray:
        """Vectors [last − first, E] of a document's spans. compute(low, high) gives those that are missing."""
        begin, end = int(self._begins[number]), int(self._begins[number + 1])
        assert first >= 0 and begin + last <= end, "the document has fewer finished spans"
        if first >= last:
            return self._vectors[:0]
        # Whole groups: the last bits of a vector can depend on what it is encoded with.
        for low in range(first // GROUP * GROUP, last, GROUP):
            high = min(low + GROUP, end - begin)
            if not self._done[begin + low : begin + high].all():
                self._vectors[begin + low : begin + high] = compute(low, high)
                self._done[begin + low : begin + high] = 1
        return self._vectors[begin + first : begin + last]


def _mapped(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if shape[0] == 0:
        return np.zeros(shape, dtype)
    with open(file, "ab") as opened:  # appending: what another process has written stays
        opened.truncate(int(np.prod(shape)) * dtype.itemsize)
    return np.memmap(file, dtype, "r+", shape=shape).view(np.ndarray)
