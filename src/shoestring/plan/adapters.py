"""Adapters beside frozen linears, without numbers: LoRA, DoRA, several at once, over bases of every format.

A base is two products without a graph, forward and backward, as `nn.frozen` has them; a quantized one makes its weights
dense for each product, or rounds rows to int8 where products are of integers. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoestring.nn.quantized.config import PackedConfig
from shoestring.plan.parts import Part, cast, matmul, multiplied, parameter
from shoestring.plan.tape import BYTE, FLOAT, HALF, Tape, Tensor

_KEPT_COLUMNS = 8  # of activations rounded to int8 (`nn.quantized.int8`)


@dataclass
class Rows:
    """Rows rounded to int8: held is what they take."""

    held: Sequence[Tensor]


class Base:
    """A frozen linear in float32 or bfloat16. size: bytes of a weight."""

    def __init__(self, inputs: int, outputs: int, size: int = FLOAT, bias: bool = False):
        self.inputs, self.outputs, self.size, self.bias = inputs, outputs, size, bias

    @property
    def stored(self) -> float:
        """Bytes of it, without bias."""
        return self.inputs * self.outputs * self.size

    def rounded(self, tape: Tape, x: Tensor) -> Rows | None:
        return None

    def forward(self, tape: Tape, x: Tensor, rows: Rows | None = None) -> Tensor:
        weight = self.dense(tape, x.size)  # noqa: F841  good for this product
        return matmul(tape, x.numbers / self.inputs, self.inputs, self.outputs, x.size)

    def backward(self, tape: Tape, gradient: Tensor, onto: Tensor | None = None) -> Tensor:
        weight = self.dense(tape, gradient.size)  # noqa: F841
        x = matmul(tape, gradient.numbers / self.outputs, self.outputs, self.inputs, gradient.size)
        return x if onto is None else onto

    def dense(self, tape: Tape, size: int) -> Tensor | None:
        """The weights as a product takes them; None where they are."""
        return None if size == self.size else tape.empty(self.inputs * self.outputs, size)


class LowRankBase(Base):
    def __init__(self, first: Base, second: Base):
        super().__init__(first.inputs, second.outputs, first.size, second.bias)
        self.first, self.second = first, second

    @property
    def stored(self) -> float:
        return self.first.stored + self.second.stored

    def forward(self, tape: Tape, x: Tensor, rows: Rows | None = None) -> Tensor:
        return self.second.forward(tape, self.first.forward(tape, x))

    def backward(self, tape: Tape, gradient: Tensor, onto: Tensor | None = None) -> Tensor:
        return self.first.backward(tape, self.second.backward(tape, gradient), onto)


class Int8Base(Base):
    """integers: products of int8 rows, or of floats."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, integers: bool = False):
        super().__init__(inputs, outputs, BYTE, bias)
        self.integers = integers

    @property
    def stored(self) -> float:
        return self.inputs * self.outputs + self.outputs * FLOAT

    def rounded(self, tape: Tape, x: Tensor) -> Rows | None:
        return _quantized(tape, x, self.inputs, _KEPT_COLUMNS) if self.integers else None

    def forward(self, tape: Tape, x: Tensor, rows: Rows | None = None) -> Tensor:
        if not self.integers:
            return super().forward(tape, x)
        rows = self.rounded(tape, x) if rows is None else rows
        y = tape.empty(x.numbers / self.inputs * self.outputs)
        return y if x.size == FLOAT else tape.empty(y.numbers, x.size)

    def backward(self, tape: Tape, gradient: Tensor, onto: Tensor | None = None) -> Tensor:
        if not self.integers:
            scaled = tape.like(gradient)  # noqa: F841
            return super().backward(tape, gradient, onto)
        rows = _quantized(tape, gradient, self.outputs, 0)  # noqa: F841
        if onto is not None and onto.size == FLOAT:
            return onto
        x = tape.empty(gradient.numbers / self.outputs * self.inputs)
        if onto is not None:
            return onto
        return x if gradient.size == FLOAT else tape.empty(x.numbers, gradient.size)


class FourBitBase(Base):
    """Codes of two weights in a byte; group: weights that share a scale, and a lowest value if there is one."""

    def __init__(self, inputs: int, outputs: int, group: int, lowest: bool = False, bias: bool = False):
        super().__init__(inputs, outputs, BYTE, bias)
        self.group, self.lowest = group, lowest

    @property
    def stored(self) -> float:
        groups = -(-self.inputs // self.group) * self.outputs
        return groups * (self.group / 2 + HALF * (1 + self.lowest)) + FLOAT

    def dense(self, tape: Tape, size: int) -> Tensor:
        padded = -(-self.inputs // self.group) * self.group * self.outputs
        places = tape.empty(padded / 2)  # int32, one for two weights
        found = tape.empty(padded)
        del places
        scales = tape.empty(padded / self.group), tape.empty(padded / self.group)
        del scales
        return found if size == FLOAT else tape.empty(padded, size)


class PackedBase(Base):
    """Codes of few bits as files have them, made dense for each product (`nn.quantized.packed`)."""

    def __init__(self, inputs: int, outputs: int, config: PackedConfig, bias: bool = False):
        super().__init__(inputs, outputs, BYTE, bias)
        self.config = config

    @property
    def stored(self) -> float:
        words = -(-self.inputs * self.config.bits // 32)
        return self.outputs * (words * FLOAT + self.config.groups(self.inputs) * group_bytes(self.config))

    def forward(self, tape: Tape, x: Tensor, rows: Rows | None = None) -> Tensor:
        rounded = None if self.config.activations is None else tape.like(x)  # noqa: F841
        return super().forward(tape, x, rows)

    def dense(self, tape: Tape, size: int) -> Tensor:
        weights = self.inputs * self.outputs
        codes = tape.empty(weights, BYTE)  # noqa: F841
        found = tape.empty(weights)
        return found if size == FLOAT else tape.empty(weights, size)


def group_bytes(config: PackedConfig) -> int:
    """Of a group's scale, and of its zero point."""
    return (FLOAT if config.scale == "float32" else HALF) + BYTE * (not config.symmetric)


def _quantized(tape: Tape, x: Tensor, width: int, kept: int) -> Rows:
    wide = x if x.size == FLOAT else tape.empty(x.numbers)  # noqa: F841
    count, kept = x.numbers / width, min(kept, width // 16)
    lines = -(-width // 64)
    codes = tape.empty(count * 64 * (lines + 1 - lines % 2), BYTE)
    return Rows([codes, tape.empty(count), tape.empty(count), tape.empty(count * kept + kept)])


class Frozen:
    """A quantized linear without an adapter: differentiable in x alone, keeps nothing."""

    def __init__(self, base: Base):
        self.base, self.inputs, self.outputs = base, base.inputs, base.outputs

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        x = cast(tape, x, tape.compute) if tape.compute != FLOAT else x
        y = self.base.forward(tape, x)
        tape.record([y], [x], lambda gradient: [self.base.backward(tape, gradient)])
        return y


class Adapted:
    """A base with an adapter A [rank, inputs], B [outputs, rank], and for DoRA a length for each output."""

    def __init__(self, tape: Tape, base: Base, rank: int, dora: bool = False, dropout: bool = False):
        self.base, self.rank, self.dropout = base, rank, dropout
        self.inputs, self.outputs = base.inputs, base.outputs
        shapes = ((rank, base.inputs), (base.outputs, rank))
        self.first, self.second = (parameter(tape, shape, True) for shape in shapes)
        self.magnitude = parameter(tape, (base.outputs,), True) if dora else None
        tape.adapters += FLOAT * (rank * (base.inputs + base.outputs) + dora * base.outputs)
        tape.stored += FLOAT * dora * base.outputs  # lengths of W's rows

    @property
    def plain(self) -> bool:
        """Whether it may be one of several that run as one."""
        return self.magnitude is None and not self.dropout

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        x = cast(tape, x, tape.compute) if tape.compute != FLOAT else x
        dropped = _drop(tape, x) if self.dropout and tape.training else None
        ratio = self._ratio(tape, x.size)
        first, second = (cast(tape, factor, x.size) for factor in (self.first, self.second))
        return self._adapted(tape, x, dropped, first, second, ratio)

    def _adapted(
        self, tape: Tape, x: Tensor, dropped: Tensor | None, first: Tensor, second: Tensor, ratio: Tensor | None
    ) -> Tensor:
        entering = x if dropped is None else dropped
        count, size = x.numbers / self.inputs, x.size
        inner = matmul(tape, count, self.inputs, self.rank, size)
        y = self.base.forward(tape, x)
        multiplied(tape, count, self.rank, self.outputs, size)
        unscaled = y if ratio is not None else None
        if ratio is not None and (self.base.bias or tape.gpu):
            y = tape.like(y)
        inputs = [x, dropped, first, second, ratio]
        if not tape.wants(*inputs):
            return y
        saved = [tape.save(each) for each in (entering, first, second, inner, ratio, unscaled) if each is not None]
        wants_x, drops, scales = x.node is not None, dropped is not None, ratio is not None
        del entering, inner, unscaled, x, dropped, first, second, ratio

        def backward(gradient: Tensor) -> list[Tensor | None]:
            held = [take() for take in saved]  # noqa: F841
            ratio_gradient = None
            if scales:
                product = tape.like(gradient)
                ratio_gradient = tape.empty(self.outputs, size)
                del product
                gradient = tape.like(gradient)
            inner_gradient = matmul(tape, count, self.outputs, self.rank, size)
            second_gradient = across(tape, count, self.rank, self.outputs, size)
            first_gradient = across(tape, count, self.rank, self.inputs, size)
            x_gradient = self.base.backward(tape, gradient) if wants_x else None
            if wants_x:
                multiplied(tape, count, self.rank, self.inputs, size)
            dropped_gradient = tape.empty(count * self.inputs, size) if drops and wants_x else None
            del inner_gradient
            return [x_gradient, dropped_gradient, first_gradient, second_gradient, ratio_gradient]

        tape.record([y], inputs, backward)
        return y

    def _ratio(self, tape: Tape, size: int) -> Tensor | None:
        if self.magnitude is None:
            return None
        with tape.recording(False):
            if tape.compute != FLOAT:  # torch keeps what it casts of trained weights
                tape.cast_once(self.first), tape.cast_once(self.second)
            rows = Tensor(None, self.rank * self.inputs, tape.compute)
            crossed = self.base.forward(tape, rows)
            del crossed
            multiplied(tape, self.rank, self.inputs, self.rank, tape.compute)
            multiplied(tape, self.outputs, self.rank, self.rank, tape.compute)
        norms = tape.empty(self.outputs)
        ratio = tape.empty(self.outputs)
        saved = tape.save(norms)

        def backward(gradient: Tensor) -> list[Tensor | None]:
            held = saved()  # noqa: F841
            return [tape.empty(self.outputs)]

        tape.record([ratio], [self.magnitude], backward)
        return cast(tape, ratio, size)


def across(tape: Tape, count: float, rank: int, width: float, size: int, within: float = 0) -> Tensor:
    """thinᵀ · wide -> [rank, width]. within: as `matmul` has it."""
    return matmul(tape, rank, count, width, size, transposed=True, within=within)


def _drop(tape: Tape, x: Tensor) -> Tensor:
    """Dropout, which keeps its mask in x's own format."""
    mask = tape.like(x)
    y = tape.like(x)
    saved = tape.save(mask) if tape.wants(x) else None

    def backward(gradient: Tensor) -> list[Tensor | None]:
        held = saved() if saved is not None else None  # noqa: F841
        return [tape.like(gradient)]

    tape.record([y], [x], backward)
    return y


def bundled(tape: Tape, linears: Sequence[Part], x: Tensor) -> list[Tensor]:
    """What each of the linears makes of x; adapted ones as one operation (`nn.bundle`)."""
    members = [linear for linear in linears if isinstance(linear, Adapted) and linear.plain]
    if len(members) < len(linears):
        return [linear(tape, x) for linear in linears]
    x = cast(tape, x, tape.compute) if tape.compute != FLOAT else x
    factors = [cast(tape, each, x.size) for part in ("first", "second") for each in (getattr(m, part) for m in members)]
    return _bundle(tape, members, x, factors)


def _bundle(tape: Tape, members: list[Adapted], x: Tensor, factors: list[Tensor]) -> list[Tensor]:
    count, size, inputs = x.numbers / members[0].inputs, x.size, members[0].inputs
    ranks = sum(member.rank for member in members)
    firsts = tape.empty(ranks * inputs, size)
    inner = matmul(tape, count, inputs, ranks, size)
    del firsts
    outputs, rows = [], None
    for member in members:
        rows = member.base.rounded(tape, x) if rows is None else rows
        outputs.append(member.base.forward(tape, x, rows))
        multiplied(tape, count, member.rank, member.outputs, size, within=ranks)
    if not tape.wants(x, *factors):
        return outputs
    saved = [tape.save(each) for each in (x, inner, *factors)]
    wants_x = x.node is not None

    def backward(*gradients: Tensor) -> list[Tensor | None]:
        held = [take() for take in saved]  # noqa: F841
        inner_gradient = tape.empty(count * ranks, size)
        second_gradients: list[Tensor | None] = []
        for member in members:
            product = matmul(tape, count, member.outputs, member.rank, size)
            del product
            second_gradients.append(across(tape, count, member.rank, member.outputs, size, ranks))
        first_gradient = across(tape, count, ranks, inputs, size)
        first_gradients = [first_gradient.part(member.rank * inputs) for member in members]
        x_gradient = None
        if wants_x:
            firsts = tape.empty(ranks * inputs, size)  # noqa: F841
            multiplied(tape, count, ranks, inputs, size)
            for member, gradient in zip(members, gradients, strict=True):
                x_gradient = member.base.backward(tape, gradient, x_gradient)
        del inner_gradient
        return [x_gradient, *first_gradients, *second_gradients]

    tape.record(outputs, [x, *factors], backward)
    return outputs
