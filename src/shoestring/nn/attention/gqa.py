"""Grouped-query attention (arXiv 2305.13245): H query heads share K key and value heads of width C.

Multi-head (K = H) and multi-query (K = 1) attention are its ends. Options: biases on the projections (Qwen2), an
RMSNorm over each query and key head before the rotation (Qwen3), a sliding window. Cache: 2·K·C numbers per token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from shoestring.nn.attention.core import attend
from shoestring.nn.attention.window import attend_window
from shoestring.nn.bundle import bundled
from shoestring.nn.cache import LayerCache
from shoestring.nn.config import GQAConfig
from shoestring.nn.context import Context
from shoestring.nn.linear import Linear
from shoestring.nn.norm import RMSNorm
from shoestring.nn.rope import rotate
from shoestring.nn.slots import SlotRange, by_slots


def attend_all(q: Tensor, k: Tensor, v: Tensor, context: Context, scale: float) -> Tensor:
    """Over every key that the context lets a query see."""
    return attend(q, k, v, context.visibility, scale)


class GroupedQueryAttention(nn.Module):
    """x_BTD -> y_BTD."""

    def __init__(self, config: GQAConfig, width: int, epsilon: float, make_linear: Callable[..., nn.Module] = Linear):
        super().__init__()
        self.head_width = config.head_width
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = make_linear(width, queries, bias=config.qkv_bias)
        self.key = make_linear(width, keys, bias=config.qkv_bias)
        self.value = make_linear(width, keys, bias=config.qkv_bias)
        self.output = make_linear(queries, width, bias=config.output_bias)
        self.over_keys = attend_all if config.window is None else partial(attend_window, window=config.window)
        self.query_norm = RMSNorm(config.head_width, epsilon) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_width, epsilon) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        q_BHTC, k_BKTC, v_BKTC = self.project(x_BTD, context)
        q_BHTC, k_BKTC = self.turn(q_BHTC, context), self.turn(k_BKTC, context)
        return self.finish(self.attend(q_BHTC, k_BKTC, v_BKTC, context, cache))

    def project(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """-> queries [B, H, T, C], keys and values [B, K, T, C], normed and not yet rotated."""
        heads = (*x_BTD.shape[:2], -1, self.head_width)
        query, key, value = bundled((self.query, self.key, self.value), x_BTD)
        q_BHTC = self.query_norm(query.view(heads)).transpose(1, 2)
        k_BKTC = self.key_norm(key.view(heads)).transpose(1, 2)
        return q_BHTC, k_BKTC, value.view(heads).transpose(1, 2)

    def turn(self, x_BHTC: Tensor, context: Context) -> Tensor:
        """Rotary positions on queries or keys. Before `attend`, so that the caller can let go of what it turned."""
        return x_BHTC if context.rotary is None else rotate(x_BHTC, context.rotary)

    def attend(
        self, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, context: Context, cache: LayerCache | None
    ) -> Tensor:
        """Append to the cache, attend -> [B, H, T, C]. Queries and keys are turned."""
        if cache is None:
            return self.over_keys(q_BHTC, k_BKTC, v_BKTC, context, self.head_width**-0.5)
        return by_slots(context, partial(self.attend_slots, cache), q_BHTC, k_BKTC, v_BKTC)

    def attend_slots(self, cache: LayerCache, slots: SlotRange, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor):
        """Append to these slots of the cache, attend over all that they hold -> [B, H, T, C]."""
        k_BKSC, v_BKSC = cache.append(slots, k_BKTC, v_BKTC)
        return self.over_keys(q_BHTC, k_BKSC, v_BKSC, slots.context, self.head_width**-0.5)

    def finish(self, y_BHTC: Tensor) -> Tensor:
        """-> y_BTD."""
        return self.output(y_BHTC.transpose(1, 2).flatten(2))
