"""A model's config as llama.cpp's architectures: their names, keys of metadata, and names of tensors.

llama.cpp turns neighbouring pairs of a head where Hugging Face turns its two halves, in architecture `llama` alone: the
rows of its q and k are interleaved head by head (`interleaved`). Llama 3's scaling is a tensor of divisors, rope_freqs.
Keys and names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from shoestring.core.errors import ModelFileError
from shoestring.export.gguf.format import Value
from shoestring.export.kinds import LOW_RANK, listed, unusual
from shoestring.models.config import ModelConfig
from shoestring.models.families.family import Family
from shoestring.models.families.registry import family_of
from shoestring.nn.config import GQAConfig, LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from shoestring.nn.feed_forward_config import MoEConfig
from shoestring.nn.rope import scaled_frequencies

_NAMES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "mixtral": "llama"}
_MODULES = {
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.output": "attn_output", "attention.query_norm": "attn_q_norm", "attention.key_norm": "attn_k_norm",
    "feed_forward_norm": "ffn_norm", "feed_forward.gate": "ffn_gate", "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down", "feed_forward.router": "ffn_gate_inp",
}  # fmt: skip
_OUTER = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
_EXPERT = re.compile(r"feed_forward\.experts\.\d+\.(gate|up|down)")
_PARAMETER = re.compile(r"blocks\.\d+\.(.+)\.(weight|bias)")
_TURNED = ("attn_q", "attn_k")


@dataclass(frozen=True)
class Architecture:
    """name: llama.cpp's. family: ours, whose folder the file reads back as. config: as written, no block shared."""

    name: str
    family: Family
    config: ModelConfig

    @property
    def attention(self) -> GQAConfig:
        assert isinstance(self.config.attention, GQAConfig)
        return self.config.attention

    @property
    def experts(self) -> MoEConfig | None:
        return self.config.feed_forward if isinstance(self.config.feed_forward, MoEConfig) else None

    def tensor_name(self, parameter: str, layer: int) -> str:
        """The name in the file of one of the decoder's parameters, which is in this layer. Experts of a layer are one
        tensor."""
        match = _PARAMETER.fullmatch(parameter)
        if match is None:
            module, _, kind = parameter.rpartition(".")
            return f"{_OUTER[module]}.{kind}"
        module, kind = match.groups()
        expert = _EXPERT.fullmatch(module)
        name = f"ffn_{expert[1]}_exps" if expert else _MODULES[module]
        return f"blk.{layer}.{name}.{kind}"

    def turned(self, name: str) -> int:
        """The head width of a tensor whose rows are interleaved, 0 of all others."""
        module = name.split(".")[-2]
        return self.attention.head_width if self.name == "llama" and module in _TURNED else 0

    def metadata(self) -> dict[str, Value]:
        """Keys below the architecture's name."""
        config, attention, experts = self.config, self.attention, self.experts
        width = config.feed_forward.width
        keys: dict[str, Value] = {
            "block_count": config.layers,
            "context_length": config.context,
            "embedding_length": config.width,
            "feed_forward_length": width,
            "attention.head_count": attention.heads,
            "attention.head_count_kv": attention.kv_heads,
            "attention.key_length": attention.head_width,
            "attention.value_length": attention.head_width,
            "attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
            "rope.dimension_count": attention.head_width,
            "vocab_size": config.vocabulary,
            **_rope_metadata(_rope(config)),
        }
        if experts is not None:
            keys |= {"expert_count": experts.experts, "expert_used_count": experts.active}
            if self.name == "qwen3moe":
                keys["expert_feed_forward_length"] = width
        return {f"{self.name}.{key}": value for key, value in keys.items()}

    def rope_divisors(self) -> np.ndarray | None:
        """rope_freqs, float32 [C / 2]: what Llama 3's scaling divides each frequency by; None with another."""
        rope = _rope(self.config)
        if not isinstance(rope.scaling, Llama3Scaling):
            return None
        width = self.attention.head_width
        scaled, _ = scaled_frequencies(rope, width)
        plain, _ = scaled_frequencies(RopeConfig(theta=rope.theta), width)
        return (plain.double() / scaled.double()).float().numpy()


def architecture_of(config: ModelConfig, where: str | None = None) -> Architecture:
    """What llama.cpp computes this config as. Raises ModelFileError, which names all that it cannot."""
    config = config.model_copy(update={"sharing": None})
    if parts := unusual(config):
        raise ModelFileError(
            f"this model has {listed(parts)}, and llama.cpp has no such thing", where,
            "a GGUF file holds models like Llama, Qwen2, Qwen3 and Mixtral"
            + ("; shoestring merge MODEL multiplies factors out" if parts == [LOW_RANK] else ""),
        )  # fmt: skip
    family = family_of(config)
    if family.model_type not in _NAMES:
        raise ModelFileError(
            "no model of llama.cpp has this one's biases, norms and experts together (qkv_bias, qk_norm, normalize)",
            where, "a GGUF file holds models like Llama, Qwen2, Qwen3 and Mixtral",
        )  # fmt: skip
    found = Architecture(_NAMES[family.model_type], family, config)
    if reason := _reason(found):
        raise ModelFileError(reason, where)
    return found


def interleaved(values: np.ndarray, head: int) -> np.ndarray:
    """Rows of whole heads, each with its first half and then its second, as pairs of both. [rows, width]"""
    halves = values.reshape(-1, 2, head // 2, values.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def apart(values: np.ndarray, head: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    pairs = values.reshape(-1, head // 2, 2, values.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _reason(found: Architecture) -> str | None:
    """Why a model of a family that llama.cpp has is still none of its own."""
    config, attention, experts = found.config, found.attention, found.experts
    if (attention.qkv_bias and found.name != "qwen2") or getattr(config.feed_forward, "bias", False):
        return f"biases on the matrices of a {found.name} model are not written to GGUF"
    if found.name == "qwen2" and attention.heads * attention.head_width != config.width:
        return (
            f"{attention.heads} heads of {attention.head_width} are not the width {config.width}, which llama.cpp's"
            " qwen2 takes for granted"
        )
    if found.name == "qwen3moe" and experts is not None and not experts.normalize:
        return "llama.cpp scales the weights of a token's experts to add up to 1, and this model does not (normalize)"
    rope = _rope(config)
    if isinstance(rope.scaling, Llama3Scaling):
        if found.name != "llama":
            return f"llama.cpp has Llama 3's rotary scaling for llama models alone, and this is a {found.name} one"
        if (rope.scaling.low_frequency_factor, rope.scaling.high_frequency_factor) != (1.0, 4.0):
            return "of Llama 3's rotary scaling only low_freq_factor 1 with high_freq_factor 4 is written to GGUF"
    if isinstance(rope.scaling, YarnScaling):
        usual = YarnScaling(factor=rope.scaling.factor, original_context=rope.scaling.original_context)
        if rope.scaling != usual:
            return "of YaRN's rotary scaling only factor and original context are written to GGUF, and this has others"
    return None


def _rope(config: ModelConfig) -> RopeConfig:
    assert isinstance(config.position, RopeConfig)
    return config.position


def _rope_metadata(rope: RopeConfig) -> dict[str, Value]:
    base: dict[str, Value] = {"rope.freq_base": float(rope.theta)}
    match rope.scaling:
        case LinearScaling(factor=factor):
            return {**base, "rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
        case YarnScaling(factor=factor, original_context=original):
            scaling: dict[str, Value] = {"rope.scaling.type": "yarn", "rope.scaling.factor": float(factor)}
            return {**base, **scaling, "rope.scaling.original_context_length": original}
        case Llama3Scaling(original_context=original):  # the rest is the tensor of divisors
            return {**base, "rope.scaling.original_context_length": original}
        case _:
            return base
