"""Running streamed blocks: each layer is brought in, used and left; going backward it is brought in again.

With gradients every block is a checkpoint (arXiv 1604.06174) whose second run brings its weights, so `loss.backward()`
and any torch optimizer work on a streamed model. For several microbatches `offload.step.StreamedStep` reads each layer
once for all of them instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shoestring.nn.config import Recompute
from shoestring.nn.context import Context
from shoestring.nn.recompute import recomputing_nothing
from shoestring.nn.replay import Replay
from shoestring.nn.stack import Aux, add_losses, draw_at
from shoestring.offload.stream import LayerStream


class StreamedStack:
    """A `nn.stack.Stack`. order: which block stands at each of the L positions. first: the model's position of the
    first of them, where others are in other processes."""

    def __init__(self, order: tuple[int, ...], stream: LayerStream, first: int = 0):
        self.order, self.stream, self.first = order, stream, first

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache, recompute: Recompute
    ) -> tuple[Tensor, Aux]:
        aux: Aux = {}
        training = torch.is_grad_enabled() and cache is None
        for position, index in enumerate(self.order):
            if training:
                x_BTD, extra = checkpoint(
                    self._block, position, Replay(), blocks[index], x_BTD, context, use_reentrant=False
                )
            else:
                self.stream.load(index, self._up(position) + self.order)
                layer_cache = cache.layer(position) if cache is not None else None
                draw_at(context, self.first + position)
                x_BTD, extra = blocks[index](x_BTD, context, layer_cache)
            add_losses(aux, extra)
        return x_BTD, aux

    def load(self, position: int, down: bool = False) -> None:
        """The layer at a position, on the way up or down through the model while training."""
        below = tuple(self.order[i] for i in range(position - 1, -1, -1))
        coming: Iterable[int] = below + self.order
        if not down:
            coming = self._up(position) + self.order[::-1] + self.order
        self.stream.load(self.order[position], coming)

    def _up(self, position: int) -> tuple[int, ...]:
        return self.order[position + 1 :]

    def _block(self, position: int, choices: Replay, block: nn.Module, x_BTD: Tensor, context: Context):
        self.load(position, down=choices.recorded)
        draw_at(context, self.first + position)
        with choices.run(), recomputing_nothing():
            return block(x_BTD, context, None)
