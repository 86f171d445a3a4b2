"""What blocks are made of, without numbers: norms, linears, rotary positions, and what autograd does between them.

Each part makes and drops its tensors where its namesake in `nn` does (see `plan.tape`). Under autocast (`tape.compute`)
matrices are cast as torch casts them: a trained one once until the tape says otherwise, anything else every time.
Torch-free.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from shoestring.plan.tape import BYTE, FLOAT, HALF, Leaf, Multiplied, Tape, Tensor, Weight

WORTHWHILE = 1 << 20  # multiply-adds of a product from which on `core.matmul` chooses a library
# Of oneDNN's products of float32, for each thread: so many rows and columns of the left operand are copied at a time;
# where both are many, sums wait in so many numbers.
_PACKED_ROWS, _PACKED_COLUMNS, _SUMS = 64, 1024, 266_000
_PARTS = 16  # of the rows of a norm, each with a gradient of the weight (`kernels.norm`)
RANDOM_STATE = 5056  # bytes of torch's generator, which a checkpoint keeps


class Part(Protocol):
    """x -> y, [tokens, inputs] -> [tokens, outputs]."""

    inputs: int
    outputs: int

    def __call__(self, tape: Tape, x: Tensor) -> Tensor: ...


def parameter(tape: Tape, shape: tuple[int, ...], trained: bool, size: int = FLOAT) -> Tensor:
    """A weight. Its own bytes are counted elsewhere, its gradient's here."""
    leaf = None
    if trained:
        tape.trained.append(Weight(shape, tape.in_block))
        leaf = Leaf(tape.memory, None if tape.beside is None else tape.beside(tape.trained[-1]))
    weight = Tensor(None, math.prod(shape), size, leaf)
    tape.parameters.append(weight)
    return weight


# --- single operations --------------------------------------------------------------------------------------------


def cast(tape: Tape, x: Tensor, size: int) -> Tensor:
    """x in numbers of this size; x itself where they are."""
    if x.size == size:
        return x
    y, before = tape.empty(x.numbers, size), x.size
    tape.record([y], [x], lambda gradient: [tape.empty(gradient.numbers, before)])
    return y


def wide(tape: Tape, x: Tensor) -> Tensor:
    """x in float32, without a graph."""
    return x if x.size == FLOAT else tape.empty(x.numbers)


def matmul(
    tape: Tape, rows: float, inputs: float, outputs: float, size: int = FLOAT, transposed: bool = False,
    within: float = 0,
) -> Tensor:  # fmt: skip
    """[rows, inputs] · [inputs, outputs]. transposed: the first operand lies the other way round in memory. within: a
    matrix of so many columns, a part of which the first operand is."""
    multiplied(tape, rows, inputs, outputs, size, transposed, within)
    if not tape.onednn or size != FLOAT or rows * inputs * outputs < WORTHWHILE:
        return tape.empty(rows * outputs, size)
    copy = tape.empty(rows * inputs) if transposed else None  # noqa: F841  oneDNN reads whole rows
    y = tape.empty(rows * outputs)
    waits = _SUMS if rows > _PACKED_COLUMNS and inputs > _PACKED_COLUMNS else 0
    tape.scratch(tape.threads * (_PACKED_ROWS * min(inputs, _PACKED_COLUMNS) + waits))
    return y


def multiplied(
    tape: Tape, rows: float, inputs: float, outputs: float, size: int, transposed: bool = False, within: float = 0
) -> None:
    """The same product, added to what is there."""
    if size == HALF:
        tape.products.add(Multiplied(rows, inputs, outputs, transposed, tape.backwards, within))


def add(tape: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x + y, in the wider of their formats."""
    total = tape.empty(x.numbers, max(x.size, y.size))
    if x.size != y.size:
        tape.scratch(x.numbers)  # the narrower of them, widened
    sizes = x.size, y.size
    tape.record([total], [x, y], lambda gradient: [_narrowed(tape, gradient, size) for size in sizes])
    return total


def _narrowed(tape: Tape, gradient: Tensor, size: int) -> Tensor:
    return gradient if gradient.size == size else tape.empty(gradient.numbers, size)


def split(tape: Tape, x: Tensor, numbers: list[float]) -> list[Tensor]:
    """Views of parts of x; their gradients are copied into one."""
    parts = [x.detach().part(each) for each in numbers]
    whole, size = x.numbers, x.size
    tape.record(parts, [x], lambda *gradients: [tape.empty(whole, size)])
    return parts


def cat(tape: Tape, parts: list[Tensor]) -> Tensor:
    """Their gradients are views of its own."""
    numbers = [part.numbers for part in parts]
    y = tape.empty(sum(numbers), parts[0].size)
    tape.record([y], parts, lambda gradient: [gradient.detach().part(each) for each in numbers])
    return y


def activate(tape: Tape, x: Tensor, keeps_input: bool = True) -> Tensor:
    """A function of each number, whose gradient wants x, or else the result."""
    y = tape.like(x)
    saved = tape.save(x if keeps_input else y) if tape.wants(x) else None

    def backward(gradient: Tensor) -> list[Tensor | None]:
        kept = saved() if saved is not None else None  # noqa: F841
        return [tape.like(gradient)]

    tape.record([y], [x], backward)
    return y


def rotate(tape: Tape, x: Tensor, tables: tuple[Tensor, Tensor] | None) -> Tensor:
    """tables: cosines and sines; x itself without."""
    if tables is None:
        return x
    turned = _turn(tape, x)
    saved = [tape.save(table) for table in tables] if tape.wants(x) else []

    def backward(gradient: Tensor) -> list[Tensor | None]:
        held = [take() for take in saved]  # noqa: F841
        return [_turn(tape, gradient), None, None]

    tape.record([turned], [x, None, None], backward)
    return turned


def _turn(tape: Tape, x: Tensor) -> Tensor:
    if x.size == FLOAT or (tape.bfloat and not tape.gpu):  # in one pass (`kernels.rope`)
        return tape.like(x)
    x32 = wide(tape, x)
    out = tape.like(x32)  # noqa: F841
    return tape.like(x)


# --- norms and linears --------------------------------------------------------------------------------------------


class Norm:
    """RMSNorm over as many numbers as its weight has."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        y, scale = self._normalize(tape, x)
        if not tape.wants(x, self.weight):
            return y
        saved = tape.save(x), tape.save(scale)

        def backward(gradient: Tensor) -> list[Tensor | None]:
            x, scale = (take() for take in saved)
            gradient = gradient if gradient.ordered else tape.like(gradient)
            if x.size == gradient.size == FLOAT and not tape.gpu:
                return self._fused_backward(tape, x)
            g32 = wide(tape, gradient)  # noqa: F841
            normed = tape.empty(x.numbers)
            weight_gradient = None
            if self.weight.node is not None:
                product = tape.empty(x.numbers)
                weight_gradient = tape.empty(self.weight.numbers)
                del product
            inner = tape.empty(x.numbers)
            correction = self._dot(tape, normed)  # noqa: F841
            return [inner if x.size == FLOAT else tape.like(x), weight_gradient]

        tape.record([y], [x, self.weight], backward)
        return y

    def _fused_backward(self, tape: Tape, x: Tensor) -> list[Tensor | None]:
        x_gradient = tape.empty(x.numbers)
        if self.weight.node is None:
            return [x_gradient, None]
        sums = tape.empty(_PARTS * self.weight.numbers)
        weight_gradient = tape.empty(self.weight.numbers)
        del sums
        return [x_gradient, weight_gradient]

    def again(self, tape: Tape, x: Tensor) -> Tensor:
        return self._normalize(tape, x)[0]

    def _normalize(self, tape: Tape, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.size == FLOAT and not tape.gpu:
            return tape.empty(x.numbers), tape.empty(x.numbers / self.weight.numbers)
        x32 = wide(tape, x)
        squares = self._dot(tape, x32)
        scale = tape.like(squares)
        del squares
        normed = tape.like(x32)
        return (normed if x.size == FLOAT else tape.like(x)), scale

    def _dot(self, tape: Tape, x: Tensor) -> Tensor:
        product = tape.like(x)  # torch's vecdot writes it
        return tape.empty(product.numbers / self.weight.numbers)


class Linear:
    """x·Wᵀ + b, dense."""

    def __init__(self, inputs: int, outputs: int, weight: Tensor, bias: Tensor | None = None):
        self.inputs, self.outputs, self.weight, self.bias = inputs, outputs, weight, bias

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if tape.compute != FLOAT:
            weight = tape.cast_once(weight)
            x = cast(tape, x, tape.compute)
            bias = None if bias is None else tape.cast_once(bias)
        size, rows, wants_x = x.size, x.numbers / self.inputs, x.node is not None
        # torch's own linear saves before it multiplies, and going backward lets go of x at the end.
        plain = tape.gpu or tape.compute != FLOAT or rows * self.inputs * self.outputs < WORTHWHILE
        y = None if plain else matmul(tape, rows, self.inputs, self.outputs, size)
        x_saved = tape.save(x) if tape.wants(weight) else None
        weight_saved = tape.save(weight) if tape.wants(x) else None
        y = matmul(tape, rows, self.inputs, self.outputs, size) if y is None else y

        def backward(gradient: Tensor) -> list[Tensor | None]:
            x = None if x_saved is None else x_saved()
            weight = None if weight_saved is None else weight_saved()  # noqa: F841
            x_gradient = weight_gradient = bias_gradient = None
            flat = gradient if gradient.ordered else tape.like(gradient)  # noqa: F841
            if plain and wants_x:
                x_gradient = matmul(tape, rows, self.outputs, self.inputs, size).part(rows * self.inputs)
            if x is not None:
                weight_gradient = matmul(tape, self.outputs, rows, self.inputs, size, transposed=True)
                del x
            if wants_x and x_gradient is None:
                again = None if gradient.ordered else tape.like(gradient)
                x_gradient = matmul(tape, rows, self.outputs, self.inputs, size).part(rows * self.inputs)
                del again
            if self.bias is not None and self.bias.node is not None:
                bias_gradient = tape.empty(self.outputs, size)
            return [x_gradient, weight_gradient, bias_gradient]

        tape.record([y], [x, weight, bias], backward)
        return y


class LowRank:
    """B(A x) + b."""

    def __init__(self, first: Linear, second: Linear):
        self.first, self.second = first, second
        self.inputs, self.outputs = first.inputs, second.outputs

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        return self.second(tape, self.first(tape, x))


# --- what is made again instead of kept ---------------------------------------------------------------------------


class _Recipe:
    """As `nn.recompute` has it: a tensor made once for all that saved it."""

    def __init__(self, tape: Tape, value: Tensor, make: Callable[..., Tensor], inputs: tuple[Tensor, ...]):
        self.tape, self.make, self.inputs = tape, make, [x.detach() for x in inputs]
        self.storage, self.numbers, self.size = id(value.storage), value.numbers, value.size
        self.consumers = 0
        self.value: Tensor | None = None

    def save(self, x: Tensor) -> Callable[[], Tensor]:
        if (id(x.storage), x.numbers, x.size) == (self.storage, self.numbers, self.size):
            self.consumers += 1
            return self.take
        kept = x.detach()
        return lambda: kept

    def take(self) -> Tensor:
        if self.value is None:
            with self.tape.recording(False):
                self.value = self.make(self.tape, *self.inputs)
        value = self.value
        self.consumers -= 1
        if self.consumers <= 0:
            self.value = None
        return value


@contextmanager
def recomputing(tape: Tape, value: Tensor, make: Callable[..., Tensor], *inputs: Tensor) -> Iterator[None]:
    """Inside, whatever saves `value` keeps `inputs` and makes it again. tape.selective says whether."""
    if not (tape.selective and tape.wants(value)):
        yield
        return
    with tape.saving(_Recipe(tape, value, make, inputs).save):
        yield


def checkpointed(tape: Tape, function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), of which nothing but the inputs is kept: going backward it runs again (torch's checkpoint
    without reentry)."""
    if not tape.grad:
        return function(*inputs)
    random, compute = tape.empty(0 if tape.gpu else RANDOM_STATE, BYTE), tape.compute  # a GPU's waits in the process
    again: list[Tensor | None] = []
    places = 0

    class Enough(Exception):
        """All is there that was saved: what comes after it does not run again."""

    def hide(x: Tensor) -> Callable[[], Tensor]:
        nonlocal places
        number, places = places, places + 1
        return lambda: found(number)

    def found(number: int) -> Tensor:
        if not again:
            now = tape.like(random)  # noqa: F841
            with (
                contextlib.suppress(Enough), tape.recording(True), tape.recipes(False), tape.saving(show),
                tape.autocast(compute), tape.turned(False),
            ):  # fmt: skip
                function(*inputs)
        x, again[number] = again[number], None
        assert x is not None, "a saved tensor is taken once"
        return x

    def show(x: Tensor) -> Callable[[], Tensor]:
        kept = x.detach()  # with its node, what saved its own output would never go
        again.append(kept)
        if len(again) == places:
            raise Enough
        return lambda: kept

    with tape.saving(hide):
        return function(*inputs)
