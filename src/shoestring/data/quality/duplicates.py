"""Which 64-bit numbers were seen: hashes of texts, or of parts of signatures, in 11 to 21 bytes each.

A Python set takes about 70 bytes for one. This is one array with open addressing: a number's place is its upper bits,
since hashes are uniform in them, or the first free one behind it. It doubles when three quarters are taken; as
numbers in order are also nearly in the order of their places, a new array is laid in one pass.

Two of n different texts have equal hashes with a chance of n² / 2⁶⁵: one in 400,000 for ten million documents.
"""

from __future__ import annotations

import hashlib

import numpy as np

_LEAST = 10  # bits of the smallest table's size
_AT_ONCE = 1 << 18  # numbers


def text_hash(text: str) -> int:
    """64 bits of the BLAKE2b hash of a text's UTF-8."""
    return bytes_hash(text.encode("utf-8", "surrogatepass"))


def bytes_hash(content: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class Seen:
    """A set of numbers of 64 bits, uniform in their upper ones."""

    _slots: memoryview
    _shift: int
    _last: int
    _count: int
    _zero: bool

    def __init__(self) -> None:
        self._lay(np.zeros(0, np.uint64))

    @classmethod
    def load(cls, values: np.ndarray) -> Seen:
        """Of what `dump` gave, or of any uint64 [n]; a number may be there twice."""
        seen = cls()
        seen.update(values)
        return seen

    def __len__(self) -> int:
        return self._count + self._zero

    def __contains__(self, value: int) -> bool:
        if value == 0:
            return self._zero
        slots, place = self._slots, value >> self._shift
        while found := slots[place]:
            if found == value:
                return True
            place = (place + 1) & self._last
        return False

    def add(self, value: int) -> bool:
        """Whether it was new."""
        if value == 0:
            new, self._zero = not self._zero, True
            return new
        slots, place = self._slots, value >> self._shift
        while found := slots[place]:
            if found == value:
                return False
            place = (place + 1) & self._last
        slots[place] = value
        self._count += 1
        if 4 * self._count > 3 * len(slots):
            values, zero = self._in_order(), self._zero
            del slots
            self._slots = memoryview(b"")  # the old table goes before the new one comes
            self._lay(values)
            self._zero = zero
        return True

    def update(self, values: np.ndarray) -> None:
        """Add all of uint64 [n]."""
        everything = np.unique(np.concatenate([self.dump(), values.astype(np.uint64, copy=False)]))
        self._lay(everything)

    def dump(self) -> np.ndarray:
        """uint64 [n], ascending: what `load` takes."""
        return np.concatenate([np.zeros(int(self._zero), np.uint64), self._in_order()])

    def _in_order(self) -> np.ndarray:
        """All numbers but zero, ascending."""
        table = np.frombuffer(self._slots, np.uint64)
        values = table[table != 0]
        values.sort()
        return values

    def _lay(self, values: np.ndarray) -> None:
        """Begin anew with these numbers, ascending, each there once."""
        self._zero = bool(len(values) and values[0] == 0)
        values = values[int(self._zero) :]
        bits = _LEAST
        while 4 * len(values) > 3 * 2**bits:
            bits += 1
        table = np.zeros(2**bits, np.uint64)
        # An element of a memoryview is a Python number, and costs a third of one of an array.
        self._slots, self._shift, self._last = memoryview(table.data), 64 - bits, 2**bits - 1
        self._count = len(values)
        free, over = 0, values[:0]
        for low in range(0, len(values), _AT_ONCE):
            block = values[low : low + _AT_ONCE]
            ahead = np.arange(len(block))
            home = (block >> np.uint64(self._shift)).astype(np.int64)
            places = np.maximum.accumulate(np.maximum(home, free) - ahead) + ahead
            inside = int(np.searchsorted(places, len(table)))
            table[places[:inside]] = block[:inside]
            over = np.concatenate([over, block[inside:]])
            free = int(places[-1]) + 1
        self._count -= len(over)
        for value in over.tolist():  # those pushed past the end go on at the beginning
            self.add(value)
