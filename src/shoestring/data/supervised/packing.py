"""Examples into rows of bounded length, with little left empty: best fit decreasing.

The longest example goes first, each into the fullest row that still has room for it; the number of rows is at most
about 11/9 of the least possible (Johnson et al. 1974), and close to it when many examples are short.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def best_fit_decreasing(lengths: np.ndarray, capacity: int, order: np.ndarray) -> list[list[int]]:
    """Rows of indices into `lengths` (int64 [n], none above capacity); equal lengths are taken in `order` [n].

    The number of rows and the lengths in each depend on `lengths` alone, not on `order`.
    """
    assert len(lengths) == 0 or int(lengths.max()) <= capacity
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> rows, the youngest last
    rooms: list[int] = []  # keys of with_room that have rows, ascending
    for index in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[index])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                rooms.pop(at)
        rows[row].append(index)
        left = room - length
        if left:
            if not with_room.setdefault(left, []):
                insort(rooms, left)
            with_room[left].append(row)
    return rows
