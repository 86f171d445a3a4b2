"""Qwen3-MoE and Mixtral: grouped-query attention, and a mixture of SwiGLU experts in every block.

Experts are stored one by one, `experts.N.gate_proj.weight` (Mixtral: w1, w3 and w2), as published folders have them;
transformers 5 joins them when it loads. Qwen3-MoE norms query and key heads, Mixtral always scales a token's weights
to add up to 1. The load-balance loss is transformers' `router_aux_loss_coef`, there over all layers together, here
layer by layer.
"""

from __future__ import annotations

import re
from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.models.families.common import (
    is_ordinary,
    read_kv_heads,
    read_sizes,
    refuse_windows,
    size_fields,
    window_fields,
)
from shoestring.models.families.family import BLOCK_NAMES, OUTER_NAMES, Family, Fields
from shoestring.models.families.rotary import read_rope, write_rope
from shoestring.nn.config import GQAConfig, RopeConfig
from shoestring.nn.feed_forward_config import MoEConfig

_EXPERT = re.compile(r"blocks\.(\d+)\.feed_forward\.experts\.(\d+)\.(gate|up|down)\.weight")


class _ExpertFamily(Family):
    def tensor_name(self, parameter: str) -> str:
        """block_names gives an expert's matrices with `N` for its number."""
        if match := _EXPERT.fullmatch(parameter):
            layer, expert, matrix = match.groups()
            name = self.block_names[f"feed_forward.experts.N.{matrix}"].replace(".N.", f".{expert}.")
            return f"model.layers.{layer}.{name}.weight"
        return super().tensor_name(parameter)


def _names(router: str, gate: str, up: str, down: str) -> dict[str, str]:
    attention = {ours: theirs for ours, theirs in BLOCK_NAMES.items() if not ours.startswith("feed_forward.")}
    parts = {"router": router, "experts.N.gate": gate, "experts.N.up": up, "experts.N.down": down}
    return {**attention, **{f"feed_forward.{ours}": theirs for ours, theirs in parts.items()}}


def _experts(fields: Fields, width: str, normalize: bool) -> MoEConfig:
    """transformers 5 writes num_local_experts for both; published Qwen3-MoE configs say num_experts."""
    local, older = (fields.integer(name) if fields.get(name) is not None else None for name in _COUNTS)
    if local is not None and older is not None and local != older:
        raise fields.fail(f"num_local_experts is {local} and num_experts is {older}")
    experts = local or older
    if experts is None:
        raise fields.fail("num_local_experts is missing", "config.json is incomplete; fetch the model again")
    weight = fields.get("router_aux_loss_coef", 0.001)
    fields.get("output_router_logits")
    return MoEConfig(
        width=fields.integer(width),
        experts=experts,
        active=fields.integer("num_experts_per_tok"),
        normalize=normalize,
        balance="loss" if weight else "none",
        balance_weight=weight or 0.01,
    )


_COUNTS = ("num_local_experts", "num_experts")


def _read_qwen3(fields: Fields) -> ModelConfig:
    if fields.get("decoder_sparse_step", 1) != 1 or fields.get("mlp_only_layers", []):
        raise fields.fail(
            "some blocks have no experts (decoder_sparse_step, mlp_only_layers)", "supported: experts in every block"
        )
    fields.get("intermediate_size")  # of the blocks without experts
    heads, bias = fields.integer("num_attention_heads"), fields.boolean("attention_bias", False)
    attention = GQAConfig(
        heads=heads,
        kv_heads=read_kv_heads(fields, heads, usual=4),
        head_width=fields.integer("head_dim", max(fields.integer("hidden_size") // heads, 1)),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )
    experts = _experts(fields, "moe_intermediate_size", fields.boolean("norm_topk_prob", False))
    sizes = read_sizes(fields, default_context=32768)
    refuse_windows(fields, in_every_layer=True)
    return ModelConfig(attention=attention, feed_forward=experts, position=read_rope(fields), **sizes)


def _read_mixtral(fields: Fields) -> ModelConfig:
    if fields.get("sliding_window") is not None:
        raise fields.fail("sliding_window is set, which is not supported in this family", "supported: null")
    if fields.get("router_jitter_noise"):
        raise fields.fail("router_jitter_noise is set, which is not supported", "supported: 0")
    heads = fields.integer("num_attention_heads")
    attention = GQAConfig(
        heads=heads,
        kv_heads=read_kv_heads(fields, heads, usual=8),
        head_width=fields.integer("head_dim", max(fields.integer("hidden_size") // heads, 1)),
    )
    experts = _experts(fields, "intermediate_size", normalize=True)
    sizes = read_sizes(fields, default_context=131072, default_epsilon=1e-5)
    position = read_rope(fields, default_theta=1e6)
    return ModelConfig(attention=attention, feed_forward=experts, position=position, **sizes)


def _parts(config: ModelConfig) -> tuple[GQAConfig, MoEConfig] | None:
    attention, experts = config.attention, config.feed_forward
    if not (is_ordinary(config) and isinstance(attention, GQAConfig) and isinstance(experts, MoEConfig)):
        return None
    plain = attention.window is None and not experts.shared_width and experts.balance != "bias"
    return (attention, experts) if plain else None


def _common(config: ModelConfig) -> tuple[dict[str, Any], GQAConfig, MoEConfig]:
    parts = _parts(config)
    assert parts is not None and isinstance(config.position, RopeConfig)
    attention, experts = parts
    fields = {
        **size_fields(config),
        **write_rope(config.position),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_width,
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.active,
        "router_aux_loss_coef": experts.balance_weight if experts.balance == "loss" else 0.0,
        "output_router_logits": False,
    }
    return fields, attention, experts


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    fields, attention, experts = _common(config)
    return {
        **fields,
        **window_fields(config),
        "num_experts": experts.experts,  # for transformers before 5
        "intermediate_size": experts.width,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.normalize,
        "attention_bias": attention.qkv_bias,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    fields, _, experts = _common(config)
    return {**fields, "intermediate_size": experts.width, "sliding_window": None, "router_jitter_noise": 0.0}


def _qwen3_expresses(config: ModelConfig) -> bool:
    parts = _parts(config)
    return parts is not None and parts[0].qk_norm and parts[0].qkv_bias == parts[0].output_bias


def _mixtral_expresses(config: ModelConfig) -> bool:
    parts = _parts(config)
    if parts is None:
        return False
    attention, experts = parts
    return experts.normalize and not (attention.qk_norm or attention.qkv_bias or attention.output_bias)


QWEN3_MOE = _ExpertFamily(
    "qwen3_moe", "Qwen3MoeForCausalLM", _read_qwen3, _write_qwen3, _qwen3_expresses,
    _names("mlp.gate", "mlp.experts.N.gate_proj", "mlp.experts.N.up_proj", "mlp.experts.N.down_proj"), OUTER_NAMES,
)  # fmt: skip
_SPARSE = "block_sparse_moe"
MIXTRAL = _ExpertFamily(
    "mixtral", "MixtralForCausalLM", _read_mixtral, _write_mixtral, _mixtral_expresses,
    _names(f"{_SPARSE}.gate", f"{_SPARSE}.experts.N.w1", f"{_SPARSE}.experts.N.w3", f"{_SPARSE}.experts.N.w2"),
    OUTER_NAMES,
)  # fmt: skip
