"""Fields of config.json that Llama's descendants share: sizes, norm, tied head, and sliding windows.

We compute no windows here: a config that merely mentions one is read, a config that uses one is refused.
"""

from __future__ import annotations

from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.models.families.family import Fields
from shoestring.models.families.rotary import write_rope
from shoestring.nn.config import GQAConfig, RopeConfig, SwiGLUConfig


def read_sizes(fields: Fields, default_context: int, default_epsilon: float = 1e-6) -> dict[str, Any]:
    """The keyword arguments of ModelConfig that no family reads in its own way.

    default_context, default_epsilon: where config.json is silent, the family's own as transformers has them.
    """
    return {
        "vocabulary": fields.integer("vocab_size"),
        "width": fields.integer("hidden_size"),
        "layers": fields.integer("num_hidden_layers"),
        "context": fields.integer("max_position_embeddings", default_context),
        "norm_epsilon": fields.number("rms_norm_eps", default_epsilon),
        "tied_head": fields.boolean("tie_word_embeddings", False),
        "initializer_range": fields.number("initializer_range", 0.02),
    }


def read_kv_heads(fields: Fields, heads: int, usual: int) -> int:
    """Heads of keys and values. usual: of the family, where config.json is silent; null is one for each query head."""
    return fields.integer("num_key_value_heads", heads if "num_key_value_heads" in fields.values else usual)


def is_ordinary(config: ModelConfig) -> bool:
    """Nothing that transformers has no field for: one plain stream, every block its own, rotary positions alone."""
    kinds = config.block == "sequential" and config.position.kind == "rope" and config.linear.kind == "dense"
    extras: tuple[object, ...] = (config.sharing, config.logit_softcap, config.input_adapter, config.bottleneck)
    extras = (*extras, config.memory, config.embedding_convolution)
    return kinds and not config.value_residual and all(extra is None for extra in extras)


def dense_parts(config: ModelConfig) -> tuple[GQAConfig, SwiGLUConfig] | None:
    """The two parts of a block as Llama and its dense descendants have them; None when the config has others."""
    attention, feed_forward = config.attention, config.feed_forward
    if is_ordinary(config) and isinstance(attention, GQAConfig) and isinstance(feed_forward, SwiGLUConfig):
        return (attention, feed_forward) if attention.window is None else None
    return None


def common_fields(config: ModelConfig) -> dict[str, Any]:
    """What every dense family here writes."""
    parts = dense_parts(config)
    assert parts is not None and isinstance(config.position, RopeConfig)
    attention, feed_forward = parts
    return {
        **size_fields(config),
        "intermediate_size": feed_forward.width,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_width,
        **write_rope(config.position),
    }


def size_fields(config: ModelConfig) -> dict[str, Any]:
    """What every family here writes, whatever its attention."""
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_head,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def refuse_windows(fields: Fields, in_every_layer: bool = False) -> None:
    """Qwen's configs name a window even where it is off: refuse it only where a layer would use it.

    in_every_layer: for transformers a window of this family holds in all layers, whatever the other fields say.
    """
    first = fields.integer("max_window_layers", 28) if fields.get("max_window_layers") != 0 else 0
    window = fields.get("sliding_window") if "sliding_window" in fields.values else 4096
    windowed = fields.boolean("use_sliding_window", False) and window is not None
    kinds = fields.get("layer_types")
    if windowed and in_every_layer:
        raise fields.fail("use_sliding_window is on, which is not supported in this family", _FULL)
    if kinds is None and windowed and first < fields.integer("num_hidden_layers"):
        raise fields.fail(f"use_sliding_window is on from layer {first}, which is not supported", _FULL)
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise fields.fail("layer_types holds other kinds than full_attention", _FULL)


_FULL = "supported: full attention in every layer"


def window_fields(config: ModelConfig) -> dict[str, Any]:
    """No window, said in the fields that Qwen's configs have for it."""
    return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.layers}
