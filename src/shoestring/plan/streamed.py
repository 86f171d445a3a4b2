"""One optimizer step of the streamed engine, phase by phase (`offload.engine`): up, the head, down. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from shoestring.nn.head_blocks import block_rows
from shoestring.plan.attention import Context
from shoestring.plan.heads import frozen_head_loss
from shoestring.plan.model import Model
from shoestring.plan.parts import cat
from shoestring.plan.tape import BYTE, INDEX, Leaf, Tape, Tensor

_BATCH = 4  # arrays of a batch, of integers


@dataclass
class _Part:
    """A microbatch on its way."""

    context: Context
    x: Tensor | None
    gradient: Tensor | None = None
    kept: list[Tensor | None] = field(default_factory=list)


def streamed_step(
    tape: Tape, model: Model, rows: int, length: int, microbatches: int, compute: int, source: int, spilled: bool,
    labels: float | None, documents: bool, blocks: Callable[[Tape], Iterator[Tensor | None]], headed: bool = True,
) -> None:  # fmt: skip
    """source: bytes of a number in the model's files. blocks: of the head. headed: whether the head is here; else the
    gradients of the last layer's outputs come from where it is."""
    parts = []
    with tape.recording(False):
        for _ in range(microbatches):
            context = model.context(tape, rows, length, documents)
            parts.append(_Part(context, model.embed_from_disk(tape, context, source)))
    with tape.autocast(compute):
        _up(tape, model, parts, spilled)
        if headed:
            _top(tape, model, parts, labels, blocks)
        else:
            _from_elsewhere(tape, parts)
        _down(tape, model, parts, spilled)


def measured_pass(
    tape: Tape, model: Model, rows: int, length: int, compute: int, source: int, labels: float | None, documents: bool,
    blocks: Callable[[Tape], Iterator[Tensor | None]],
) -> None:  # fmt: skip
    """Held-out loss: all rows at once, since each pass reads the whole model."""
    config = model.config
    tape.memory.begin("the first hidden states")
    with tape.recording(False), tape.autocast(compute):
        context = model.context(tape, rows, length, documents)
        x = model.embed_from_disk(tape, context, source)
        for index in model.order:
            tape.memory.begin("one block's work")
            x = model.blocks[index](tape, x, context)
        hidden = model.norm(tape, x)
        del x
        tape.memory.begin("the head and its loss")
        softcap = config.logit_softcap is not None
        frozen_head_loss(tape, hidden, blocks, config.vocabulary, config.width, softcap, labels, model.integers)


def scored_pass(tape: Tape, model: Model, rows: int, length: int, documents: bool) -> None:
    """The same of a model in memory, all of it frozen."""
    tape.memory.begin("the first hidden states")
    with tape.recording(False):
        hidden = model.forward(tape, model.context(tape, rows, length, documents), "selective")
        model.loss(tape, hidden, None)


def _up(tape: Tape, model: Model, parts: list[_Part], spilled: bool) -> None:
    with tape.recording(False), tape.recipes(False):
        for index in model.order:
            tape.memory.begin("one block's work")
            for number, part in enumerate(parts):
                part.kept.append(None if spilled else part.x)
                assert part.x is not None
                if _tells(number, parts):
                    part.x = model.blocks[index](tape, part.x, part.context)
                else:
                    part.x = tape.like(part.x)


def _top(
    tape: Tape, model: Model, parts: list[_Part], labels: float | None,
    blocks: Callable[[Tape], Iterator[Tensor | None]],
) -> None:  # fmt: skip
    """The loss of all parts; leaves in each the gradient of its last layer's output."""
    tape.memory.begin("the head and its loss")
    config, ends = model.config, []
    for part in parts:
        assert part.x is not None
        end = part.x.detach()
        end.node = Leaf()
        ends.append(end)
    hidden = [model.norm(tape, end) for end in ends]
    merged = []
    if len(parts) > 1:
        together = cat(tape, hidden)
        merged = [tape.empty(together.numbers / config.width, INDEX) for _ in range(_BATCH)]
        hidden = [together]
        del together
    softcap = config.logit_softcap is not None
    counts = tape.empty(sum(part.context.tokens for part in parts), BYTE)  # whether each label does
    sizes = config.vocabulary, config.width
    loss = frozen_head_loss(tape, hidden[0], blocks, *sizes, softcap, labels, model.integers)
    del counts
    gradients = tape.gradients_of(loss, None, [end.node for end in ends if end.node is not None])
    for part, gradient in zip(parts, gradients, strict=True):
        part.x, part.gradient = None, gradient
    del merged


def _from_elsewhere(tape: Tape, parts: list[_Part]) -> None:
    for part in parts:
        assert part.x is not None
        part.gradient = tape.like(part.x)
        part.x = None


def kept_by_block(tape: Tape, model: Model, rows: int, length: int, compute: int, documents: bool) -> float:
    """Bytes that a block which does not run again keeps of a microbatch until it goes backward, beside its input."""
    with tape.autocast(compute):
        context = model.context(tape, rows, length, documents)
        x = tape.empty(rows * length * model.config.width)
        x.node, before = Leaf(), tape.memory.live
        y = model.blocks[0](tape, x, context)
        return tape.memory.live - before - y.bytes


def _down(tape: Tape, model: Model, parts: list[_Part], spilled: bool) -> None:
    for position in range(len(model.order) - 1, -1, -1):
        tape.memory.begin("one block's work")
        for number, part in enumerate(parts):
            if _tells(number, parts):
                _down_one(tape, model, part, position)
            else:
                part.kept.pop()
                part.gradient = part.gradient if part.gradient is None else tape.like(part.gradient)


def _tells(number: int, parts: list[_Part]) -> bool:
    """Whether this part must be walked: the others take no more than the first two or the last."""
    return number < 2 or number == len(parts) - 1


def _down_one(tape: Tape, model: Model, part: _Part, position: int) -> None:
    kept = part.kept.pop()
    entering = tape.empty(part.context.tokens * model.config.width) if kept is None else kept.detach()
    leaf = Leaf()
    if position:
        entering.node = leaf
    del kept
    with tape.recipes(False):
        y = model.blocks[model.order[position]](tape, entering, part.context)
    if y.node is not None:
        tape.backward([y], [part.gradient])
    if leaf.grad is not None:
        part.gradient = leaf.grad


def streamed_blocks(
    vocabulary: int, width: int, source: int, integers: bool = False
) -> Callable[[Tape], Iterator[Tensor | None]]:
    """Blocks of the head in the format of products, made of those that came from disk."""
    rows = block_rows(width)

    def blocks(tape: Tape) -> Iterator[Tensor | None]:
        for start in range(0, vocabulary, rows):
            size = min(rows, vocabulary - start) * width
            yield None if integers or source == tape.compute else tape.empty(size, tape.compute)

    return blocks
