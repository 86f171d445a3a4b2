"""Reading ahead: what is held, in which order it is read, and what happens to a failure."""

from __future__ import annotations

import threading

import pytest

from shoestring.offload.prefetch import Prefetch


def walk(buffers: int, order: list[int], ahead: int = 1) -> tuple[list[int], Prefetch]:
    """Take the parts in this order; -> what was read, in order."""
    read: list[int] = []
    content: dict[int, int] = {}

    def fill(part: int, buffer: int) -> None:
        read.append(part)
        content[buffer] = part

    prefetch = Prefetch(fill, buffers, ahead)
    for number, part in enumerate(order):
        assert content[prefetch.take(part, order[number + 1 :])] == part
    prefetch.close()
    return read, prefetch


def test_up_and_down_the_parts_at_the_turns_are_not_read_again():
    up = list(range(6))
    order = (up + up[::-1]) * 3
    read, _ = walk(2, order)
    assert len(read) == 6 + 4 * 5  # the first way up, and four parts on each of the five ways after it


@pytest.mark.parametrize("buffers", [2, 3, 4, 6])
def test_the_reads_are_the_fewest_that_there_can_be(buffers):
    order = (list(range(6)) + list(range(5, -1, -1))) * 4
    held: set[int] = set()
    fewest = 0
    for number, part in enumerate(order):  # Belady's rule, which is optimal
        if part not in held:
            fewest += 1
            if len(held) == buffers:
                rest = order[number:]
                held.remove(max(held, key=lambda one: rest.index(one) if one in rest else 999))
            held.add(part)
    assert len(walk(buffers, order)[0]) == fewest


def test_without_reading_ahead_nothing_is_read_before_it_is_asked_for():
    started: list[int] = []
    prefetch = Prefetch(lambda part, buffer: started.append(part), 2, ahead=0)
    prefetch.take(0, [1, 2])
    assert started == [0]
    prefetch.close()


def test_the_next_part_is_read_while_one_is_used():
    arrived = threading.Event()
    prefetch = Prefetch(lambda part, buffer: arrived.set() if part == 1 else None, 2)
    prefetch.take(0, [1])
    assert arrived.wait(10)
    prefetch.close()


def test_a_failed_read_is_told_when_the_part_is_taken_and_can_be_tried_again():
    broken = [True]

    def fill(part: int, buffer: int) -> None:
        if part == 1 and broken[0]:
            raise OSError("gone")

    prefetch = Prefetch(fill, 2)
    prefetch.take(0, [1])
    with pytest.raises(OSError, match="gone"):
        prefetch.take(1, [])
    broken[0] = False
    prefetch.take(1, [])
    prefetch.close()
