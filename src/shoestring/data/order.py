"""Orders that depend on numbers alone: fixed for all time, because a run that is resumed must see the same one.

`Shuffle` computes each place of a permutation when it is asked for, so that ten million documents, or a billion rows,
cost nothing to begin with; `permutation` is a whole one as an array, for what is in memory anyway. Neither takes
numpy's generators, whose streams may change between versions.
"""

from __future__ import annotations

import math

import numpy as np

_MASK = 2**64 - 1
_ROUNDS = 6


class Shuffle:
    """A permutation of 0 … count − 1 by (seed, epoch): `shuffle[i]` is what comes at place i.

    A Feistel network over a rectangle of about √count by √count (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains"): rounds add a hash of one coordinate to the other; what falls outside is put through it again.
    """

    def __init__(self, seed: int, epoch: int, count: int) -> None:
        assert count >= 0
        self.count = count
        self._width = max(math.isqrt(max(count - 1, 0)) + 1, 1)
        self._height = max(-(-count // self._width), 1)
        key = mix((mix(seed) + epoch) & _MASK)
        self._keys = [mix(key + round) for round in range(2 * _ROUNDS)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.count:
            raise IndexError(place)
        width, height, keys = self._width, self._height, self._keys
        while True:
            x, y = place % width, place // width
            for n in range(0, 2 * _ROUNDS, 2):
                x = (x + mix(y ^ keys[n])) % width
                y = (y + mix(x ^ keys[n + 1])) % height
            place = y * width + x
            if place < self.count:
                return place


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` things in an epoch: sorted by a hash (splitmix64) of (seed, epoch, thing)."""
    keys = _mixed(_mixed(np.full(1, seed % 2**64, np.uint64)) + np.uint64(epoch))
    return np.argsort(_mixed(_mixed(np.arange(count, dtype=np.uint64)) ^ keys), kind="stable")


def mix(x: int) -> int:
    """splitmix64 of a number, modulo 2⁶⁴."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 of each number."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
