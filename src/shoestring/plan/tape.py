"""Autograd without numbers: what a program's tensors take, and until when, as torch would have it. Torch-free.

A `Tensor` here has a size and nothing in it. Its bytes are live as long as something refers to its `Storage`, as with
torch's own, so code that makes and drops tensors where a layer of `nn` does holds as many bytes at every moment. What
an operation needs going backward is what its `backward` refers to. `Memory` counts, phase by phase.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

FLOAT, HALF, INDEX, BYTE = 4, 2, 8, 1  # bytes of a number
FIRST_FREE = float("inf")


class Multiplied(NamedTuple):
    """A kind of product. transposed: whether the left operand lies the other way round; within: a matrix of so many
    columns, a part of which that is; backwards: whether it is of a pass backward."""

    rows: float
    inputs: float
    outputs: float
    transposed: bool
    backwards: bool
    within: float

    def has(self, tokens: float) -> bool:
        """Whether it goes over so many tokens."""
        return tokens in (self.rows, self.inputs)


@dataclass
class Phase:
    """name: as a person reads it. kept, gradients: live bytes when it began. peak: the most that were live in it."""

    name: str
    kept: float
    gradients: float
    peak: float
    gradients_at_peak: float = 0.0


class Memory:
    """live: bytes now; gradients: of weights, among them. phases: in their order; new tensors count in the latest.

    made: bytes of all tensors until now, which is what was written; tensors: how many they were.
    """

    def __init__(self) -> None:
        self.live = 0.0
        self.gradients = 0.0
        self.made = 0.0
        self.tensors = 0
        self.phase = Phase("", 0.0, 0.0, 0.0)
        self.phases = [self.phase]

    def begin(self, name: str) -> None:
        self.phase = Phase(name, self.live, self.gradients, self.live, self.gradients)
        self.phases.append(self.phase)

    def scratch(self, bytes: float) -> None:
        """Taken and given back at once."""
        phase = self.phase
        if self.live + bytes > phase.peak:
            phase.peak, phase.gradients_at_peak = self.live + bytes, self.gradients


class Storage:
    """Bytes that are live while something refers to this."""

    __slots__ = ("bytes", "memory")

    def __init__(self, memory: Memory, bytes: float):
        self.memory, self.bytes = memory, bytes
        memory.live += bytes
        memory.made += bytes
        memory.tensors += 1
        memory.scratch(0.0)

    def __del__(self) -> None:
        self.memory.live -= self.bytes


class Tensor:
    """numbers: how many; size: bytes of each. node: what made it, None where it wants no gradient.

    whole: not a view of another tensor, which would keep torch from adding to it in place. ordered: as its shape is.
    """

    __slots__ = ("node", "numbers", "ordered", "output", "size", "storage", "whole")

    def __init__(self, storage: Storage | None, numbers: float, size: int, node: Node | None = None, output: int = 0):
        self.storage, self.numbers, self.size, self.node, self.output = storage, numbers, size, node, output
        self.whole = self.ordered = True

    @property
    def bytes(self) -> float:
        return self.numbers * self.size

    def detach(self) -> Tensor:
        return Tensor(self.storage, self.numbers, self.size)

    def part(self, numbers: float) -> Tensor:
        """A view of so many of its numbers."""
        view = Tensor(self.storage, numbers, self.size, self.node, self.output)
        view.whole = False
        return view


Gradients = Sequence["Tensor | None"]
Saved = Callable[[], Tensor]


class Node:
    """A recorded operation. backward(gradients of its outputs) -> gradients of its inputs."""

    __slots__ = ("backward", "gradients", "next", "order", "waits")

    def __init__(
        self, order: float, inputs: Sequence[Tensor | None], outputs: int, backward: Callable[..., Gradients] | None
    ):
        self.order = order
        self.next = [(None, 0) if x is None or x.node is None else (x.node, x.output) for x in inputs]
        self.backward = backward
        self.gradients: list[Tensor | None] = [None] * outputs
        self.waits = 0  # for gradients from so many places

    def __lt__(self, other: Node) -> bool:  # the latest first
        return self.order > other.order

    def take(self) -> list[Tensor | None]:
        gradients, self.gradients = self.gradients, [None] * len(self.gradients)
        return gradients

    def run(self) -> Gradients:
        assert self.backward is not None, "a graph goes backward once"
        made = self.backward(*self.take())
        self.backward = None
        return made


@dataclass(frozen=True)
class Weight:
    """One that is trained. in_block: of the decoder."""

    shape: tuple[int, ...]
    in_block: bool

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


class Leaf(Node):
    """Where a graph ends: a weight that is trained, or a tensor whose gradient is asked for. It adds gradients up.

    beside: of a weight that moves as soon as its gradient is there, which is then gone: bytes that this takes.
    """

    __slots__ = ("beside", "grad", "memory")

    def __init__(self, memory: Memory | None = None, beside: float | None = None):
        super().__init__(FIRST_FREE, (), 1, None)
        self.grad: Tensor | None = None
        self.memory = memory  # counts gradients of weights
        self.beside = beside

    def run(self) -> Gradients:
        (gradient,) = self.take()
        if self.beside is not None and self.memory is not None:
            self.memory.scratch(self.beside)
        elif self.grad is None and gradient is not None:
            self.grad = gradient
            if self.memory is not None:
                self.memory.gradients += gradient.bytes
        return ()


class Tape:
    """Records operations while `grad`. onednn: whether that library multiplies matrices of float32. gpu: whether all is
    on one, where torch computes what our kernels do on a CPU, and attention is one kernel.

    selective: cheap parts are made again going backward. compute: bytes of the numbers that products run in;
    bfloat: whether those of two are bfloat16. gathered: weights come in the format of products (`plan.divided`).
    parameters: all weights, whose bytes are not live here but are added up: matrices, of blocks; adapters; stored, of
    everything else. trained: those of them that are; beside: what moving one takes, where they move going backward.
    products: of half precision; backwards: whether a pass backward is running.
    """

    def __init__(self, memory: Memory, onednn: bool = False, threads: int = 1):
        self.memory, self.onednn, self.threads = memory, onednn, threads
        self.gpu = False
        self.grad = self.selective = self.training = True
        self.compute, self.bfloat = FLOAT, True
        self.gathered = False
        self.recorded = 0
        self.parameters: list[Tensor] = []
        self.trained: list[Weight] = []
        self.in_block = False
        self.beside: Callable[[Weight], float] | None = None
        self.backwards = False
        self.products: set[Multiplied] = set()
        self.matrices = self.adapters = self.stored = 0.0
        self._save: Callable[[Tensor], Saved] = _keep
        self._cast: dict[int, Tensor] = {}

    def empty(self, numbers: float, size: int = FLOAT) -> Tensor:
        return Tensor(Storage(self.memory, numbers * size) if numbers else None, numbers, size)

    def like(self, x: Tensor) -> Tensor:
        return self.empty(x.numbers, x.size)

    def scratch(self, numbers: float, size: int = FLOAT) -> None:
        self.memory.scratch(numbers * size)

    def wants(self, *inputs: Tensor | None) -> bool:
        """Whether an operation on these is recorded."""
        return self.grad and any(x is not None and x.node is not None for x in inputs)

    def record(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor | None], backward: Callable[..., Gradients]
    ) -> None:
        if self.wants(*inputs):
            self.recorded += 1
            node = Node(self.recorded, inputs, len(outputs), backward)
            for number, y in enumerate(outputs):
                y.node, y.output = node, number

    def save(self, x: Tensor) -> Saved:
        """x for the backward pass: what `backward` calls to have it."""
        return self._save(x)

    @contextmanager
    def _having(self, name: str, value: object) -> Iterator[None]:
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)

    def saving(self, save: Callable[[Tensor], Saved]) -> AbstractContextManager[None]:
        """Inside, `save` says what becomes of saved tensors, as torch's hooks do: the innermost alone is asked."""
        return self._having("_save", save)

    def recording(self, wanted: bool) -> AbstractContextManager[None]:
        """Inside, operations are recorded, or not."""
        return self._having("grad", wanted)

    def turned(self, backwards: bool) -> AbstractContextManager[None]:
        """Inside, products are of a pass backward, or not."""
        return self._having("backwards", backwards)

    def recipes(self, wanted: bool) -> AbstractContextManager[None]:
        """Inside, cheap parts are made again going backward, or not: as for what is made again as a whole."""
        return self._having("selective", wanted)

    @contextmanager
    def autocast(self, compute: int) -> Iterator[None]:
        """Inside, products run in numbers of so many bytes. Weights cast for it go with the outermost one."""
        try:
            with self._having("compute", compute):
                yield
        finally:  # also where a second run ends before its end
            if self.compute == FLOAT:
                self._cast.clear()

    def cast_once(self, weight: Tensor) -> Tensor:
        """A weight in the format of products; a trained one is cast once and kept."""
        if weight.size == self.compute:
            return weight
        found = self._cast.get(id(weight))
        if found is None:
            found = Tensor(None, weight.numbers, self.compute)
            if not self.gathered:
                found = self.empty(weight.numbers, self.compute)
            self.record([found], [weight], lambda gradient: [self.empty(gradient.numbers)])
            if weight.node is not None:
                self._cast[id(weight)] = found
        return found

    def gradients_of(self, output: Tensor, gradient: Tensor | None, wanted: Sequence[Node]) -> list[Tensor | None]:
        """Of `output` for these leaves alone, which add nothing up."""
        found: dict[Node, Tensor | None] = {}
        with self.turned(True):
            self._run([output], [gradient], found, set(wanted))
        return [found.pop(node, None) for node in wanted]

    def backward(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """From these outputs to all leaves."""
        with self.turned(True):
            self._run(outputs, gradients, {}, set())

    def _run(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], found: dict[Node, Tensor | None],
        wanted: set[Node],
    ) -> None:  # fmt: skip
        roots = []
        for output, gradient in zip(outputs, gradients, strict=True):
            if output.node is not None:
                output.node.gradients[output.output] = gradient
                roots.append(output.node)
        del outputs, gradients, output, gradient
        _count(roots)
        ready = list(dict.fromkeys(roots))
        ready = [node for node in ready if node.waits == 0]
        heapq.heapify(ready)
        roots.clear()
        while ready:
            node = heapq.heappop(ready)
            if node in wanted:
                (found[node],) = node.take()
                continue
            following = node.next
            made: list[Tensor | None] = list(node.run())
            del node
            for number, (after, place) in enumerate(following):
                if after is None:
                    continue
                one, made[number] = made[number], None
                if one is not None:
                    after.gradients[place] = self._sum(after.gradients[place], one)
                del one
                after.waits -= 1
                if after.waits == 0:
                    heapq.heappush(ready, after)

    def _sum(self, old: Tensor | None, new: Tensor) -> Tensor:
        if old is None:
            return new
        if old.whole and old.storage is not None and sys.getrefcount(old.storage) == 2:
            return old
        return self.like(old)


def _keep(x: Tensor) -> Saved:
    kept = x.detach()
    return lambda: kept


def _count(roots: Sequence[Node]) -> None:
    """How many gradients each node that can be reached will get."""
    seen, found = set(roots), list(roots)
    while found:
        for after, _ in found.pop().next:
            if after is not None:
                after.waits += 1
                if after not in seen:
                    seen.add(after)
                    found.append(after)
