"""The pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x)).

The normed inputs are recomputed in the backward pass: keeping x and one number per row is enough.
"""

from __future__ import annotations

from torch import Tensor, nn

from shoestring.nn.cache import LayerCache
from shoestring.nn.context import Context
from shoestring.nn.recompute import recomputing


class SequentialBlock(nn.Module):
    """(x_BTD, context, cache) -> (x_BTD, aux): aux maps names of extra losses to scalars, empty for dense layers."""

    def __init__(self, attention_norm: nn.Module, attention: nn.Module, feed_forward_norm: nn.Module,
                 feed_forward: nn.Module):  # fmt: skip
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward

    def forward(
        self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        normed_BTD = self.attention_norm(x_BTD)
        with recomputing(normed_BTD, self.attention_norm, x_BTD):
            x_BTD = x_BTD + self.attention(normed_BTD, context, cache)
        normed_BTD = self.feed_forward_norm(x_BTD)
        with recomputing(normed_BTD, self.feed_forward_norm, x_BTD):
            y_BTD, aux = self.feed_forward(normed_BTD)
            x_BTD = x_BTD + y_BTD
        return x_BTD, aux
