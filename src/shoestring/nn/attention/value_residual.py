"""Value residuals (ResFormer, arXiv 2410.17897): the first layer's values join those of every other layer.

v ← (1 − λ)·v + λ·v₁, with one learned λ for each layer, ½ at first. This passes more than x between layers, so its
blocks declare it: they take and return `first`, the values [B, K, T, C] of the first position, None before it. The
cache holds the mixed values, so decoding needs nothing more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoestring.nn.attention.gqa import GroupedQueryAttention
from shoestring.nn.block import Aux, BlockParts
from shoestring.nn.config import Recompute
from shoestring.nn.context import Context
from shoestring.nn.recompute import recomputing
from shoestring.nn.stack import add_losses, draw_at, keeping


class Share(nn.Module):
    """λ."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.5))

    def initialize(self, random: torch.Generator, std: float) -> None:
        self.weight.fill_(0.5)


class ValueResidualAttention(GroupedQueryAttention):
    """(x_BTD, context, cache, first) -> (y_BTD, first)."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.value_share = Share()

    def forward(self, x_BTD: Tensor, context: Context, cache=None, first_BKTC: Tensor | None = None):  # type: ignore[override]
        q_BHTC, k_BKTC, v_BKTC = self.project(x_BTD, context)
        first_BKTC = v_BKTC if first_BKTC is None else first_BKTC
        mixed_BKTC = v_BKTC + self.value_share.weight.to(v_BKTC.dtype) * (first_BKTC - v_BKTC)
        q_BHTC, k_BKTC = self.turn(q_BHTC, context), self.turn(k_BKTC, context)
        return self.finish(self.attend(q_BHTC, k_BKTC, mixed_BKTC, context, cache)), first_BKTC


class ValueResidualBlock(BlockParts):
    """A sequential block: (x_BTD, context, cache, first) -> (x_BTD, aux, first)."""

    def forward(self, x_BTD: Tensor, context: Context, cache=None, first_BKTC: Tensor | None = None):
        normed_BTD = self.attention_norm(x_BTD)
        with recomputing(normed_BTD, self.attention_norm, x_BTD):
            y_BTD, first_BKTC = self.attention(normed_BTD, context, cache, first_BKTC)
        x_BTD = x_BTD + self.attention_bottleneck(y_BTD)
        del y_BTD, normed_BTD  # each as large as x: not while the feed-forward runs
        normed_BTD = self.feed_forward_norm(x_BTD)
        with recomputing(normed_BTD, self.feed_forward_norm, x_BTD):
            y_BTD, aux = self.feed_forward(normed_BTD)
        return x_BTD + self.feed_forward_bottleneck(y_BTD), aux, first_BKTC


class ValueResidualStack:
    """Block after block, carrying the first one's values."""

    def __init__(self, order: tuple[int, ...]):
        self.order = order

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache, recompute: Recompute
    ) -> tuple[Tensor, Aux]:
        call = keeping(recompute if cache is None and torch.is_grad_enabled() else "selective")
        aux: Aux = {}
        first_BKTC = None
        for position, index in enumerate(self.order):
            layer_cache = cache.layer(position) if cache is not None else None
            draw_at(context, position)
            x_BTD, extra, first_BKTC = call(blocks[index], x_BTD, context, layer_cache, first_BKTC)
            add_losses(aux, extra)
        return x_BTD, aux
