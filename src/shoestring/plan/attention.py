"""What grouped-query attention takes, without numbers (`nn.attention`, `nn.memory`). Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shoestring.kernels.attention_limits import SHORTEST, parts_of, takes_width
from shoestring.nn.config import GQAConfig
from shoestring.nn.memory.config import MemoryBankConfig
from shoestring.plan.adapters import bundled
from shoestring.plan.parts import Norm, Part, cast, cat, rotate, split
from shoestring.plan.tape import FLOAT, INDEX, Tape, Tensor

_KEYS = 512  # that torch's kernel for CPUs reads at a time
_GPU_BLOCK = 128  # queries and keys, of packed documents on a GPU
_WINDOW_BLOCK = 256  # least queries of a block of sliding-window attention


@dataclass
class Context:
    """rows × length tokens. tables: of rotary positions. documents: whether rows hold several. earlier: whether a
    cache holds tokens before them.
    """

    rows: int
    length: int
    tables: tuple[Tensor, Tensor] | None = None
    documents: bool = False
    earlier: bool = False
    made: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def once(self, tape: Tape, name: str, numbers: float) -> Tensor:
        """What the first layer that asks for it makes for all."""
        if name not in self.made:
            self.made[name] = tape.empty(numbers)
        return self.made[name]


def attend(tape: Tape, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context) -> Tensor:
    """Causal, within documents where rows hold several."""
    if tape.gpu:
        return one_kernel(tape, q, k, v, heads, context)
    if fits(tape, q, k, v, heads, context):
        return fused(tape, q, k, v, heads, context)
    return by_document(tape, q, k, v, heads, context, flash)


def one_kernel(tape: Tape, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context) -> Tensor:
    """A GPU's, whatever documents there are: of those it has which blocks of queries and keys see one another."""
    q, k, v = (cast(tape, x, tape.compute) if tape.compute != FLOAT else x for x in (q, k, v))
    if context.documents:
        count = -(-context.length // _GPU_BLOCK)
        context.once(tape, "documents", context.tokens + context.rows * 8 * (count * count + count))
    sums = heads * context.tokens
    y, log_sums = tape.empty(v.numbers / k.numbers * q.numbers, v.size), tape.empty(sums)
    if not tape.wants(q, k, v):
        return y
    saved = [tape.save(x) for x in (q, k, v, y, log_sums)]

    def backward(gradient: Tensor) -> list[Tensor | None]:
        held = [take() for take in saved]
        delta = tape.empty(sums)  # noqa: F841
        return [tape.like(x) for x in held[:3]]

    tape.record([y], [q, k, v], backward)
    return y


def fits(tape: Tape, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context) -> bool:
    """Whether our kernel takes these."""
    width = q.numbers / (heads * context.tokens)
    wide_enough = takes_width(width) and takes_width(v.numbers / k.numbers * width)
    return wide_enough and context.length >= SHORTEST and not context.earlier and not tape.gpu


def fused(tape: Tape, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context) -> Tensor:
    """Our kernel, whatever documents or windows there are."""
    q, k, v = (cast(tape, x, tape.compute) if tape.compute != FLOAT else x for x in (q, k, v))
    sums = heads * context.tokens
    width = q.numbers / sums
    groups = k.numbers / (context.tokens * width)
    y, log_sums = tape.empty(v.numbers / groups * heads, v.size), tape.empty(sums)
    if not tape.wants(q, k, v):
        return y
    saved = [tape.save(x) for x in (q, k, v, y, log_sums)]
    parts = parts_of(round(context.rows * groups), context.length, tape.threads)

    def backward(gradient: Tensor) -> list[Tensor | None]:
        q, k, v, *_ = held = [take() for take in saved]  # noqa: F841
        made = tape.empty(q.numbers)
        others = tape.empty((parts - 1) * q.numbers)
        gradients: list[Tensor | None] = [tape.like(k), tape.like(v)]
        del others
        return [made if q.size == FLOAT else tape.like(q), *gradients]

    tape.record([y], [q, k, v], backward)
    return y


def by_document(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context, attend_one: Callable[..., Tensor]
) -> Tensor:
    """As if each row were one document: what several take is the same but for less scratch memory."""
    if not context.documents:
        return attend_one(tape, q, k, v, heads * context.tokens, context.length)
    parts = [split(tape, x, [x.numbers / context.rows] * context.rows) for x in (q, k, v)]
    outputs = []
    for row in zip(*parts, strict=True):
        one = [split(tape, x, [x.numbers])[0] for x in row]
        outputs.append(attend_one(tape, *one, heads * context.length, context.length))
    return cat(tape, outputs)


def flash(
    tape: Tape, q: Tensor, k: Tensor, v: Tensor, sums: float, length: int, mask: Tensor | None = None
) -> Tensor:
    """torch's attention for CPUs, which never holds the scores. sums: one for each query of each head."""
    q, k, v = (cast(tape, x, tape.compute) if tape.compute != FLOAT else x for x in (q, k, v))
    y, log_sums = tape.like(q), tape.empty(sums)
    width = q.numbers / sums
    queries, keys = query_block(length), min(_KEYS, length)
    tape.scratch(tape.threads * (queries * keys + 2 * queries + queries * width))
    if not tape.wants(q, k, v):
        return y
    saved = [tape.save(x) for x in (q, k, v, y, log_sums, mask) if x is not None]

    def backward(gradient: Tensor) -> list[Tensor | None]:
        q, k, v, *_ = held = [take() for take in saved]  # noqa: F841
        made: list[Tensor | None] = [tape.like(q), tape.like(k), tape.like(v)]
        again = None if gradient.ordered else tape.like(gradient)  # noqa: F841
        tape.scratch(tape.threads * backward_scratch(length))
        return made

    tape.record([y], [q, k, v], backward)
    return y


def query_block(length: int) -> int:
    """Queries that torch's kernel takes at a time, of so many."""
    return 256 if length >= 768 else 64 if length >= 192 else 32


def backward_scratch(length: int) -> int:
    """Numbers that each thread of the kernel works in going backward."""
    return 2 * min(query_block(length), length) * min(_KEYS, length)


class GroupedQueryAttention:
    """query, key, value: what projects to them."""

    def __init__(
        self, config: GQAConfig, query: Part, key: Part, value: Part, output: Part, query_norm: Norm | None,
        key_norm: Norm | None,
    ):  # fmt: skip
        self.config, self.query, self.key, self.value, self.output = config, query, key, value, output
        self.query_norm, self.key_norm = query_norm, key_norm

    def __call__(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        q, k, v = self.project(tape, x)
        q, k = rotate(tape, q, context.tables), rotate(tape, k, context.tables)
        return self.output(tape, self.attend(tape, q, k, v, context))

    def project(self, tape: Tape, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = bundled(tape, (self.query, self.key, self.value), x)
        q = query if self.query_norm is None else self.query_norm(tape, query)
        k = key if self.key_norm is None else self.key_norm(tape, key)
        return q, k, value

    def attend(self, tape: Tape, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        window = self.config.window
        if window is None or context.length <= window or (tape.gpu and context.documents):
            return attend(tape, q, k, v, self.config.heads, context)
        if fits(tape, q, k, v, self.config.heads, context):
            return attend(tape, q, k, v, self.config.heads, context)

        def in_blocks(tape: Tape, q: Tensor, k: Tensor, v: Tensor, sums: float, length: int) -> Tensor:
            return _in_blocks(tape, q, k, v, sums, length, window)

        return by_document(tape, q, k, v, self.config.heads, context, in_blocks)


def _in_blocks(tape: Tape, q: Tensor, k: Tensor, v: Tensor, sums: float, length: int, window: int) -> Tensor:
    """Blocks of queries over the keys that they can see, those of the block before copied beside their own."""
    block, before = max(window, _WINDOW_BLOCK), window - 1
    sizes = [min(block, length - start) for start in range(0, length, block)]
    parts = list(zip(*(split(tape, x, [x.numbers * size / length for size in sizes]) for x in (q, k, v)), strict=True))
    outputs = []
    for number, (size, (q_part, k_part, v_part)) in enumerate(zip(sizes, parts, strict=True)):
        keys = size
        if number and before:
            k_part, v_part = (
                cat(tape, [_last(tape, old, before / block), new])
                for old, new in ((parts[number - 1][1], k_part), (parts[number - 1][2], v_part))
            )
            keys += before
        mask = tape.empty(size * keys)
        outputs.append(flash(tape, q_part, k_part, v_part, sums * size / length, keys, mask))
        del mask
    return cat(tape, outputs)


def _last(tape: Tape, x: Tensor, share: float) -> Tensor:
    """A slice, whose gradient is as large as the whole."""
    part = x.detach().part(x.numbers * share)
    like = x.detach()
    numbers, size = like.numbers, like.size
    tape.record([part], [x], lambda gradient: [tape.empty(numbers, size)])
    return part


class ValueResidualAttention(GroupedQueryAttention):
    """Takes and gives the values of the first layer. share: the weight of one number that mixes them."""

    share: Tensor

    def mixed(self, tape: Tape, x: Tensor, context: Context, first: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(tape, x)
        first = v if first is None else first
        mixed = self._mix(tape, v, first)
        q, k = rotate(tape, q, context.tables), rotate(tape, k, context.tables)
        return self.output(tape, self.attend(tape, q, k, mixed, context)), first

    def _mix(self, tape: Tape, v: Tensor, first: Tensor) -> Tensor:
        """v + share · (first − v)."""
        difference = tape.like(v)
        tape.record([difference], [first, v], lambda gradient: [gradient, tape.like(gradient)])
        scaled = tape.like(v)
        saved = tape.save(difference) if self.share.node is not None else None

        def backward(gradient: Tensor) -> list[Tensor | None]:
            kept = None if saved is None else saved()
            share_gradient = None
            if kept is not None:
                product = tape.like(gradient)
                share_gradient = tape.empty(1)
                del product
            return [tape.like(gradient), share_gradient]

        tape.record([scaled], [difference, self.share], backward)
        del difference
        total = tape.like(v)
        tape.record([total], [v, scaled], lambda gradient: [gradient, gradient])
        return total


class MemoryAttention(GroupedQueryAttention):
    """Also searches its own sequence, in blocks of tokens. gate: a weight for each head."""

    memory: MemoryBankConfig
    gate: Tensor

    def __call__(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        q, k, v = self.project(tape, x)
        local = self.attend(tape, rotate(tape, q, context.tables), rotate(tape, k, context.tables), v, context)
        recalled = self._recall(tape, q, k, v, context)
        return self.output(tape, self._mix(tape, local, recalled, context))

    def _recall(self, tape: Tape, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        rows, found = split(tape, q, [q.numbers / context.rows] * context.rows), []
        sums = self.config.heads * context.length
        for row in rows:
            (part,) = split(tape, row, [row.numbers])
            hits = tape.empty(sums * self.memory.top_k, INDEX)
            found.append(self._recalled(tape, part, k, v, hits, sums))
        return cat(tape, found)

    def _recalled(self, tape: Tape, q: Tensor, k: Tensor, v: Tensor, hits: Tensor, sums: float) -> Tensor:
        y = tape.like(q)
        gathered = min(sums * self.memory.top_k * self.config.head_width, 1 << 22)
        tape.scratch(2 * gathered)
        if not tape.wants(q):
            return y
        saved = [tape.save(x) for x in (q, hits, y, k, v)]

        def backward(gradient: Tensor) -> list[Tensor | None]:
            held = [take() for take in saved]  # noqa: F841
            made = tape.like(gradient)
            tape.scratch(2 * gathered)
            return [made]

        tape.record([y], [q], backward)
        return y

    def _mix(self, tape: Tape, local: Tensor, recalled: Tensor, context: Context) -> Tensor:
        gate = tape.empty(self.config.heads * context.tokens)
        y = tape.like(local)
        saved = [tape.save(x) for x in (local, recalled, gate)]

        def backward(gradient: Tensor) -> list[Tensor | None]:
            held = [take() for take in saved]  # noqa: F841
            return [tape.like(gradient), tape.like(gradient), tape.empty(self.config.heads)]

        tape.record([y], [local, recalled, self.gate], backward)
        return y
