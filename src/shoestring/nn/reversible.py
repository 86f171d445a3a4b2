"""Reversible blocks (RevNet, arXiv 1707.04585; Reformer, 2001.04451): memory that depth does not raise.

Two streams of width D, both starting as the embedding: y1 = x1 + F(x2), y2 = x2 + G(y1), F attention and G
feed-forward, each with its norm inside. The forward pass keeps only the last pair; going backward, each
block rebuilds its inputs from its outputs: x2 = y2 − G(y1), x1 = y1 − F(x2). Streams are float32 at least,
so that subtracting gives back what was added. `ReversibleStack.plain` is the twin: the same function in
ordinary autograd.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from shoestring.nn.backward import gradients_from
from shoestring.nn.block import BlockParts
from shoestring.nn.config import Recompute
from shoestring.nn.context import Context
from shoestring.nn.recompute import recomputing_nothing
from shoestring.nn.replay import Replay
from shoestring.nn.stack import Aux, add_losses, draw_at


class ReversibleBlock(BlockParts):
    """F and G of one block, each with its norm and, where the model has them, its bottleneck."""

    def attend(self, x_BTD: Tensor, context: Context, cache=None) -> Tensor:
        """F: what the attention adds to the first stream."""
        y_BTD = self.attention(_normed(self.attention_norm, x_BTD), context, cache)
        return self.attention_bottleneck(y_BTD).to(x_BTD.dtype)

    def feed(self, x_BTD: Tensor) -> tuple[Tensor, Aux]:
        """G: what the feed-forward adds to the second stream, and its extra losses."""
        y_BTD, aux = self.feed_forward(_normed(self.feed_forward_norm, x_BTD))
        return self.feed_forward_bottleneck(y_BTD).to(x_BTD.dtype), aux

    def forward(self, x1_BTD: Tensor, x2_BTD: Tensor, context: Context, cache=None):
        """-> (y1_BTD, y2_BTD, aux), in ordinary autograd."""
        y1_BTD = x1_BTD + self.attend(x2_BTD, context, cache)
        added_BTD, aux = self.feed(y1_BTD)
        return y1_BTD, x2_BTD + added_BTD, aux


def _normed(norm: nn.Module, x_BTD: Tensor) -> Tensor:
    """The norm of a float32 stream, in the dtype of the weights."""
    return norm(x_BTD).to(next(norm.parameters()).dtype)


class ReversibleStack:
    """The blocks on two streams. With a cache, or without gradients, nothing is rebuilt: blocks simply run."""

    def __init__(self, order: tuple[int, ...]):
        self.order = order

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache, recompute: Recompute
    ) -> tuple[Tensor, Aux]:
        if cache is not None or not torch.is_grad_enabled():
            return self.plain(blocks, x_BTD, context, cache)
        last = LastPair()
        y1, y2, aux = self.rebuilt(blocks, *begun(x_BTD), context, recompute, last)
        return _Join.apply(last, y1, y2).to(x_BTD.dtype), aux

    def rebuilt(
        self, blocks: nn.ModuleList, y1: Tensor, y2: Tensor, context: Context, recompute: Recompute, last: LastPair,
        positions: range | None = None,
    ) -> tuple[Tensor, Tensor, Aux]:  # fmt: skip
        """The blocks at these positions, all of them by default, each rebuilt going backward; `last` is to be told the
        pair that comes out, by `_Join` or `Leave`, before that begins."""
        aux: Aux = {}
        for position in range(len(self.order)) if positions is None else positions:
            block = blocks[self.order[position]]
            draw_at(context, position)
            call = _Call(cast(ReversibleBlock, block), context, last, recompute == "selective")
            weights = [p for p in block.parameters() if p.requires_grad]
            y1, y2, *losses = _Rebuilt.apply(call, y1, y2, *weights)
            add_losses(aux, dict(zip(call.losses, losses, strict=True)))
        return y1, y2, aux

    def plain(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache=None
    ) -> tuple[Tensor, Aux]:
        y1, y2, aux = self.run(blocks, *begun(x_BTD), context, cache)
        return joined(y1, y2).to(x_BTD.dtype), aux

    def run(
        self, blocks: nn.ModuleList, y1: Tensor, y2: Tensor, context: Context, cache=None,
        positions: range | None = None,
    ) -> tuple[Tensor, Tensor, Aux]:  # fmt: skip
        """The blocks at these positions, all of them by default, in ordinary autograd."""
        aux: Aux = {}
        positions = range(len(self.order)) if positions is None else positions
        for place, position in enumerate(positions):
            layer_cache = cache.layer(place) if cache is not None else None
            draw_at(context, position)
            y1, y2, extra = blocks[self.order[position]](y1, y2, context, layer_cache)
            add_losses(aux, extra)
        return y1, y2, aux


def begun(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """The two streams as they begin."""
    stream = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    return stream, stream


def joined(y1: Tensor, y2: Tensor) -> Tensor:
    """What they become in the end."""
    return (y1 + y2) / 2


@dataclass
class LastPair:
    """The outputs of the block whose turn it is in the backward pass; the last random state seen going forward."""

    pair: tuple[Tensor, Tensor] | None = None
    random: tuple[Tensor, Tensor | None] | None = None


class _Join(torch.autograd.Function):
    """(y1 + y2)/2. Keeps the pair, and hands it to the last block when the backward pass begins."""

    @staticmethod
    def forward(ctx, last: LastPair, y1: Tensor, y2: Tensor) -> Tensor:
        ctx.last = last
        ctx.save_for_backward(y1, y2)
        return joined(y1, y2)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        ctx.last.pair = ctx.saved_tensors
        half = gradients[0] / 2
        return None, half, half


class Leave(torch.autograd.Function):
    """(y1, y2) unchanged, where the blocks behind them are in another process: the pair is handed to the last block
    here when its gradients arrive."""

    @staticmethod
    def forward(ctx, last: LastPair, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        ctx.last = last
        ctx.save_for_backward(y1, y2)
        return y1.view_as(y1), y2.view_as(y2)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        ctx.last.pair = ctx.saved_tensors
        return None, *gradients


@dataclass
class _Call:
    """One block at one position: what its second run must repeat."""

    block: ReversibleBlock
    context: Context
    last: LastPair
    selective: bool
    losses: list[str] = field(default_factory=list)
    choices: tuple[Replay, Replay] = field(default_factory=lambda: (Replay(), Replay()))
    random: list = field(default_factory=list)  # generator states before F and before G
    autocast: list = field(default_factory=list)

    def first(self, part: int, function, *inputs):
        """Run F (0) or G (1) and remember its surroundings."""
        device = inputs[0].device.type
        self.last.random = _random_state(device, self.last.random)
        self.random.append(self.last.random)
        if not self.autocast:
            self.autocast = [device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
        with self.choices[part].run():
            return function(*inputs)

    @contextlib.contextmanager
    def again(self, part: int):
        """The same random numbers, choices and autocast as in the first run; the generator stays where it is."""
        device, enabled, dtype = self.autocast
        now = _random_state(device)
        _restore_random(device, self.random[part])
        # What was kept to be cheap to keep would only be recomputed once more: F's graph lives for a moment.
        keep_all = contextlib.nullcontext() if self.selective else recomputing_nothing()
        try:
            with (
                torch.enable_grad(),
                torch.autocast(device, dtype=dtype, enabled=enabled),
                self.choices[part].run(),
                keep_all,
            ):
                yield
        finally:
            _restore_random(device, now)


class _Rebuilt(torch.autograd.Function):
    """(x1, x2) -> (y1, y2, *losses), keeping nothing. Weights are inputs, so that whatever waits for their gradients

    (accumulation, data parallelism) sees them as from any other operation.
    """

    @staticmethod
    def forward(ctx, call: _Call, x1: Tensor, x2: Tensor, *weights: Tensor):
        ctx.call, ctx.weights = call, weights
        y1 = x1 + call.first(0, call.block.attend, x2, call.context)
        added, aux = call.first(1, call.block.feed, y1)
        call.losses = list(aux)
        return y1, x2 + added, *aux.values()

    @staticmethod
    def backward(ctx, *gradients):
        call: _Call = ctx.call
        y1_gradient, y2_gradient, *loss_gradients = gradients
        assert call.last.pair is not None, "a reversible block goes backward after the one behind it"
        y1, y2 = (y.detach() for y in call.last.pair)
        with call.again(1):
            y1_leaf = y1.requires_grad_()
            added, aux = call.block.feed(y1_leaf)
        outputs = [added, *(aux[name] for name in call.losses)]
        feed = gradients_from(outputs, [y2_gradient, *loss_gradients], [y1_leaf, *ctx.weights])
        x2 = y2 - added.detach()
        del added, aux, outputs
        y1_gradient = _sum(y1_gradient, feed[0])
        with call.again(0):
            x2_leaf = x2.requires_grad_()
            added = call.block.attend(x2_leaf, call.context)
        attend = gradients_from([added], [y1_gradient], [x2_leaf, *ctx.weights])
        call.last.pair = (y1.detach() - added.detach(), x2.detach())
        x2_gradient = _sum(y2_gradient, attend[0])
        weights = [_sum(one, other) for one, other in zip(feed[1:], attend[1:], strict=True)]
        return None, y1_gradient, x2_gradient, *weights


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _random_state(device: str, before: tuple | None = None) -> tuple[Tensor, Tensor | None]:
    """The generators' states; `before` itself when nothing was drawn since, as 5 kB a layer add up."""
    cpu, gpu = torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None
    if before is not None and torch.equal(cpu, before[0]) and (gpu is None or torch.equal(gpu, before[1])):
        return before
    return cpu, gpu


def _restore_random(device: str, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
