"""What a loader asks of rows: where the first one is, what comes after a place, and the row at a place."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

Place = Any  # plain JSON, small: what has to be known to go on from there


class Filled(NamedTuple):
    """used: labels of the row, the rest is padding. offset: the position at which it begins, in a document that
    goes on."""

    used: int
    offset: int = 0


class Rows(Protocol):
    """An endless order of rows of `length` inputs and as many labels, the same for all who ask."""

    length: int

    def first(self) -> Place: ...

    def after(self, place: Place) -> Place:
        """The place of the next row."""
        ...

    def read(self, place: Place, tokens: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> Filled:
        """Fill a row, [length] each: tokens, labels (of a document's last token the separator), and where documents, or
        pieces of them, begin (elsewhere starts is False before)."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON: what decides the order, which a run that goes on must have again."""
        ...

    def checked(self, place: Place) -> Place:
        """A place that a file says. Raises DataError for what is none."""
        ...


class DocumentRows(Rows, Protocol):
    """Rows that know which documents stand in them."""

    def spans(self, place: Place) -> list[tuple[int, int, int]]:
        """(document, first token, end) of what stands in a row, one after another, as `ExternalVectors` take them."""
        ...

    def ids(self, document: int) -> np.ndarray:
        """The tokens of a document of `spans`."""
        ...
