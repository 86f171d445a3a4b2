"""The pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x)).

The normed inputs are recomputed in the backward pass: keeping x and one number per row is enough. Behind each
of the two may stand a bottleneck for transfer (`nn.bottleneck`); without one it is the identity.
"""

from __future__ import annotations

from torch import Tensor, nn

from shoestring.nn.context import Context
from shoestring.nn.recompute import recomputing

Aux = dict[str, Tensor]


class BlockParts(nn.Module):
    """What every kind of block is made of, under the same names, so that weights fit all of them."""

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
        attention_bottleneck: nn.Module,
        feed_forward_bottleneck: nn.Module,
    ):
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.attention_bottleneck = attention_bottleneck
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.feed_forward_bottleneck = feed_forward_bottleneck


class SequentialBlock(BlockParts):
    """(x_BTD, context, cache) -> (x_BTD, aux): aux maps names of extra losses to scalars, empty for dense layers."""

    def forward(self, x_BTD: Tensor, context: Context, cache=None) -> tuple[Tensor, Aux]:
        normed_BTD = self.attention_norm(x_BTD)
        with recomputing(normed_BTD, self.attention_norm, x_BTD):
            y_BTD = self.attention(normed_BTD, context, cache)
        x_BTD = x_BTD + self.attention_bottleneck(y_BTD)
        del y_BTD, normed_BTD  # each as large as x: not while the feed-forward runs
        normed_BTD = self.feed_forward_norm(x_BTD)
        with recomputing(normed_BTD, self.feed_forward_norm, x_BTD):
            y_BTD, aux = self.feed_forward(normed_BTD)
        return x_BTD + self.feed_forward_bottleneck(y_BTD), aux
