"""Grouped-query attention (arXiv 2305.13245): H query heads share K key and value heads of width C.

Multi-head (K = H) and multi-query (K = 1) attention are its ends. Options: biases on the projections (Qwen2), an
RMSNorm over each query and key head before the rotation (Qwen3). Cache: 2·K·C numbers per token.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from shoestring.nn.attention.core import attend
from shoestring.nn.cache import LayerCache
from shoestring.nn.config import GQAConfig
from shoestring.nn.context import Context
from shoestring.nn.linear import Linear
from shoestring.nn.norm import RMSNorm
from shoestring.nn.rope import rotate


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
        self.query_norm = RMSNorm(config.head_width, epsilon) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_width, epsilon) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_width)
        q_BHTC = self.query_norm(self.query(x_BTD).view(heads)).transpose(1, 2)
        k_BKTC = self.key_norm(self.key(x_BTD).view(heads)).transpose(1, 2)
        v_BKTC = self.value(x_BTD).view(heads).transpose(1, 2)
        if context.rotary is not None:
            q_BHTC, k_BKTC = rotate(q_BHTC, context.rotary), rotate(k_BKTC, context.rotary)
        if cache is not None:
            k_BKTC, v_BKTC = cache.append(k_BKTC, v_BKTC, context.counts)
        y_BHTC = attend(q_BHTC, k_BKTC, v_BKTC, context.visibility, self.head_width**-0.5)
        return self.output(y_BHTC.transpose(1, 2).flatten(2))
