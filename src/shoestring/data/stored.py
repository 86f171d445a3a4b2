"""The documents of one split of a shard folder, in their order, as if they were one long array of tokens.

Nothing is held for each document: a place is found by bisection in files that are mapped into memory, so that ten
million documents open as fast as ten.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right

import numpy as np

from shoestring.data.shards import ShardFolder


class StoredDocuments:
    """tokens, count: of the split, separators counted. Numbers of documents and places of tokens count through all
    shards.

    Reading raises DataError for damage.
    """

    def __init__(self, shards: ShardFolder, split: str) -> None:
        self.folder, self.split = shards.folder, split
        self.dtype, self.separator_id = shards.dtype, shards.separator_id
        self.parts = shards.of(split)
        self._tokens = [shards.tokens(part) for part in self.parts]
        self._begins = [shards.begins(part) for part in self.parts]
        self._first_token = list(itertools.accumulate((part.tokens for part in self.parts), initial=0))
        self._first_document = list(itertools.accumulate((part.documents for part in self.parts), initial=0))
        self.tokens, self.count = self._first_token[-1], self._first_document[-1]

    def read(self, place: int, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Fill tokens [n] from a place on, and mark in starts [n] where documents begin; what follows the last document
        is the first."""
        filled = 0
        while filled < len(tokens):
            part, at = self._locate((place + filled) % self.tokens)
            count = min(len(tokens) - filled, self.parts[part].tokens - at)
            tokens[filled : filled + count] = self._tokens[part][at : at + count]
            _, begins = self._begins[part].between(at, at + count)
            starts[filled : filled + count] = False
            starts[begins - at + filled] = True
            filled += count

    def ids(self, place: int, count: int) -> np.ndarray:
        """[count] tokens of one shard from a place on."""
        part, at = self._locate(place)
        return self._tokens[part][at : at + count]

    def offset(self, place: int) -> int:
        """Tokens of the document at this place that stand before it."""
        part, at = self._locate(place)
        return at - self._begins[part].find(at)[1]

    def beginning_in(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the documents begin that begin at places low … high − 1, and their lengths: int64 [n] each."""
        places, lengths = [], []
        while low < min(high, self.tokens):
            part, at = self._locate(low)
            stop = min(at + high - low, self.parts[part].tokens)
            first, begins = self._begins[part].between(at, stop)
            ends = self._begins[part].tokens(first + 1, first + 1 + len(begins))
            places.append(begins + self._first_token[part])
            lengths.append(ends - begins)
            low += stop - at
        nothing = np.zeros(0, np.int64)
        return np.concatenate([nothing, *places]), np.concatenate([nothing, *lengths])

    def document(self, number: int) -> tuple[int, int, int]:
        """Where a document begins, its length in tokens, and its text in bytes."""
        part = bisect_right(self._first_document, number) - 1
        own = number - self._first_document[part]
        begin, end = self._begins[part].tokens(own, own + 2).tolist()
        text, after = self._begins[part].text(own, own + 2).tolist()
        return self._first_token[part] + begin, end - begin, after - text

    def covering(self, place: int, count: int) -> list[tuple[int, int, int, int]]:
        """(number, where it begins, low, high) of each document that has tokens among `count` from a place on, low and
        high being those places, counted on past the end where the first document follows the last."""
        found, done = [], 0
        while done < count:
            turn, at_all = divmod(place + done, self.tokens)
            part, at = self._locate(at_all)
            number, begin, end = self._begins[part].find(at)
            stop = min(end - at, count - done)
            start = turn * self.tokens + self._first_token[part] + begin
            found.append((self._first_document[part] + number, start, place + done, place + done + stop))
            done += stop
        return found

    def _locate(self, place: int) -> tuple[int, int]:
        """The shard, and the place in it."""
        part = bisect_right(self._first_token, place) - 1
        return part, place - self._first_token[part]
