"""How blocks run: in which order, and what is kept of them for the backward pass.

`run(blocks, x_BTD, context, cache, recompute) -> (x_BTD, aux)`, chosen once by the builder. `blocks` are
the unique ones; `order[position]` says which of them stands at each of the L positions (parameter sharing:
ALBERT, arXiv 1909.11942; Universal Transformer, 1807.03819). Every position has its own part of the cache.
What is recomputed: nothing, the cheap parts (`nn.recompute`), or whole blocks (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shoestring.core.seeds import derive_seed
from shoestring.nn.config import Recompute
from shoestring.nn.context import Context
from shoestring.nn.recompute import recomputing_nothing
from shoestring.nn.replay import Replay

Aux = dict[str, Tensor]


class Stack(Protocol):
    """How the blocks run: what the decoder calls."""

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache, recompute: Recompute
    ) -> tuple[Tensor, Aux]: ...


def add_losses(total: Aux, extra: Aux) -> None:
    """Sum extra losses over layers, in place."""
    for name, loss in extra.items():
        total[name] = total[name] + loss if name in total else loss


def draw_at(context: Context, position: int) -> None:
    """Give the layer at this position its own stream of random numbers, where the context has a seed."""
    if context.seed is not None:
        torch.manual_seed(derive_seed(context.seed, position))


class SequentialStack:
    """Block after block on one stream."""

    def __init__(self, order: tuple[int, ...]):
        self.order = order

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache, recompute: Recompute
    ) -> tuple[Tensor, Aux]:
        # A cache must be appended to once, so nothing that touches it runs again.
        call = keeping(recompute if cache is None and torch.is_grad_enabled() else "selective")
        aux: Aux = {}
        for position, index in enumerate(self.order):
            layer_cache = cache.layer(position) if cache is not None else None
            draw_at(context, position)
            x_BTD, extra = call(blocks[index], x_BTD, context, layer_cache)
            add_losses(aux, extra)
        return x_BTD, aux


def keeping(recompute: Recompute) -> Callable[..., Any]:
    """How to call a block: call(block, *its inputs) -> its outputs."""
    return {"none": _keep_all, "selective": _keep_costly, "full": _keep_inputs}[recompute]


def _keep_all(block: nn.Module, *inputs):
    with recomputing_nothing():
        return block(*inputs)


def _keep_costly(block: nn.Module, *inputs):
    return block(*inputs)


def _keep_inputs(block: nn.Module, *inputs):
    return checkpoint(_run_again, Replay(), block, *inputs, use_reentrant=False)


def _run_again(choices: Replay, block: nn.Module, *inputs):
    # Only the innermost saved-tensor hooks see a tensor: those of `recomputing` would hide what is to be
    # dropped.
    with choices.run(), recomputing_nothing():
        return block(*inputs)
