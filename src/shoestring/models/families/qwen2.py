"""Qwen2, Qwen2.5 and DeepSeek-R1-Distill-Qwen: biases on query, key and value, always, and nowhere else."""

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
    width = fields.integer("hidden_size")
    attention = GQAConfig(
        heads=heads,
        kv_heads=read_kv_heads(fields, heads, usual=32),
        head_width=fields.integer("head_dim", max(width // heads, 1)),
        qkv_bias=True,
    )
    feed_forward = SwiGLUConfig(width=fields.integer("intermediate_size"))
    sizes = read_sizes(fields, default_context=32768)
    refuse_windows(fields)
    return ModelConfig(attention=attention, feed_forward=feed_forward, position=read_rope(fields), **sizes)


def _write(config: ModelConfig) -> dict[str, Any]:
    values = {**common_fields(config), **window_fields(config)}
    parts = dense_parts(config)
    assert parts is not None
    if parts[0].head_width * parts[0].heads == config.width:
        del values["head_dim"]  # its own default, and older readers do not know the field
    return values


def _expresses(config: ModelConfig) -> bool:
    parts = dense_parts(config)
    if parts is None:
        return False
    attention, feed_forward = parts
    biases = attention.qkv_bias and not attention.output_bias and not feed_forward.bias
    return biases and not attention.qk_norm


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _read, _write, _expresses, BLOCK_NAMES, OUTER_NAMES)
