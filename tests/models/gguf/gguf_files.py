"""Makes tiny GGUF files with gguf's own writer, from tiny random models of transformers.

The permutation is that of llama.cpp's converter, so that undoing it is checked against its author's code.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType, quants

TEXT = (
    "The quick brown fox's 12 jumps over 3456 lazy dogs.\n\nWe'll see: don't?\tDEF x_1(y):\n    return x\n"
    * 3
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
SPECIALS = ["<|begin|>", "<|im_end|>", "<|pad|>"]
USER_DEFINED = "<think>"


@cache
def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens (bytes, merged ones, specials, one user-defined, one unused) and merges of a small BPE."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([TEXT], trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get) + SPECIALS + [USER_DEFINED]
    return [*tokens, f"[PAD{len(tokens)}]"], [" ".join(pair) for pair in model["merges"]]


def tiny_model(arch: str, seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """A random model of transformers: two layers, width 64, 4 query heads over 2 key/value heads of 16."""
    configs = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    settings: dict[str, Any] = {
        "vocab_size": len(vocabulary()[0]),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }
    if arch == "qwen3":
        settings["head_dim"] = 32
    torch.manual_seed(seed)
    config = configs[arch](**{**settings, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, which would begin as ones and zeros
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's converter, `LlamaModel.permute`."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    whole["lm_head.weight"] = "output.weight"
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def quantize_model(model: transformers.PreTrainedModel, kind: str) -> None:
    """Replace each matrix by what storing it as `kind` leaves of it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                stored = quants.quantize(parameter.numpy(), GGMLQuantizationType[kind])
                parameter.copy_(torch.from_numpy(quants.dequantize(stored, GGMLQuantizationType[kind])))


def write_gguf(
    path: Path,
    model: transformers.PreTrainedModel,
    kind: str = "F32",
    pre: str = "smollm",
    permuted: bool = True,
    metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    leave_out: tuple[str, ...] = (),
) -> Path:
    """Write `model` as a GGUF file. metadata: more pairs (int, float, str, bool); extra: more tensors."""
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if arch == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    add_tokenizer(writer, pre)
    for key, value in (metadata or {}).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](key, value)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if permuted and arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permute(
                values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            )
        target = gguf_name(name)
        if target in leave_out:
            continue
        type_of = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        if type_of == GGMLQuantizationType.F32:
            writer.add_tensor(target, np.ascontiguousarray(values))
        else:
            writer.add_tensor(
                target, quants.quantize(np.ascontiguousarray(values), type_of), raw_dtype=type_of
            )
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    tokens, merges = vocabulary()
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for token in SPECIALS:
        kinds[tokens.index(token)] = gguf.TokenType.CONTROL
    kinds[tokens.index(USER_DEFINED)] = gguf.TokenType.USER_DEFINED
    kinds[-1] = gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for add, token in zip(
        (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id), SPECIALS, strict=True
    ):
        add(tokens.index(token))
    writer.add_chat_template(TEMPLATE)
