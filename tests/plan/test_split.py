"""The split of layers over machines, against every split there is and a schedule that is played through."""

from __future__ import annotations

import itertools
import random

import pytest

from shoestring.core.errors import BudgetError
from shoestring.plan.constants import SPARE
from shoestring.plan.split import (
    Laptop,
    Link,
    Work,
    bytes_per_token,
    crossing_seconds,
    fewer,
    split,
    stage_seconds,
    step_seconds,
)

FAST = Link(1e-4, 1e9)


def peaks(layer: float, base: float = 0.0):
    return lambda index, count, layers, rows, many: int(base + layers * layer + rows * min(many, 2) * 10)


def every_split(layers: int, machines: int):
    for ends in itertools.combinations(range(1, layers), machines - 1):
        bounds = (0, *ends, layers)
        yield tuple(b - a for a, b in itertools.pairwise(bounds))


def played(times: list[float], crossings: list[float], microbatches: int) -> float:
    """When the last microbatch has left a row of machines and links, each of which takes one after another."""
    row = [times[0]]
    for crossing, time in zip(crossings, times[1:], strict=True):
        row += [crossing, time]
    free = [0.0] * len(row)
    done = 0.0
    for _ in range(microbatches):
        done = 0.0
        for place, seconds in enumerate(row):
            free[place] = done = max(free[place], done) + seconds
    return done


def test_the_formula_is_when_a_row_of_machines_is_done():
    draw = random.Random(1)
    for _ in range(200):
        count = draw.randint(1, 5)
        times = [draw.uniform(0.1, 2) for _ in range(count)]
        crossings = [draw.choice([0.0, draw.uniform(0, 3)]) for _ in range(count - 1)]
        for microbatches in (1, 2, 7):
            found = step_seconds(times, crossings, microbatches)
            assert found == pytest.approx(played(times, crossings, microbatches))


def test_no_split_is_faster_than_the_one_found():
    draw = random.Random(2)
    compared = 0
    for _ in range(120):
        count, layers, rows = draw.randint(1, 4), draw.randint(4, 12), draw.choice([1, 2, 4, 6])
        seconds = draw.choice([(0.0, 0.0), (draw.uniform(0, 2), draw.uniform(0, 2))])
        work = Work(layers, rows, 16, draw.uniform(1, 5), 64.0, draw.uniform(0, 6), draw.uniform(0, 9), *seconds)
        peak = peaks(draw.uniform(50, 150), 100)
        laptops = [
            Laptop(str(i), draw.choice([50.0, 100.0, 300.0]), draw.choice([None, draw.randint(300, 1500)]))
            for i in range(count)
        ]
        links = [Link(draw.uniform(0, 2), draw.choice([300.0, 1e5])) for _ in range(count - 1)]
        best = None
        for each in [n for n in range(1, rows + 1) if rows % n == 0]:
            for counts in every_split(layers, count):
                fits = all(
                    laptop.memory is None or peak(i, count, n, each, rows // each) <= laptop.memory * SPARE
                    for i, (laptop, n) in enumerate(zip(laptops, counts, strict=True))
                )
                if fits:
                    times = stage_seconds(work, laptops, counts, each)
                    seconds = step_seconds(times, crossing_seconds(work, links, each), rows // each)
                    best = seconds if best is None else min(best, seconds)
        if best is None:
            with pytest.raises(BudgetError, match="do not fit"):
                split(work, laptops, links, peak)
            continue
        compared += 1
        found = split(work, laptops, links, peak)
        assert found.seconds == pytest.approx(best)
        assert found.split.ranges[0][0] == 0 and found.split.ranges[-1][1] == layers
        found.split.check(layers, count)
    assert compared > 60


def test_no_split_is_faster_where_further_layers_cost_more():
    """As where a machine's memory is full, and further layers compute again what they could keep before."""
    draw = random.Random(3)
    for _ in range(60):
        count, layers, rows = draw.randint(2, 4), draw.randint(4, 12), draw.choice([1, 4, 6])
        each = [draw.uniform(0.5, 2) for _ in range(count)]
        full = [draw.randint(1, layers) for _ in range(count)]
        first = [draw.choice([0.0, draw.uniform(0, 9)]) for _ in range(count)]

        def seconds(index, machines, n, rows, microbatches, each=each, full=full, first=first):
            return rows * (first[index] + each[index] * (n + 0.5 * max(n - full[index], 0)))

        work, peak = Work(layers, rows, 16, 1.0, 64.0), peaks(100)
        laptops = [Laptop(str(i), 1.0) for i in range(count)]
        links = [Link(0.0, 1e9)] * (count - 1)
        best = min(
            step_seconds(
                [seconds(i, count, n, size, rows // size) for i, n in enumerate(counts)],
                crossing_seconds(work, links, size), rows // size,
            )
            for size in range(1, rows + 1) if rows % size == 0
            for counts in every_split(layers, count)
        )  # fmt: skip
        assert split(work, laptops, links, peak, seconds=seconds).seconds == pytest.approx(best)


def test_a_faster_machine_gets_more_layers_and_a_full_one_no_more_than_fit():
    work = Work(24, 8, 128, 1e6, 4 * 896)
    laptops = [Laptop("desk", 3e9), Laptop("anna", 1e9)]
    found = split(work, laptops, [FAST], peaks(100))
    assert [part.end - part.start for part in found.parts] == [18, 6]
    tight = split(work, [Laptop("desk", 3e9, 1040), laptops[1]], [FAST], peaks(100), rows=1)
    assert [part.end - part.start for part in tight.parts] == [9, 15] and tight.parts[0].peak <= 1040 * SPARE


def test_given_layers_are_kept_to():
    work = Work(24, 8, 128, 1e6, 4 * 896)
    laptops = [Laptop("desk", 3e9, layers=20), Laptop("anna", 1e9, layers=4)]
    assert split(work, laptops, [FAST], peaks(1)).split.ranges == ((0, 20), (20, 24))
    with pytest.raises(BudgetError, match="19 together, and the model has 24"):
        split(work, [Laptop("desk", 3e9, layers=15), laptops[1]], [FAST], peaks(1))


def test_more_microbatches_fill_the_row_until_the_link_is_slow():
    work = Work(24, 16, 128, 1e6, 4 * 896)
    laptops = [Laptop("a", 1e9), Laptop("b", 1e9)]
    many = split(work, laptops, [FAST], peaks(1))
    slow = split(work, laptops, [Link(2.0, 1e9)], peaks(1))
    assert many.microbatches == 16 and slow.microbatches < 16
    assert many.bubble == pytest.approx(1 / 17, rel=0.02) and many.network < 0.01 < slow.network


def test_what_each_microbatch_costs_whatever_it_holds_makes_them_fewer():
    laptops = [Laptop("a", 1e9), Laptop("b", 1e9)]
    plain = split(Work(24, 16, 128, 1e6, 4 * 896), laptops, [FAST], peaks(1))
    costly = split(Work(24, 16, 128, 1e6, 4 * 896, layer_seconds=1.0), laptops, [FAST], peaks(1))
    assert plain.microbatches == 16 and costly.microbatches < 16 and costly.seconds > plain.seconds


def test_shares_of_a_machine_are_one_together():
    work = Work(24, 8, 128, 1e6, 4 * 896, last=5e6)
    found = split(work, [Laptop("a", 1e9), Laptop("b", 2e9)], [Link(0.01, 4e7)], peaks(1))
    for part in found.parts:
        assert part.working + part.waiting + part.network == pytest.approx(1) and min(
            part.working, part.waiting, part.network
        ) >= 0
    assert found.tokens_per_second == pytest.approx(1024 / found.seconds)


def test_fewer_machines_are_named_where_they_are_faster():
    work = Work(24, 4, 128, 1e6, 4 * 896)
    laptops = [Laptop("desk", 3e9), Laptop("anna", 2e9), Laptop("old", 1e8)]

    def between(i: int, j: int) -> Link:
        return Link(3.0, 1e6) if 2 in (i, j) else FAST

    found = fewer(work, laptops, between, peaks(1))
    assert found is not None and found.names == ("desk", "anna")
    assert fewer(work, laptops[:2], between, peaks(1)) is None
    alone = fewer(work, [laptops[0], laptops[2]], lambda i, j: Link(3.0, 1e6), peaks(1))
    assert alone is not None and alone.names == ("desk",) and alone.microbatches == 1


def test_a_model_that_fits_nowhere_is_refused_with_the_room_of_each():
    work = Work(24, 4, 128, 1e6, 4 * 896)
    laptops = [Laptop("desk", 1e9, 1000), Laptop("anna", 1e9, 120)]
    with pytest.raises(BudgetError, match="24 layers do not fit") as caught:
        split(work, laptops, [FAST], peaks(100, 50))
    assert "desk: room for 9 of 24" in str(caught.value) and "anna: room for 0" in str(caught.value)
    with pytest.raises(BudgetError, match="at least one"):
        split(Work(1, 1, 1, 1.0, 1.0), laptops, [FAST], peaks(1))


def test_bytes_per_token_are_those_of_hidden_states_and_their_gradients():
    assert bytes_per_token(Work(24, 4, 128, 1e6, 4 * 896), 3) == 2 * 2 * 4 * 896
