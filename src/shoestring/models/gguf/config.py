"""The Hugging Face config of a model in a GGUF file, from its metadata.

GGUF says the same things in other words (`llama.attention.head_count_kv` is `num_key_value_heads`), except
for Llama 3's rotary scaling: that is stored as a tensor of divisors, from which the settings are recovered.
Settings that change the computation and are not known here are refused by name, never dropped.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shoestring.models.gguf.dequantize import read_slices
from shoestring.models.gguf.reader import GGUFFile

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Keys below the architecture's name. All others are refused.
_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "vocab_size",
    "expert_count",
    "expert_used_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scale_linear",
    "attention.causal",
    "attention.sliding_window",
}
_HARMLESS = {"rope.scaling.finetuned", "tensor_data_layout"}
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


def read_config(file: GGUFFile) -> dict[str, Any]:
    """`config.json` as Hugging Face writes it, without the token ids. Raises ModelFileError."""
    arch = file.text("general.architecture")
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise file.error(f"the architecture {arch!r} is not supported", hint=f"supported: {known}")
    for key in file.metadata:
        prefix, _, rest = key.partition(".")
        if prefix == arch and rest not in _READ and rest not in _HARMLESS:
            raise file.error(f"metadata {key} is not supported: it may change what the model computes")
    if file.integer(f"{arch}.expert_count", 0):
        raise file.error(f"this {arch} model is a mixture of experts, which is not supported")
    window = file.integer(f"{arch}.attention.sliding_window", 0) or 0
    if 0 < window < positive(file, f"{arch}.context_length") or not file.flag(
        f"{arch}.attention.causal", True
    ):
        raise file.error(
            "only full causal attention is supported (attention.sliding_window, attention.causal)"
        )

    layers = positive(file, f"{arch}.block_count")
    hidden = positive(file, f"{arch}.embedding_length")
    heads = positive(file, f"{arch}.attention.head_count")
    kv_heads = positive(file, f"{arch}.attention.head_count_kv", heads)
    context = positive(file, f"{arch}.context_length")
    if file.integer(f"{arch}.attention.key_length") is None and hidden % heads:
        raise file.error(f"{heads} attention heads do not divide the width {hidden}")
    head_dim = positive(file, f"{arch}.attention.key_length", max(1, hidden // heads))
    if heads % kv_heads:
        raise file.error(f"{kv_heads} key/value heads do not divide {heads} query heads")
    if head_dim % 2:
        raise file.error(f"rotary positions need an even head width, not {head_dim}")
    for key in ("attention.value_length", "rope.dimension_count"):
        if positive(file, f"{arch}.{key}", head_dim) != head_dim:
            raise file.error(f"{arch}.{key} differs from the head width {head_dim}, which is not supported")
    theta = file.number(f"{arch}.rope.freq_base", 10000.0)
    epsilon = file.number(f"{arch}.attention.layer_norm_rms_epsilon")
    if epsilon is None or not 0 < epsilon < 1:
        raise file.error(f"{arch}.attention.layer_norm_rms_epsilon must be there and lie between 0 and 1")
    if theta is None or theta <= 0:
        raise file.error(f"{arch}.rope.freq_base must be positive")

    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": positive(file, f"{arch}.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        # The file has float32; the shortest decimal that rounds to it is the number that was meant.
        "rms_norm_eps": float(str(np.float32(epsilon))),
        "rope_theta": float(str(np.float32(theta))),
        "vocab_size": vocabulary_size(file, arch),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_dropout": 0.0,
    }
    if arch == "qwen2":
        if head_dim * heads != hidden:
            raise file.error(
                f"a qwen2 model with heads of {head_dim} is not supported: {heads} of them are not {hidden}"
            )
        config |= {"use_sliding_window": False}
    else:
        config |= {"head_dim": head_dim, "attention_bias": False}
    if arch == "llama":
        config |= {"mlp_bias": False}
    scaling = rope_scaling(file, arch, head_dim, config["rope_theta"])
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def positive(file: GGUFFile, key: str, default: int | None = None) -> int:
    """A positive integer in the metadata. Raises ModelFileError."""
    value = file.integer(key, default)
    if value is None:
        raise file.error(f"metadata {key} is missing")
    if not 0 < value < 2**31:
        raise file.error(f"metadata {key} must be positive, not {value}")
    return value


def vocabulary_size(file: GGUFFile, arch: str) -> int:
    """Rows of the embedding, which tokens and metadata must agree with."""
    info = file.tensors.get("token_embd.weight")
    if info is None:
        raise file.error("the tensor 'token_embd.weight' is missing")
    rows = info.shape[0]
    tokens = file.strings("tokenizer.ggml.tokens")
    for what, count in (
        ("the vocabulary", rows if tokens is None else len(tokens)),
        (f"{arch}.vocab_size", file.integer(f"{arch}.vocab_size", rows)),
    ):
        if count != rows:
            raise file.error(f"{what} has {count} tokens, but token_embd.weight has {rows} rows")
    return rows


def rope_scaling(file: GGUFFile, arch: str, head_dim: int, theta: float) -> dict[str, Any] | None:
    """The rotary scaling as Hugging Face's `rope_scaling`, None for none. Raises ModelFileError."""
    kind = file.text(f"{arch}.rope.scaling.type", "none")
    factor = file.number(f"{arch}.rope.scaling.factor", file.number(f"{arch}.rope.scale_linear"))
    if f"{arch}.rope.scale_linear" in file.metadata and f"{arch}.rope.scaling.type" not in file.metadata:
        kind = "linear" if factor != 1 else "none"
    original = file.integer(f"{arch}.rope.scaling.original_context_length")
    if "rope_freqs.weight" in file.tensors:
        if kind != "none":
            raise file.error(
                f"rope_freqs.weight together with {arch}.rope.scaling.type {kind!r} is not supported"
            )
        return _llama3_scaling(file, head_dim, theta, original or _LLAMA3_CONTEXT)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise file.error(f"{arch}.rope.scaling.type {kind!r} is not supported (none, linear and yarn are)")
    if factor is None or factor < 1:
        raise file.error(f"{arch}.rope.scaling.factor must be at least 1 with {kind} scaling")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        original = positive(file, f"{arch}.rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
    return scaling


def llama3_divisors(head_dim: int, theta: float, factor: float, original: int) -> np.ndarray:
    """What Llama 3's scaling divides each rotary frequency by, float64 [head_dim / 2].

    Source: `_compute_llama3_parameters` of transformers; llama.cpp's converter stores the same numbers.
    """
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (original / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    between = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelength > original / _LLAMA3_LOW, factor, between)
    return np.where(wavelength < original / _LLAMA3_HIGH, 1.0, divisors)


def _llama3_scaling(file: GGUFFile, head_dim: int, theta: float, original: int) -> dict[str, Any] | None:
    info = file.tensors["rope_freqs.weight"]
    if info.shape != (head_dim // 2,):
        raise file.error(
            f"tensor 'rope_freqs.weight' has the shape {info.shape}, expected {(head_dim // 2,)}"
        )
    stored = np.concatenate(list(read_slices(file, info))).ravel()
    if (stored == 1).all():
        return None
    for factor in (float(stored.max()), *_LLAMA3_FACTORS):
        # The largest is the factor only if some wavelength is beyond the original context.
        if factor > 1 and np.allclose(
            stored, llama3_divisors(head_dim, theta, factor, original), rtol=1e-4, atol=0
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LLAMA3_LOW,
                "high_freq_factor": _LLAMA3_HIGH,
                "original_max_position_embeddings": original,
            }
    raise file.error(
        "tensor 'rope_freqs.weight' holds a rotary scaling that is none of Llama 3's, which is not supported"
    )
