"""A budget of memory for a verb that streams blocks: what it will take, from above, the way that fits, and its keeping.

Counted are the tensors that are there at the worst moments, and what the process takes beside them. Of the ways, with
more or less text at once, hidden states in memory or on disk, the fastest that is predicted to fit is taken. Torch's
allocator refuses what would pass the budget all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shoestring.compression.passage import InMemory, MakeKept, OnDisk
from shoestring.compression.quantize.gptq import WIDE
from shoestring.compression.text_config import LONGEST, TOGETHER, TextConfig
from shoestring.core.allocator import trim_heap
from shoestring.core.errors import BudgetError
from shoestring.core.machine import rss_bytes
from shoestring.core.units import format_bytes
from shoestring.kernels import allocator
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.plan.constants import SPARE

FEWER = (TOGETHER, TOGETHER // 2)  # tokens at once
BESIDE = 60_000_000  # what files, threads and libraries take beside tensors
FLOAT, DOUBLE = 4, 8
_HEAD_ROWS = 1 << 24  # numbers of the head and of logits that measuring holds
_IDS = 40  # bytes of a token in a batch


@dataclass(frozen=True)
class Room:
    """How much text goes through a block at a time, and whether the rest of it is on disk. lines: predicted bytes of
    tensors, what for. beside: of the process, tensors apart."""

    tokens: int
    on_disk: bool
    lines: tuple[tuple[str, int], ...]
    beside: int

    @property
    def tensors(self) -> int:
        return sum(size for _, size in self.lines)

    @property
    def total(self) -> int:
        return self.tensors + self.beside

    def told(self, memory: int, text: bool) -> str:
        """For a person."""
        where = "on disk" if self.on_disk else "in memory"
        kept = f", the text's hidden states {where}" if text else ""
        return f"memory    {format_bytes(self.total)} of {format_bytes(memory)} predicted at most{kept}"


def ways(one: Callable[[int, bool], Room]) -> list[Room]:
    """Fast ones first. one: with so many tokens at once, and hidden states on disk or not."""
    return [one(tokens, on_disk) for on_disk in (False, True) for tokens in FEWER]


def fitting(found: Sequence[Room], memory: int | None, doing: str) -> Room:
    """The first that is predicted to stay inside `memory` bytes. doing: quantize this model. Raises BudgetError with
    the least that would do."""
    if memory is None:
        return found[0]
    for way in found:
        if way.total <= memory * SPARE:
            return way
    least = min(found, key=lambda way: way.total)
    enough = -(-int(least.total / SPARE) // 10_000_000) * 10
    largest = max(least.lines, key=lambda line: line[1])
    raise BudgetError(
        f"{format_bytes(memory)} of memory are too little to {doing}",
        hint=f"{enough}MB would do; {format_bytes(largest[1])} of it are for {largest[0]}",
    )


def process_bytes() -> int:
    """What the process takes now, tensors apart, once what is free in its heap is given back: of reading text that is
    tens of MB. What the first step brings in counts behind `train.first_use`."""
    trim_heap()
    return rss_bytes() - allocator.kept() - allocator.live()


def keep_to(room: Room, memory: int | None) -> None:
    """From now on, until the limit is lifted."""
    if memory is not None:
        allocator.limit(cap=max(memory - room.beside, 0))


@contextmanager
def refusals_told(doing: str) -> Iterator[None]:
    """Around all the work: what the allocator refuses is a BudgetError, and in the end nothing is limited. doing:
    quantizing."""
    try:
        yield
    except RuntimeError as error:
        if (refusal := allocator.refused(error)) is None:
            raise
        raise BudgetError(
            f"{doing} asked for a tensor of {format_bytes(refusal.asked)} when tensors held"
            f" {format_bytes(refusal.live)}, at most {format_bytes(refusal.cap)} of the budget are theirs",
            hint="give it more with --memory: what is done is kept, and the same command goes on from there",
        ) from None
    finally:
        allocator.limit()


def hidden_states(room: Room, scratch: Callable[[], Path]) -> MakeKept:
    """What makes a place for the hidden states of a passage. scratch: a new file's name."""
    return (lambda: OnDisk(scratch())) if room.on_disk else InMemory


# --- what takes how much -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Of a model whose blocks are dense. stages: (outputs, inputs) of linears that share their inputs, as they run."""

    width: int
    stages: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, config: ModelConfig) -> Sizes:
        parts = dense_parts(config)
        assert parts is not None
        attention, feed_forward = parts
        width, inner = config.width, feed_forward.width
        queries, keys = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
        return cls(
            width,
            (((queries, width), (keys, width), (keys, width)), ((width, queries),), ((inner, width), (inner, width)),
             ((width, inner),)),
        )  # fmt: skip

    @property
    def matrices(self) -> list[tuple[int, int]]:
        return [shape for stage in self.stages for shape in stage]

    @property
    def block(self) -> int:
        """Bytes of a block's matrices in float32."""
        return FLOAT * sum(outputs * inputs for outputs, inputs in self.matrices)

    def passing(self, batch: int, context: int) -> int:
        """Bytes of `batch` tokens on their way through a block."""
        queries, keys, _ = (outputs for outputs, _ in self.stages[0])
        inner = self.stages[2][0][0]
        return batch * FLOAT * (6 * self.width + 2 * (queries + 2 * keys) + 3 * inner + context)


def batch_tokens(config: ModelConfig, settings: TextConfig, tokens: int) -> int:
    """Of the largest batch, where `tokens` may be together: less of little text, and one row at least."""
    if settings.calibrate is None:
        return 0
    context = min(settings.context, config.context)
    there = max(settings.rows, settings.held_out) * context * 5 // 4  # rows are padded
    return max(min(tokens, there), context, min(LONGEST, config.context))


def text_lines(
    width: int, context: int, batch: int, on_disk: bool, rows: int, copies: int, more_ids: int = 0
) -> tuple[tuple[str, int], ...]:
    """Bytes of the text's hidden states and of its ids. rows: that are on their way at once; copies: of each one's
    hidden states. more_ids: rows that are only read."""
    states = 2 * batch if on_disk else copies * rows * context * 5 // 4 + 2 * batch  # rows are padded
    return (
        ("the text's hidden states", states * width * FLOAT),
        ("the text's ids", (rows + more_ids) * context * 5 // 4 * _IDS),
    )


def moments(inputs: int) -> int:
    """Bytes of second moments as they are summed."""
    return inputs * inputs * (DOUBLE if inputs <= WIDE else FLOAT)


def summing(inputs: int, batch: int) -> int:
    """Bytes beside them meanwhile."""
    return inputs * inputs * FLOAT + 2 * batch * inputs * FLOAT


def head(text: bool) -> int:
    """Bytes that measuring takes."""
    return 4 * _HEAD_ROWS * FLOAT if text else 0
