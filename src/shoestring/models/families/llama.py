"""Llama 2 and 3, SmolLM2 and all that call themselves `llama`.

Biases stand on all projections of the attention or on none, and the same for the feed-forward.
"""

from __future__ import annotations

from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.models.families.common import common_fields, dense_parts, read_kv_heads, read_sizes
from shoestring.models.families.family import BLOCK_NAMES, OUTER_NAMES, Family, Fields
from shoestring.models.families.rotary import read_rope
from shoestring.nn.config import GQAConfig, SwiGLUConfig


def _read(fields: Fields) -> ModelConfig:
    heads = fields.integer("num_attention_heads")
    width = fields.integer("hidden_size")
    bias = fields.boolean("attention_bias", False)
    attention = GQAConfig(
        heads=heads,
        kv_heads=read_kv_heads(fields, heads, usual=heads),
        head_width=fields.integer("head_dim", max(width // heads, 1)),
        qkv_bias=bias,
        output_bias=bias,
    )
    feed_forward = SwiGLUConfig(
        width=fields.integer("intermediate_size"), bias=fields.boolean("mlp_bias", False)
    )
    sizes = read_sizes(fields, default_context=2048)
    return ModelConfig(attention=attention, feed_forward=feed_forward, position=read_rope(fields), **sizes)


def _write(config: ModelConfig) -> dict[str, Any]:
    parts = dense_parts(config)
    assert parts is not None
    attention, feed_forward = parts
    return {
        **common_fields(config),
        "attention_bias": attention.qkv_bias,
        "mlp_bias": feed_forward.bias,
        "pretraining_tp": 1,
    }


def _expresses(config: ModelConfig) -> bool:
    parts = dense_parts(config)
    return parts is not None and not parts[0].qk_norm and parts[0].qkv_bias == parts[0].output_bias


LLAMA = Family("llama", "LlamaForCausalLM", _read, _write, _expresses, BLOCK_NAMES, OUTER_NAMES)
