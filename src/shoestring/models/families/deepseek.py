"""DeepSeek-V2 and V3 without experts: multi-head latent attention in every block, SwiGLU feed-forwards.

A folder says that it has no experts by first_k_dense_replace ≥ num_hidden_layers; fields about experts then mean
nothing. V2 and V3 differ here in one thing: V3 says whether its rotary pairs are neighbours, V2's always are. We
write V3. YaRN's mscale_all_dim is DeepSeek's factor on the scores: (0.1 · mscale_all_dim · ln factor + 1)².
"""

from __future__ import annotations

import math
from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.models.families.common import is_ordinary, read_sizes, size_fields
from shoestring.models.families.family import BLOCK_NAMES, OUTER_NAMES, Family, Fields
from shoestring.models.families.rotary import read_rope, write_rope
from shoestring.nn.attention.config import MLAConfig
from shoestring.nn.config import RopeConfig, YarnScaling
from shoestring.nn.feed_forward_config import SwiGLUConfig

# About experts and the extra prediction layer, which a model without experts does not have.
_OF_EXPERTS = (
    "aux_loss_alpha", "ep_size", "moe_intermediate_size", "moe_layer_freq", "n_group", "n_routed_experts",
    "n_shared_experts", "norm_topk_prob", "num_experts_per_tok", "output_router_logits", "routed_scaling_factor",
    "scoring_func", "seq_aux", "topk_group", "topk_method",
)  # fmt: skip
_LATENT_EPSILON = 1e-6  # transformers' norms over latents take their default, whatever rms_norm_eps is

_NAMES = {
    **BLOCK_NAMES,
    "attention.query": "self_attn.q_proj",
    "attention.query.down": "self_attn.q_a_proj",
    "attention.query.norm": "self_attn.q_a_layernorm",
    "attention.query.up": "self_attn.q_b_proj",
    "attention.latent": "self_attn.kv_a_proj_with_mqa",
    "attention.latent_norm": "self_attn.kv_a_layernorm",
    "attention.expand": "self_attn.kv_b_proj",
}


def _read(fields: Fields, v3: bool) -> ModelConfig:
    layers, heads = fields.integer("num_hidden_layers"), fields.integer("num_attention_heads")
    dense = fields.get("first_k_dense_replace", 3 if v3 else 0)
    if not isinstance(dense, int) or dense < layers:
        raise fields.fail(
            f"blocks from {dense} on have experts (first_k_dense_replace), which is not supported in this family",
            f"supported: first_k_dense_replace of at least num_hidden_layers ({layers})",
        )
    for name in (*_OF_EXPERTS, "num_nextn_predict_layers", "num_mtp_layers"):
        fields.get(name)
    rotary_width = fields.integer("qk_rope_head_dim")
    content_width = fields.integer("qk_nope_head_dim")
    implied = {"num_key_value_heads": heads, "head_dim": rotary_width, "qk_head_dim": content_width + rotary_width}
    for name, value in implied.items():
        if fields.get(name, value) != value:
            raise fields.fail(f"{name} is {fields.get(name)}, and the other sizes make it {value}")
    query_rank = fields.nullable("q_lora_rank", fields.integer, 1536)
    position = read_rope(fields)
    attention = MLAConfig(
        heads=heads,
        latent_rank=fields.integer("kv_lora_rank"),
        content_width=content_width,
        rotary_width=rotary_width,
        value_width=fields.integer("v_head_dim"),
        query_rank=query_rank,
        bias=fields.boolean("attention_bias", False),
        rope_interleave=_interleaved(fields) if v3 else True,
        mscale=_read_mscale(fields, position),
        latent_epsilon=_LATENT_EPSILON,
    )
    feed_forward = SwiGLUConfig(width=fields.integer("intermediate_size"))
    sizes = read_sizes(fields, default_context=4096 if v3 else 2048)
    return ModelConfig(attention=attention, feed_forward=feed_forward, position=position, **sizes)


def _interleaved(fields: Fields) -> bool:
    """null is false here, as for transformers."""
    return bool(fields.nullable("rope_interleave", fields.boolean, True))


def _read_mscale(fields: Fields, position: RopeConfig) -> float:
    rope = fields.mapping("rope_parameters") or fields.mapping("rope_scaling") or {}
    if not isinstance(position.scaling, YarnScaling) or not rope.get("mscale_all_dim"):
        return 1.0
    return _mscale(position.scaling.factor, Fields(rope, fields.where).number("mscale_all_dim"))


def _mscale(factor: float, mscale_all_dim: float) -> float:
    return 0.1 * mscale_all_dim * math.log(factor) + 1.0 if factor > 1 else 1.0


def _mscale_all_dim(position: RopeConfig, mscale: float) -> float | None:
    """What reads back as exactly this mscale; None when YaRN's formula has no such number."""
    if not isinstance(position.scaling, YarnScaling) or position.scaling.factor <= 1 or mscale <= 1:
        return None
    factor = position.scaling.factor
    exact = (mscale - 1.0) / (0.1 * math.log(factor))
    near = (round(exact, 12), exact, math.nextafter(exact, 0), math.nextafter(exact, math.inf))
    return next((value for value in near if _mscale(factor, value) == mscale), None)


def _write(config: ModelConfig) -> dict[str, Any]:
    attention, position = config.attention, config.position
    assert isinstance(attention, MLAConfig) and isinstance(position, RopeConfig)
    assert isinstance(config.feed_forward, SwiGLUConfig)
    rotary = write_rope(position)
    if attention.mscale != 1.0:
        scale = {"mscale_all_dim": _mscale_all_dim(position, attention.mscale)}
        rotary["rope_parameters"] = {**rotary["rope_parameters"], **scale}
        rotary["rope_scaling"] = {**rotary["rope_scaling"], **scale}
    return {
        **size_fields(config),
        "intermediate_size": config.feed_forward.width,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.query_rank,
        "kv_lora_rank": attention.latent_rank,
        "qk_nope_head_dim": attention.content_width,
        "qk_rope_head_dim": attention.rotary_width,
        "v_head_dim": attention.value_width,
        "attention_bias": attention.bias,
        "rope_interleave": attention.rope_interleave,
        "first_k_dense_replace": config.layers,
        "num_nextn_predict_layers": 0,
        **rotary,
    }


def _expresses(config: ModelConfig) -> bool:
    attention, feed_forward = config.attention, config.feed_forward
    if not (is_ordinary(config) and isinstance(attention, MLAConfig) and isinstance(feed_forward, SwiGLUConfig)):
        return False
    assert isinstance(config.position, RopeConfig)
    scale = attention.mscale == 1.0 or _mscale_all_dim(config.position, attention.mscale) is not None
    return scale and not feed_forward.bias and attention.latent_epsilon == _LATENT_EPSILON


DEEPSEEK_V3 = Family(
    "deepseek_v3", "DeepseekV3ForCausalLM", lambda fields: _read(fields, True), _write, _expresses, _NAMES, OUTER_NAMES
)
DEEPSEEK_V2 = Family(
    "deepseek_v2", "DeepseekV2ForCausalLM", lambda fields: _read(fields, False), _write, lambda config: False,
    _NAMES, OUTER_NAMES,
)  # fmt: skip
