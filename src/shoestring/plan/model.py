"""A decoder without numbers: embedding, blocks in their order, final norm (`models.decoder`). Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from shoestring.models.config import ModelConfig
from shoestring.nn.config import Recompute, RopeConfig, block_order
from shoestring.nn.head_blocks import block_rows
from shoestring.plan.attention import Context
from shoestring.plan.blocks import Block, Maker, Training
from shoestring.plan.convolution import Convolution
from shoestring.plan.heads import frozen_head_loss, trained_head_loss
from shoestring.plan.parts import activate, add, checkpointed
from shoestring.plan.reversible import run_reversible
from shoestring.plan.tape import BYTE, FLOAT, Tape, Tensor


class Model:
    """Of a config, as `training` has it. Its weights are not counted here, their gradients are."""

    def __init__(self, tape: Tape, config: ModelConfig, training: Training):
        make = Maker(tape, config, training)
        table = config.vocabulary, config.width
        self.config, self.training = config, training
        self.integers = training.integers and not training.full  # of the head too
        self.embedding = make.weight(*table)
        self.head = self.embedding if config.tied_head else make.weight(*table)
        self.convolution = None
        if (reach := config.embedding_convolution) is not None:
            self.convolution = Convolution(make.weight(reach - 1, config.width), config.width)
        self.positions = make.weight(config.context, config.width) if config.has_learned_positions else None
        self.adapter = None
        if config.input_adapter is not None:
            external, inner = config.input_adapter.external_width, config.input_adapter.width
            self.adapter = make.dense("", external, inner), make.dense("", inner, config.width)
        before = tape.matrices
        self.blocks = [Block(tape, config, training, index) for index in range(config.unique_layers)]
        self.matrices = (tape.matrices - before) / config.unique_layers
        self.order = block_order(config.layers, config.sharing)
        self.norm = make.norm(config.width)

    def context(self, tape: Tape, rows: int, length: int, documents: bool = False) -> Context:
        """With tables of rotary positions."""
        if not isinstance(self.config.position, RopeConfig):
            return Context(rows, length, None, documents)
        half = self.config.attention.rotary_width / 2 * rows * length
        positions = tape.empty(rows * length)
        angles = tape.empty(half)  # noqa: F841
        del positions
        return Context(rows, length, (tape.empty(half), tape.empty(half)), documents)

    def embed(self, tape: Tape, context: Context) -> Tensor:
        table = self.embedding.numbers
        x = tape.empty(context.tokens * self.config.width)
        tape.record([x], [self.embedding], lambda gradient: [tape.empty(table)])
        return self._with_inputs(tape, x, context)

    def embed_from_disk(self, tape: Tape, context: Context, source: int) -> Tensor:
        """source: bytes of a number there. As if no token came twice."""
        rows = tape.empty(context.tokens * self.config.width, source)
        found = rows if source == FLOAT else tape.empty(rows.numbers)
        x = tape.like(found)
        del rows, found
        return self._with_inputs(tape, x, context)

    def _with_inputs(self, tape: Tape, x: Tensor, context: Context) -> Tensor:
        """With its neighbours mixed in, and what is added to the embedding."""
        numbers = x.numbers
        if self.convolution is not None:
            x = self.convolution(tape, x, context.length)
        if self.positions is not None:
            places, size = tape.empty(numbers), self.positions.numbers
            tape.record([places], [self.positions], lambda gradient: [tape.empty(size)])
            x = add(tape, x, places)
            del places
        if self.adapter is not None:
            down, up = self.adapter
            external = Tensor(None, context.tokens * down.inputs, FLOAT)
            x = add(tape, x, up(tape, activate(tape, down(tape, external))))
        return x

    def forward(self, tape: Tape, context: Context, recompute: Recompute) -> Tensor:
        """-> hidden states after the final norm."""
        tape.memory.begin("the first hidden states")
        x = self.embed(tape, context)
        tape.memory.begin("one block's work")
        if self.config.block == "reversible":
            x = run_reversible(tape, self.blocks, self.order, x, context, recompute)
        elif self.config.value_residual:
            x = self._run_mixed(tape, x, context, recompute)
        else:
            x = self._run(tape, x, context, recompute)
        return self.norm(tape, x)

    def _run(self, tape: Tape, x: Tensor, context: Context, recompute: Recompute) -> Tensor:
        for index in self.order:
            x = self._marked(tape, _call(tape, self.blocks[index], recompute, x, context))
        return x

    def _run_mixed(self, tape: Tape, x: Tensor, context: Context, recompute: Recompute) -> Tensor:
        first: Tensor | None = None
        for index in self.order:
            x, first = _call(tape, self.blocks[index].mixed, recompute, x, context, first)
            x = self._marked(tape, x)
        return x

    def _marked(self, tape: Tape, x: Tensor) -> Tensor:
        """x, whose gradient begins a phase."""
        tape.memory.begin("one block's work")
        y = x.detach()

        def backward(gradient: Tensor) -> list[Tensor | None]:
            tape.memory.begin("one block's work")
            return [gradient]

        tape.record([y], [x], backward)
        return y

    def loss(self, tape: Tape, hidden: Tensor, labels: float | None) -> Tensor:
        tape.memory.begin("the head and its loss")
        config = self.config
        softcap = config.logit_softcap is not None
        counts = tape.empty(hidden.numbers / config.width, BYTE)  # noqa: F841  whether each label does
        if self.head.node is not None:
            return trained_head_loss(tape, hidden, self.head, config.width, softcap, labels)
        width, integers = config.width, self.integers
        return frozen_head_loss(tape, hidden, self._head_blocks, config.vocabulary, width, softcap, labels, integers)

    def _head_blocks(self, tape: Tape) -> Iterator[Tensor | None]:
        rows = block_rows(self.config.width)
        for start in range(0, self.config.vocabulary, rows):
            size = min(rows, self.config.vocabulary - start) * self.config.width
            yield None if tape.compute == FLOAT or self.integers else tape.empty(size, tape.compute)


def _call(tape: Tape, block, recompute: Recompute, *inputs):
    if recompute == "selective":
        return block(tape, *inputs)
    with tape.recipes(False):
        if recompute == "none":
            return block(tape, *inputs)
        return checkpointed(tape, lambda *again: block(tape, *again), *inputs)
