"""Qwen3 (dense): an RMSNorm over each query and key head, and a head width of its own."""

from __future__ import annotations

from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.models.families.common import (
    common_fields,
    dense_parts,
    read_kv_heads,
    read_sizes,
    refuse_windows,
    window_fields,
)
from shoestring.models.families.family import BLOCK_NAMES, OUTER_NAMES, Family, Fields
from shoestring.models.families.rotary import read_rope
from shoestring.nn.config import GQAConfig, SwiGLUConfig


def _read(fields: Fields) -> ModelConfig:
    heads = fields.integer("num_attention_heads")
    bias = fields.boolean("attention_bias", False)
    attention = GQAConfig(
        heads=heads,
        kv_heads=read_kv_heads(fields, heads, usual=32),
        head_width=fields.integer("head_dim", 128),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )
    feed_forward = SwiGLUConfig(width=fields.integer("intermediate_size"))
    sizes = read_sizes(fields, default_context=32768)
    refuse_windows(fields)
    return ModelConfig(attention=attention, feed_forward=feed_forward, position=read_rope(fields), **sizes)


def _write(config: ModelConfig) -> dict[str, Any]:
    parts = dense_parts(config)
    assert parts is not None
    return {
        **common_fields(config),
        **window_fields(config),
        "attention_bias": parts[0].qkv_bias,
    }


def _expresses(config: ModelConfig) -> bool:
    parts = dense_parts(config)
    if parts is None:
        return False
    attention, feed_forward = parts
    return attention.qk_norm and attention.qkv_bias == attention.output_bias and not feed_forward.bias


QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _read, _write, _expresses, BLOCK_NAMES, OUTER_NAMES)
