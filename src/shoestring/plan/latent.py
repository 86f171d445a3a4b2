"""What attention over latents takes, without numbers (`nn.attention.mla`, `nn.attention.mtla`). Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.plan.attention import Context, attend, backward_scratch, fits
from shoestring.plan.parts import Norm, Part, activate, cast, cat, rotate, split
from shoestring.plan.tape import FLOAT, INDEX, Tape, Tensor

if TYPE_CHECKING:
    from shoestring.plan.blocks import Maker


class LatentAttention:
    """query: to the queries of all heads. MLA; MTLA merges latents in time as well."""

    def __init__(
        self, make: Maker, config: MLAConfig | MTLAConfig, query: Callable[[Tape, Tensor], Tensor], latent: Part,
        latent_norm: Norm, expand: Part, output: Part,
    ):  # fmt: skip
        self.config, self.query, self.latent, self.latent_norm = config, query, latent, latent_norm
        self.expand, self.output = expand, output

    def __call__(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        content, rotary = self.queries(tape, x, context)
        latent, key = self.latents(tape, x, context)
        return self.output(tape, self.expanded(tape, content, rotary, latent, key, context))

    def queries(self, tape: Tape, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        config, count = self.config, context.tokens * self.config.heads
        q = _by_heads(tape, self.query(tape, x))
        content, rotary = split(tape, q, [count * config.content_width, count * config.rotary_width])
        return content, self.turn(tape, rotary, context)

    def latents(self, tape: Tape, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        config, count = self.config, context.tokens
        latent, rotary = split(tape, self.latent(tape, x), [count * config.latent_rank, count * config.rotary_width])
        rotary = self.turn(tape, rotary, context)
        return self.latent_norm(tape, latent), rotary

    def turn(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        if context.tables is None:
            return x
        return rotate(tape, self._in_halves(tape, x) if self.config.rope_interleave else x, context.tables)

    def _in_halves(self, tape: Tape, x: Tensor) -> Tensor:
        evens, odds = (_strided(tape, x) for _ in range(2))
        return cat(tape, [evens, odds])

    def keys_and_values(self, tape: Tape, latent: Tensor, key: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        config, count = self.config, context.tokens * self.config.heads
        expanded = self.expand(tape, latent)
        content, v = split(tape, expanded, [count * config.content_width, count * config.value_width])
        return cat(tape, [content, _repeated(tape, key, config.heads)]), v

    def expanded(
        self, tape: Tape, content: Tensor, rotary: Tensor, latent: Tensor, key: Tensor, context: Context
    ) -> Tensor:
        config = self.config
        k, v = self.keys_and_values(tape, latent, key, context)
        q = cat(tape, [content, rotary])
        queries, width = config.content_width + config.rotary_width, config.value_width
        if queries == width or fits(tape, q, k, v, config.heads, context):
            return attend(tape, q, k, v, config.heads, context)
        y = self._padded(tape, q, k, v, context)
        if width < queries:
            y = _sliced(tape, y, context.tokens * config.heads * width)
        as_wanted = width > queries and (context.documents or tape.gpu)
        return y if as_wanted else _whole(tape, y)  # for the projection

    def _padded(self, tape: Tape, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """All of the width of the widest."""
        count = context.tokens * self.config.heads
        common = max(self.config.content_width + self.config.rotary_width, self.config.value_width) * count
        q, k, v = (_pad(tape, x, common) for x in (q, k, v))
        return attend(tape, q, k, v, self.config.heads, context)


class TemporalLatentAttention(LatentAttention):
    """MTLA."""

    config: MTLAConfig

    def __init__(self, make: Maker, config: MTLAConfig, *parts):
        super().__init__(make, config, *parts)
        rank = config.latent_rank
        self.chunk_gate = make.dense("attention.chunk_gate", rank, rank // 4, bias=True)
        self.latent_gate = make.dense("attention.latent_gate", rank, rank // 4, bias=True)
        widths = (config.content_width, config.rotary_width, config.rotary_width) if config.part_norms else ()
        self.part_norms = [make.norm(width) for width in widths]
        self.scale = make.weight(1) if config.rotary_scale else None

    def __call__(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        content, rotary = self.queries(tape, x, context)
        latent, key = self.latents(tape, x, context)
        own = self._merged(tape, self._weighted(tape, latent, context), context)
        k, v = self.keys_and_values(tape, own, key, context)
        q = cat(tape, [content, rotary])
        return self.output(tape, self._attend(tape, q, k, v, context))

    def queries(self, tape: Tape, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        config, count = self.config, context.tokens * self.config.heads
        q = _by_heads(tape, self.query(tape, x))
        content, rotary = split(tape, q, [count * config.content_width, count * config.rotary_width])
        if self.part_norms:
            rotary = self.part_norms[1](tape, rotary)
        rotary = self.turn(tape, rotary, context)
        if self.scale is not None:
            rotary = _scaled(tape, rotary, self.scale)
        return self.part_norms[0](tape, content) if self.part_norms else content, rotary

    def latents(self, tape: Tape, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        config, count = self.config, context.tokens
        latent, rotary = split(tape, self.latent(tape, x), [count * config.latent_rank, count * config.rotary_width])
        if self.part_norms:
            rotary = self.part_norms[2](tape, rotary)
        rotary = self.turn(tape, rotary, context)
        return self.latent_norm(tape, latent), rotary

    def _weighted(self, tape: Tape, latent: Tensor, context: Context) -> Tensor:
        """latent · the hypernetwork's weights."""
        weights = self._weights(tape, latent, context)
        weighted = tape.like(latent)
        saved = tape.save(latent), tape.save(weights)

        def backward(gradient: Tensor) -> list[Tensor | None]:
            latent, weights = (take() for take in saved)
            latent_gradient = tape.like(latent)
            product = tape.like(latent)  # noqa: F841  summed to one number a row
            return [latent_gradient, tape.like(weights)]

        tape.record([weighted], [latent, weights], backward)
        return weighted

    def _weights(self, tape: Tape, latent: Tensor, context: Context) -> Tensor:
        rank, tokens = self.config.latent_rank, context.tokens
        sines = context.once(tape, "sines", -(-context.length // self.config.stride) * rank)
        context.once(tape, "chunks", context.length * INDEX / FLOAT * (2 * context.rows if context.documents else 1))
        gates = self.chunk_gate(tape, cast(tape, sines, tape.compute))
        by_chunk = _looked_up(tape, gates, (tokens if context.documents else context.length) * (rank // 4))
        gated = self.latent_gate(tape, latent)
        product = tape.empty(tokens * (rank // 4), max(by_chunk.size, gated.size))
        saved = tape.save(by_chunk), tape.save(gated)

        def backward(gradient: Tensor) -> list[Tensor | None]:
            by_chunk, gated = (take() for take in saved)
            whole = tape.like(gated)
            mine = whole if by_chunk.numbers == gated.numbers else tape.like(by_chunk)
            return [mine, tape.like(gated)]

        tape.record([product], [by_chunk, gated], backward)
        del gates, by_chunk, gated
        sums = tape.empty(tokens)
        numbers = product.numbers
        tape.record([sums], [product], lambda gradient: [gradient.detach().part(numbers)])
        del product
        return activate(tape, sums, keeps_input=False)

    def _merged(self, tape: Tape, weighted: Tensor, context: Context) -> Tensor:
        """Running sums in each chunk."""
        if self.config.stride == 1:
            return weighted
        if not context.documents:
            return _through(tape, weighted)
        zeros = tape.like(weighted)
        scattered = _through(tape, weighted)
        del zeros
        return _through(tape, _through(tape, scattered), keeps=True)

    def _attend(self, tape: Tape, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        if tape.compute != FLOAT:
            q, k, v = (cast(tape, x, tape.compute) for x in (q, k, v))
        sums = context.tokens * self.config.heads
        product = tape.empty(q.numbers)
        own = tape.empty(sums)
        del product
        out, columns = tape.like(v), tape.empty(sums)
        self._phases(tape, q, k, v, context)
        total = tape.empty(sums)
        share = tape.empty(sums)
        del share
        del columns
        saved = [tape.save(x) for x in (q, k, v, out, own, total)]

        def backward(gradient: Tensor) -> list[Tensor | None]:
            q, k, v, out, *_ = held = [take() for take in saved]  # noqa: F841
            share = tape.empty(sums)
            slopes = []
            for x in (v, out):
                product = tape.empty(x.numbers)
                slopes.append(tape.empty(sums))
                del product
            slope = tape.empty(sums)
            slopes.clear()
            made: list[Tensor | None] = [tape.like(q), tape.like(k), tape.like(v)]
            self._phases_back(tape, q, k, v, context)
            del share, slope
            return made

        tape.record([out], [q, k, v], backward)
        return out

    def _phases(self, tape: Tape, q: Tensor, k: Tensor, v: Tensor, context: Context) -> None:
        """Every stride-th row, over the ends of chunks; each is there until the next one is."""
        ends, phases, widest = self._rows(q, v, context)
        kept = [self._widened(tape, x, ends, widest, context) for x in (k, v)]
        queries = part = sums = None
        for rows in phases:
            queries = self._widened(tape, q, rows, widest, context)
            part, sums = tape.empty(rows * widest), tape.empty(rows)  # noqa: F841
        del kept, queries

    def _phases_back(self, tape: Tape, q: Tensor, k: Tensor, v: Tensor, context: Context) -> None:
        ends, phases, widest = self._rows(q, v, context)
        kept = [self._widened(tape, x, ends, widest, context) for x in (k, v)]
        queries, made = None, list[Tensor]()
        for rows in phases:
            queries = self._widened(tape, q, rows, widest, context)
            outer = [self._widened(tape, v, rows, widest, context) for _ in range(2)]  # its gradient, and the output
            new = [tape.empty(rows * widest) for _ in range(4)]
            tape.scratch(tape.threads * backward_scratch(round(rows / context.rows / self.config.heads)))
            new.pop()  # the gradient, in the order that the kernel wants
            made = new
            del outer
        del kept, queries, made

    def _widened(self, tape: Tape, x: Tensor, rows: float, widest: float, context: Context) -> Tensor | None:
        """So many rows of x, of all heads, in float32 and as wide as the kernel wants; None: views of x are."""
        width = x.numbers / (context.tokens * self.config.heads)
        y = None if x.size == FLOAT else tape.empty(rows * width)
        return y if width == widest else tape.empty(rows * widest)

    def _rows(self, q: Tensor, v: Tensor, context: Context) -> tuple[float, list[float], float]:
        """-> ends of chunks, rows of each phase, both of all heads; numbers of the widest row."""
        length, stride, count = context.length, self.config.stride, context.rows * self.config.heads
        phases = [float(len(range(stride + phase, length, stride))) * count for phase in range(stride)]
        ends = float(len(range(stride - 1, length, stride))) * count
        return ends, [rows for rows in phases if rows], max(q.numbers, v.numbers) / (length * count)


def _scaled(tape: Tape, x: Tensor, scale: Tensor) -> Tensor:
    """x times a learned number."""
    y = tape.like(x)
    saved = tape.save(x) if scale.node is not None else None

    def backward(gradient: Tensor) -> list[Tensor | None]:
        kept = None if saved is None else saved()
        x_gradient, scale_gradient = tape.like(gradient), None
        if kept is not None:
            product = tape.like(gradient)
            scale_gradient = tape.empty(1)
            del product
        return [x_gradient, scale_gradient]

    tape.record([y], [x, scale], backward)
    return y


def _looked_up(tape: Tape, table: Tensor, numbers: float) -> Tensor:
    rows = tape.empty(numbers, table.size)
    whole, size = table.numbers, table.size
    tape.record([rows], [table], lambda gradient: [tape.empty(whole, size)])
    return rows


def _through(tape: Tape, x: Tensor, keeps: bool = False) -> Tensor:
    """As large as x, and so is its gradient. keeps: x until then, as torch's gather does."""
    y = tape.like(x)
    saved = tape.save(x) if keeps else None

    def backward(gradient: Tensor) -> list[Tensor | None]:
        held = None if saved is None else saved()  # noqa: F841
        return [tape.like(gradient)]

    tape.record([y], [x], backward)
    return y


def _by_heads(tape: Tape, x: Tensor) -> Tensor:
    """A view whose gradient lies head by head, and is copied to be multiplied."""
    view = x.detach()

    def backward(gradient: Tensor) -> list[Tensor | None]:
        gradient.ordered = False
        return [gradient]

    tape.record([view], [x], backward)
    return view


def _strided(tape: Tape, x: Tensor) -> Tensor:
    half = x.detach().part(x.numbers / 2)
    numbers, size = x.numbers, x.size
    tape.record([half], [x], lambda gradient: [tape.empty(numbers, size)])
    return half


def _repeated(tape: Tape, x: Tensor, times: int) -> Tensor:
    """A view of x for every head, whose gradients are summed."""
    view = x.detach().part(x.numbers * times)
    numbers, size = x.numbers, x.size
    tape.record([view], [x], lambda gradient: [tape.empty(numbers, size)])
    return view


def _pad(tape: Tape, x: Tensor, numbers: float) -> Tensor:
    y = tape.empty(numbers, x.size)
    before, size = x.numbers, x.size

    def backward(gradient: Tensor) -> list[Tensor | None]:
        return [tape.empty(before, size) if before == numbers else gradient.detach().part(before)]

    tape.record([y], [x], backward)
    return y


def _sliced(tape: Tape, x: Tensor, numbers: float) -> Tensor:
    """Part of each row; the gradient lies head by head, which torch's kernel copies."""
    part = x.detach().part(numbers)
    whole, size = x.numbers, x.size

    def backward(gradient: Tensor) -> list[Tensor | None]:
        made = tape.empty(whole, size)
        made.ordered = False
        return [made]

    tape.record([part], [x], backward)
    return part


def _whole(tape: Tape, x: Tensor) -> Tensor:
    y = tape.like(x)
    tape.record([y], [x], lambda gradient: [gradient])
    return y
