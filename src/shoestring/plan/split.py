"""How a model's layers are split over several machines, and how fast that will be: numbers in, numbers out, torch-free.

A step passes M microbatches through a row of machines, forward and then backward. Machine i computes one microbatch in
s_i seconds, and link i carries one there and back in c_i. As in a flow shop of equal jobs, where links are machines too
(sending goes on beside computing), the step takes

    T = Σ s_i + Σ c_i + (M − 1) · max(s_1, ..., c_1, ...)

all of one microbatch, and then one more each time that the slowest is done. The best split for a slowest of at most
B seconds gives every machine a layer and then as many as B and its memory allow, each where one more costs least; B
runs over all values that it can have. That is the best where a further layer costs a machine no less than the one
before: with its memory full it must compute again what it could keep before. tests/plan compares with every split
there is, and T with a schedule that is played through.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoestring.core.errors import BudgetError
from shoestring.core.units import format_bytes
from shoestring.plan.constants import SPARE
from shoestring.plan.ranges import Split

MOST_SUBSETS = 8  # machines of which every selection is tried


@dataclass(frozen=True)
class Laptop:
    """flops: of the job's products per second, as they are reached. memory: bytes of its whole process at most, None:
    no limit. layers: that it must hold, None: open."""

    name: str
    flops: float
    memory: int | None = None
    layers: int | None = None


@dataclass(frozen=True)
class Link:
    """Between a machine and the next. latency: seconds of one way. bandwidth: bytes per second."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """One step. rows × length tokens. layer: operations per token of one layer, forward and backward; first and last:
    more, on the machine with the embedding and on that with the head. crossing: bytes per token and direction.
    layer_seconds, last_seconds: of a layer and of the head for each microbatch, however few tokens it has: what is read
    from disk for it, or made floats."""

    layers: int
    rows: int
    length: int
    layer: float
    crossing: float
    first: float = 0.0
    last: float = 0.0
    layer_seconds: float = 0.0
    last_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Part:
    """What one machine does. start, end: its layers. shares: of a step, in computing and in waiting, the network's part
    of which is what the links cost; together 1."""

    name: str
    start: int
    end: int
    peak: int
    working: float
    waiting: float
    network: float


@dataclass(frozen=True)
class Planned:
    """microbatches: of `rows` rows each. seconds: of a step. bubble: share of it in which the slowest machine has
    nothing to do, while the row fills and empties; network: share that would be gone with links that take no time."""

    parts: tuple[Part, ...]
    rows: int
    microbatches: int
    seconds: float
    tokens_per_second: float
    bubble: float
    network: float

    @property
    def split(self) -> Split:
        """As the pipeline runs it."""
        return Split(tuple((part.start, part.end) for part in self.parts), self.microbatches)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)


# Seconds of machine `index` of `count` for one microbatch, with so many layers and microbatches of so many rows.
Seconds = Callable[[int, int, int, int, int], float]
# Bytes at the peak of machine `index` of `count`, with so many layers and microbatches of so many rows.
Peak = Callable[[int, int, int, int, int], int]


def split(
    work: Work, laptops: Sequence[Laptop], links: Sequence[Link], peak: Peak, rows: int | None = None,
    most: int | None = None, seconds: Seconds | None = None,
) -> Planned:  # fmt: skip
    """The fastest that keeps every machine inside its memory, over all of these machines in this order.

    links: between each and the next. rows: of a microbatch; None: whichever is fastest, of at most `most` microbatches,
    since products of few rows are slower than is counted here. seconds: None: by `stage_seconds`. Raises BudgetError
    where nothing fits.
    """
    assert len(links) == len(laptops) - 1 and laptops
    if len(laptops) > work.layers:
        raise BudgetError(
            f"{len(laptops)} machines are to share {work.layers} layers, and each must hold at least one",
            hint="leave some machines out",
        )
    found: list[Planned] = []
    for each in _possible(work, rows, most):
        taking = _times(work, laptops, each, seconds)
        counts = _best(work, laptops, links, peak, taking, each)
        if counts is not None:
            found.append(_told(work, laptops, links, peak, taking, each, counts))
    if not found:
        raise _too_small(work, laptops, peak, rows)
    return min(found, key=lambda one: (one.seconds, one.microbatches))


def fewer(
    work: Work, laptops: Sequence[Laptop], between: Callable[[int, int], Link], peak: Peak, rows: int | None = None,
    most: int | None = None, figures: Callable[[tuple[int, ...]], tuple[Peak, Seconds]] | None = None,
) -> Planned | None:  # fmt: skip
    """The best split over fewer of these machines, the first among them, where one is faster than over all; else None.

    between: the link of two machines by their places. figures: peaks and seconds over machines of these places, where
    they differ beyond what `laptops` says; None: `peak`, and `stage_seconds`.
    """

    def over(chosen: tuple[int, ...]) -> Planned:
        links = [between(i, j) for i, j in itertools.pairwise(chosen)]
        bytes, seconds = (peak, None) if figures is None else figures(chosen)
        return split(work, [laptops[i] for i in chosen], links, bytes, rows, most, seconds)

    best, faster = over(tuple(range(len(laptops)))), None
    for chosen in _selections(len(laptops)):
        try:
            found = over(chosen)
        except BudgetError:
            continue
        if found.seconds < (faster or best).seconds:
            faster = found
    return faster


def step_seconds(times: Sequence[float], crossings: Sequence[float], microbatches: int) -> float:
    """Of machines that take `times` and links that take `crossings` for one microbatch, there and back."""
    return sum(times) + sum(crossings) + (microbatches - 1) * max(*times, *crossings, 0.0)


def stage_seconds(work: Work, laptops: Sequence[Laptop], counts: Sequence[int], rows: int) -> list[float]:
    """Of each machine for one microbatch, forward and backward."""
    tokens, last = rows * work.length, len(laptops) - 1
    return [
        tokens * (count * work.layer + work.first * (i == 0) + work.last * (i == last)) / laptop.flops
        + count * work.layer_seconds + work.last_seconds * (i == last)
        for i, (laptop, count) in enumerate(zip(laptops, counts, strict=True))
    ]


def crossing_seconds(work: Work, links: Sequence[Link], rows: int) -> list[float]:
    """Of each link for one microbatch: outputs there, their gradients back."""
    return [2 * (link.latency + rows * work.length * work.crossing / link.bandwidth) for link in links]


def bytes_per_token(work: Work, machines: int) -> float:
    """That all links together carry for each token trained."""
    return 2 * (machines - 1) * work.crossing


def _times(work: Work, laptops: Sequence[Laptop], rows: int, seconds: Seconds | None) -> list[list[float]]:
    """Of each machine for one microbatch, with 1, 2, ... layers."""
    count, layers = len(laptops), range(1, work.layers + 1)
    if seconds is not None:
        return [[seconds(i, count, n, rows, work.rows // rows) for n in layers] for i in range(count)]
    each = [stage_seconds(work, laptops, [n] * count, rows) for n in layers]
    return [[times[i] for times in each] for i in range(count)]


def _best(
    work: Work, laptops: Sequence[Laptop], links: Sequence[Link], peak: Peak, times: list[list[float]], rows: int
) -> tuple[int, ...] | None:
    """Layers of each machine."""
    microbatches, count = work.rows // rows, len(laptops)
    room = [_room(work, laptop, i, count, peak, rows, microbatches) for i, laptop in enumerate(laptops)]
    if all(laptop.layers is not None for laptop in laptops):
        given = tuple(laptop.layers or 0 for laptop in laptops)
        fits = sum(given) == work.layers and all(n <= most for n, most in zip(given, room, strict=True))
        return given if fits else None
    if min(room) < 1 or sum(room) < work.layers:
        return None
    crossings = crossing_seconds(work, links, rows)
    best: tuple[float, tuple[int, ...]] | None = None
    for limit in sorted({time for taken, most in zip(times, room, strict=True) for time in taken[:most]}):
        most = [bisect.bisect_right(taken, limit, hi=fit) for taken, fit in zip(times, room, strict=True)]
        if min(most) < 1 or sum(most) < work.layers:
            continue
        counts = [1] * count
        for _ in range(work.layers - count):
            open = [i for i in range(count) if counts[i] < most[i]]
            counts[min(open, key=lambda i: (times[i][counts[i]] - times[i][counts[i] - 1], i))] += 1
        seconds = step_seconds([times[i][n - 1] for i, n in enumerate(counts)], crossings, microbatches)
        if best is None or seconds < best[0]:
            best = seconds, tuple(counts)
    return None if best is None else best[1]


def _room(work: Work, laptop: Laptop, index: int, count: int, peak: Peak, rows: int, microbatches: int) -> int:
    """The most layers that fit; a peak grows with them."""
    if laptop.memory is None:
        return work.layers
    low, high = 0, work.layers
    while low < high:
        middle = (low + high + 1) // 2
        fits = peak(index, count, middle, rows, microbatches) <= laptop.memory * SPARE
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _told(
    work: Work, laptops: Sequence[Laptop], links: Sequence[Link], peak: Peak, taking: list[list[float]], rows: int,
    counts: tuple[int, ...],
) -> Planned:  # fmt: skip
    microbatches = work.rows // rows
    times = [taken[n - 1] for taken, n in zip(taking, counts, strict=True)]
    crossings = crossing_seconds(work, links, rows)
    total = step_seconds(times, crossings, microbatches)
    without = step_seconds(times, [0.0] * len(links), microbatches)
    network = (total - without) / total
    ends = list(itertools.accumulate(counts))
    parts = []
    for i, (laptop, time) in enumerate(zip(laptops, times, strict=True)):
        working = microbatches * time / total
        parts.append(
            Part(
                laptop.name, ends[i] - counts[i], ends[i], peak(i, len(laptops), counts[i], rows, microbatches),
                working, 1 - working - network, network,
            )
        )  # fmt: skip
    bubble = (without - microbatches * max(times)) / total
    return Planned(tuple(parts), rows, microbatches, total, work.tokens / total, bubble, network)


def _too_small(work: Work, laptops: Sequence[Laptop], peak: Peak, rows: int | None) -> BudgetError:
    least, count = 1 if rows is None else rows, len(laptops)
    given = [laptop.layers for laptop in laptops]
    if all(given) and sum(n or 0 for n in given) != work.layers:
        total = sum(n or 0 for n in given)
        return BudgetError(f"machines: their layers are {total} together, and the model has {work.layers}")
    lines = []
    for i, laptop in enumerate(laptops):
        room = _room(work, laptop, i, count, peak, least, work.rows // least)
        one = peak(i, count, laptop.layers or 1, least, work.rows // least)
        if laptop.memory is not None:
            least_of_all = f"; {laptop.layers or 1} would take {format_bytes(one / SPARE)}" if room == 0 else ""
            held = f"{laptop.name}: room for {room} of {work.layers} layers in {format_bytes(laptop.memory)}"
            lines.append(held + least_of_all)
    hint = "\n".join([*lines, "give more memory, or another machine"])
    return BudgetError(f"the {work.layers} layers do not fit into these machines together", hint=hint)


def _selections(count: int) -> list[tuple[int, ...]]:
    """Places of fewer machines, the first among them."""
    others = range(1, count)
    sizes = range(count - 1) if count <= MOST_SUBSETS else (0, 1, count - 2)
    return [(0, *chosen) for size in sizes for chosen in itertools.combinations(others, size)]


def _possible(work: Work, rows: int | None, most: int | None) -> list[int]:
    """Rows of a microbatch."""
    if rows is not None:
        return [rows]
    return [n for n in range(1, work.rows + 1) if work.rows % n == 0 and work.rows // n <= (most or work.rows)]
