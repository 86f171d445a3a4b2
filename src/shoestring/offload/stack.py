"""Running streamed blocks: each layer is brought in, used and left; going backward it is brought in again.

With gradients a block keeps its input alone and runs again as soon as its weights are back (arXiv 1604.06174), so
`loss.backward()` and any torch optimizer work on a streamed model. The last `keeps` of them keep what they computed,
as those in memory do, and going backward only their weights are brought in: a third less work for the memory. For
several microbatches `offload.engine` reads each layer once for all of them instead.

torch's own checkpoint would do the same, and loads a compiler, 75 MB of a process that streams for lack of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from shoestring.nn.backward import backward_from
from shoestring.nn.config import Recompute
from shoestring.nn.context import Context
from shoestring.nn.recompute import recomputing_nothing
from shoestring.nn.replay import Replay
from shoestring.nn.stack import Aux, add_losses, draw_at
from shoestring.offload.stream import LayerStream


class StreamedStack:
    """A `nn.stack.Stack`. order: which block stands at each of the L positions. first: the model's position of the
    first of them, where others are in other processes. keeps: of the last positions, which do not run again."""

    def __init__(self, order: tuple[int, ...], stream: LayerStream, first: int = 0, keeps: int = 0):
        self.order, self.stream, self.first, self.keeps = order, stream, first, keeps

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache, recompute: Recompute
    ) -> tuple[Tensor, Aux]:
        aux: Aux = {}
        training = torch.is_grad_enabled() and cache is None
        for position, index in enumerate(self.order):
            if training:
                keeps = position >= len(self.order) - self.keeps
                run = self._kept if keeps else self._again
                x_BTD, extra = run(position, blocks[index], x_BTD, context)
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

    def _kept(self, position: int, block: nn.Module, x_BTD: Tensor, context: Context) -> tuple[Tensor, Aux]:
        self.load(position)
        draw_at(context, self.first + position)
        y_BTD, aux = block(x_BTD, context, None)
        y_BTD, *extra = _Back.apply(lambda: self.load(position, down=True), y_BTD, *aux.values())
        return y_BTD, dict(zip(aux, extra, strict=True))

    def _again(self, position: int, block: nn.Module, x_BTD: Tensor, context: Context) -> tuple[Tensor, Aux]:
        choices, names = Replay(), list[str]()

        def run(x_BTD: Tensor) -> tuple[Tensor, ...]:
            self.load(position, down=choices.recorded)
            draw_at(context, self.first + position)
            with choices.run(), recomputing_nothing():
                y_BTD, aux = block(x_BTD, context, None)
            names[:] = aux
            return y_BTD, *aux.values()

        anchor = x_BTD.new_zeros((), requires_grad=True)  # weights in the block want gradients where its input does not
        y_BTD, *extra = _Again.apply(run, anchor, x_BTD)
        return y_BTD, dict(zip(names, extra, strict=True))


class _Again(torch.autograd.Function):
    """run(x) -> tensors, whose graph is made only going backward, when it runs again."""

    @staticmethod
    def forward(ctx, run: Callable[[Tensor], tuple[Tensor, ...]], anchor: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        kind = x.device.type
        ctx.run, ctx.x, ctx.wanted = run, x.detach(), x.requires_grad
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        return run(x)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        run, x = ctx.run, ctx.x.requires_grad_(ctx.wanted)
        ctx.run = ctx.x = None
        kind, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
            outputs = run(x)
        backward_from(outputs, gradients)
        return None, None, x.grad


class _Back(torch.autograd.Function):
    """Outputs of a block as they are; bring() brings its weights back before anything of it goes backward."""

    @staticmethod
    def forward(ctx, bring: Callable[[], None], *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.bring = bring
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        ctx.bring()
        return None, *gradients
