"""How a range of a model's layers runs, and what passes at its borders: x, and what a kind passes beside it.

    enter (x_BTD -> stream)  ->  part (stream -> stream, aux), machine after machine  ->  leave (stream -> x_BTD)

A stream is a tuple of tensors whose shapes follow from the batch (`passing`), so that the next machine can make room
for it. Sequential blocks pass x alone, blocks with value residuals the first layer's values beside it, reversible
blocks their two streams. A part gets the layers' positions in the whole model, where dropout is drawn; the
cache is of its own layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from shoestring.models.config import ModelConfig
from shoestring.nn.config import GQAConfig, Recompute, block_order
from shoestring.nn.context import Context
from shoestring.nn.reversible import LastPair, Leave, ReversibleStack, begun, joined
from shoestring.nn.stack import Aux, add_losses, draw_at, keeping
from shoestring.offload.pipeline.place import Place
from shoestring.offload.pipeline.wire import Like
from shoestring.offload.stack import StreamedStack

Stream = tuple[Tensor, ...]


class Part(Protocol):
    """order: the block at each position of the whole model."""

    order: tuple[int, ...]

    def enter(self, x_BTD: Tensor) -> Stream: ...

    def passing(self, rows: int, tokens: int, dtype: torch.dtype) -> list[Like]:
        """The stream of a batch of this size. dtype: of x."""
        ...

    def __call__(
        self, blocks: nn.ModuleList, stream: Stream, context: Context, cache, recompute: Recompute
    ) -> tuple[Stream, Aux]: ...

    def leave(self, stream: Stream) -> Tensor: ...


class SequentialPart:
    """Block after block on one stream."""

    def __init__(self, config: ModelConfig, place: Place):
        self.config = config
        self.order = block_order(config.layers, config.sharing)
        self.positions = range(place.first, place.end)

    def enter(self, x_BTD: Tensor) -> Stream:
        return (x_BTD,)

    def passing(self, rows: int, tokens: int, dtype: torch.dtype) -> list[Like]:
        return [Like((rows, tokens, self.config.width), dtype)]

    def __call__(
        self, blocks: nn.ModuleList, stream: Stream, context: Context, cache, recompute: Recompute
    ) -> tuple[Stream, Aux]:
        call = keeping(recompute if cache is None and torch.is_grad_enabled() else "selective")
        (x_BTD,), aux = stream, dict[str, Tensor]()
        for place, position in enumerate(self.positions):
            layer_cache = cache.layer(place) if cache is not None else None
            draw_at(context, position)
            x_BTD, extra = call(blocks[self.order[position]], x_BTD, context, layer_cache)
            add_losses(aux, extra)
        return (x_BTD,), aux

    def leave(self, stream: Stream) -> Tensor:
        return stream[0]


class ValueResidualPart(SequentialPart):
    """The first layer's values [B, K, T, C] go along."""

    def passing(self, rows: int, tokens: int, dtype: torch.dtype) -> list[Like]:
        attention = self.config.attention
        assert isinstance(attention, GQAConfig)
        values = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype
        shape = (rows, attention.kv_heads, tokens, attention.head_width)
        return [*super().passing(rows, tokens, dtype), Like(shape, values)]

    def __call__(
        self, blocks: nn.ModuleList, stream: Stream, context: Context, cache, recompute: Recompute
    ) -> tuple[Stream, Aux]:
        call = keeping(recompute if cache is None and torch.is_grad_enabled() else "selective")
        x_BTD, first_BKTC, aux = stream[0], stream[1] if len(stream) > 1 else None, dict[str, Tensor]()
        for place, position in enumerate(self.positions):
            layer_cache = cache.layer(place) if cache is not None else None
            draw_at(context, position)
            block = blocks[self.order[position]]
            x_BTD, extra, first_BKTC = call(block, x_BTD, context, layer_cache, first_BKTC)
            add_losses(aux, extra)
        assert first_BKTC is not None
        return (x_BTD, first_BKTC), aux


class ReversiblePart(SequentialPart):
    """Both streams go along, each as wide as x; going backward a machine rebuilds its own layers' inputs from what it
    has sent."""

    def __init__(self, config: ModelConfig, place: Place):
        super().__init__(config, place)
        self.stack = ReversibleStack(self.order)

    def enter(self, x_BTD: Tensor) -> Stream:
        return begun(x_BTD)

    def passing(self, rows: int, tokens: int, dtype: torch.dtype) -> list[Like]:
        return super().passing(rows, tokens, torch.promote_types(dtype, torch.float32)) * 2

    def __call__(
        self, blocks: nn.ModuleList, stream: Stream, context: Context, cache, recompute: Recompute
    ) -> tuple[Stream, Aux]:
        y1, y2 = stream
        if cache is not None or not torch.is_grad_enabled():
            y1, y2, aux = self.stack.run(blocks, y1, y2, context, cache, self.positions)
            return (y1, y2), aux
        last = LastPair()
        y1, y2, aux = self.stack.rebuilt(blocks, y1, y2, context, recompute, last, self.positions)
        return Leave.apply(last, y1, y2), aux

    def leave(self, stream: Stream) -> Tensor:
        return joined(*stream)


class StreamedPart(SequentialPart):
    """Layers that come from disk, one after another."""

    def read_from(self, stack: StreamedStack, own: nn.ModuleList) -> None:
        """own: the blocks of these positions, as the stack numbers them."""
        self.stack, self.own = stack, own

    def __call__(
        self, blocks: nn.ModuleList, stream: Stream, context: Context, cache, recompute: Recompute
    ) -> tuple[Stream, Aux]:
        x_BTD, aux = self.stack(self.own, stream[0], context, cache, recompute)
        return (x_BTD,), aux


def part_of(config: ModelConfig, place: Place) -> Part:
    """For layers in memory."""
    if config.value_residual:
        return ValueResidualPart(config, place)
    kinds: dict[str, Callable[[ModelConfig, Place], Part]] = {
        "sequential": SequentialPart, "reversible": ReversiblePart,
    }  # fmt: skip
    return kinds[config.block](config, place)
