"""Rows of several sources in given shares of tokens, exactly so at every point but for one row of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shoestring.core.errors import DataError
from shoestring.data.rows.row import Filled, Rows


class Mixture:
    """parts: rows of one length; weights: above zero, in any unit. A place is [[rows taken, place] of each part].

    The next row is of the part that is furthest behind its share, the first of those that are equally far. Each part
    has epochs of its own: a small one with a large weight is read again more often.
    """

    def __init__(self, parts: Sequence[Rows], weights: Sequence[float]) -> None:
        assert parts and len(parts) == len(weights) and min(weights) > 0
        assert len({part.length for part in parts}) == 1
        self.length = parts[0].length
        self._parts, total = list(parts), sum(weights)
        self._shares = [weight / total for weight in weights]

    def first(self) -> list[Any]:
        return [[0, part.first()] for part in self._parts]

    def after(self, place: list[Any]) -> list[Any]:
        chosen = self._chosen(place)
        taken, own = place[chosen]
        return [*place[:chosen], [taken + 1, self._parts[chosen].after(own)], *place[chosen + 1 :]]

    def read(self, place: list[Any], tokens: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> Filled:
        chosen = self._chosen(place)
        return self._parts[chosen].read(place[chosen][1], tokens, labels, starts)

    def identity(self) -> dict[str, Any]:
        return {"packing": "mixture", "shares": self._shares, "parts": [part.identity() for part in self._parts]}

    def checked(self, place: Any) -> list[Any]:
        fits = isinstance(place, list) and len(place) == len(self._parts)
        if not fits or not all(isinstance(own, list) and len(own) == 2 and _is_count(own[0]) for own in place):
            raise DataError("the stream to resume says no place in its data", hint="remove this checkpoint folder")
        return [[taken, part.checked(own)] for part, (taken, own) in zip(self._parts, place, strict=True)]

    def _chosen(self, place: list[Any]) -> int:
        following = 1 + sum(taken for taken, _ in place)
        behind = [share * following - taken for share, (taken, _) in zip(self._shares, place, strict=True)]
        return max(range(len(behind)), key=behind.__getitem__)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53
