"""Tiny random models of transformers for the tests of adapters: Llama, Qwen2 and Qwen3, biases and norms drawn too."""

from __future__ import annotations

import types
from pathlib import Path

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
}


def make_model(family: str, dtype: torch.dtype = torch.float64, **sizes) -> PreTrainedModel:
    """Its weights are drawn; nothing is at a trivial start. sizes: other fields of the config."""
    config, kind, settings = EVERY_FAMILY[family]
    torch.manual_seed(5)
    model = kind(config(**{**SIZES, **settings, **sizes})).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif "norm" in name:
                parameter.normal_(1, 0.1)
            else:
                parameter.normal_(0, 0.15)
    return model


def norms_in_float64(model: torch.nn.Module) -> None:
    """transformers computes norms in float32 whatever the model's dtype; a judge of 1e-6 must not."""

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(forward, module)


def save(family: str, folder: Path, dtype: torch.dtype = torch.float64) -> Path:
    make_model(family, dtype).save_pretrained(folder)
    return folder


_HEADS_OF_MLA = {
    "num_key_value_heads": 4, "kv_lora_rank": 12, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6,
    "v_head_dim": 5, "first_k_dense_replace": 2, "n_routed_experts": 4, "moe_intermediate_size": 8,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 6, "tie_word_embeddings": False}
# Every family that is read, as config.json says it: (what makes configs, what makes models, fields beside SIZES).
EVERY_FAMILY = {
    **FAMILIES,
    "mixtral": (MixtralConfig, MixtralForCausalLM, {**_EXPERTS, "num_local_experts": 5}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {**_EXPERTS, "num_experts": 5, "moe_intermediate_size": 16}),
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM, _HEADS_OF_MLA),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM, {**_HEADS_OF_MLA, "q_lora_rank": 10}),
}
