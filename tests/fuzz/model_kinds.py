"""Damaged models: folders, weights in few bits or factors, tokenizers, adapters, GGUF files."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file

from shoestring.compression.factorize.job import factorize
from shoestring.compression.quantize.job import quantize
from shoestring.models.adapters import attach
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from tests.data import templates
from tests.finetuning import tiny
from tests.fuzz.kind import Damage, Kind, call, command
from tests.fuzz.mutations import damaged, damaged_json, damaged_safetensors, damaged_template
from tests.models.gptq_folders import make_folder


def model(sound: Path, base: Path, rows: Path) -> Kind:
    shutil.copytree(base, sound)
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "generation_config.json": [damaged_json],
        "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    speak = ("--prompt", "1+1?", "--max-tokens", 2)
    return Kind("model", sound, files, lambda it, rng: command("generate", it, *speak))


def quantized(sound: Path, base: Path, rows: Path) -> Kind:
    """Weights in few bits, with zero points."""
    quantize(base, sound, group=16, method="rtn", symmetric=False)
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("quantized", sound, files, lambda it, rng: call(load_model, it))


def factorized(sound: Path, base: Path, rows: Path) -> Kind:
    """Matrices of ranks of their own."""
    factorize(base, sound, "0.95x")
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("factorized", sound, files, lambda it, rng: call(load_model, it))


def of_gptq(sound: Path, base: Path, rows: Path) -> Kind:
    """Weights in few bits as the libraries of GPTQ write them."""
    make_folder(base, sound, "gptq")
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("gptq", sound, files, lambda it, rng: call(load_model, it))


def shards(sound: Path, base: Path, rows: Path) -> Kind:
    """Weights in several files with an index."""
    save_model(load_model(base), sound, max_shard_bytes=20_000)
    index = json.loads((sound / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    files: dict[str, list[Damage]] = {
        "model.safetensors.index.json": [damaged_json, damaged], first: [damaged_safetensors, damaged]
    }  # fmt: skip
    return Kind("shards", sound, files, lambda it, rng: call(load_model, it))


def tokenizer(sound: Path, base: Path, rows: Path) -> Kind:
    shutil.copytree(base, sound)
    config = json.loads((sound / "tokenizer_config.json").read_text())
    (sound / "chat_template.jinja").write_text(config.pop("chat_template"))
    backend = json.loads((sound / "tokenizer.json").read_text())
    added = {str(each["id"]): {"content": each["content"], "special": True} for each in backend["added_tokens"]}
    (sound / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": added}))
    (sound / "special_tokens_map.json").write_text(
        json.dumps({"additional_special_tokens": list(added), "x": {"content": "y"}})
    )
    files: dict[str, list[Damage]] = {
        "tokenizer.json": [damaged_json, damaged_json, damaged], "tokenizer_config.json": [damaged_json, damaged],
        "special_tokens_map.json": [damaged_json], "chat_template.jinja": [damaged_template],
    }  # fmt: skip

    def read(it: Path, rng: random.Random) -> int:
        return command("chat", it, "--prompt", "1+1? é <|im_end|>", "--max-tokens", 2)

    return Kind("tokenizer", sound, files, read)


def adapter(sound: Path, base: Path, rows: Path) -> Kind:
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=4))
    save_adapter(decoder, sound, base)
    config = json.loads((sound / "adapter_config.json").read_text())
    patterns = {
        "rank_pattern": {r"model\.layers\.0\..*q_proj": 4, "layers.1.mlp.(up|gate)_proj": 4},
        "alpha_pattern": {"v_proj": 8},
    }
    (sound / "adapter_config.json").write_text(json.dumps({**config, **patterns}))
    files: dict[str, list[Damage]] = {
        "adapter_config.json": [damaged_json, damaged_json, damaged],
        "adapter_model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("adapter", sound, files, lambda it, rng: command("generate", it, "--prompt", "1", "--max-tokens", 2))


def of_gguf(sound: Path, base: Path, rows: Path) -> Kind:
    """A llama with a byte-level tokenizer, by gguf's own writer."""
    sound.mkdir()
    tensors = load_file(base / "model.safetensors")
    backend = json.loads((base / "tokenizer.json").read_text())
    known = {**backend["model"]["vocab"], **{each["content"]: each["id"] for each in backend["added_tokens"]}}
    tokens = sorted(known, key=lambda token: known[token])
    shape = ModelConfig.model_validate({**tiny.SHAPE, "vocabulary": len(tokens)})
    heads, kv_heads = shape.attention.heads, shape.attention.kv_heads
    writer = gguf.GGUFWriter(sound / "m.gguf", "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(48)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    special = {each["content"] for each in backend["added_tokens"]}
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in backend["model"]["merges"]])
    writer.add_eos_token_id(known[sorted(special)[0]])
    writer.add_chat_template(templates.CHATML)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module not in whole:
            _, _, layer, rest = module.split(".", 3)
            whole[module] = f"blk.{layer}.{names[rest]}"
        values = tensor.numpy()
        kind = GGMLQuantizationType.Q8_0 if values.ndim > 1 and values.shape[1] % 32 == 0 else GGMLQuantizationType.F32
        stored = quants.quantize(np.ascontiguousarray(values), kind) if kind == GGMLQuantizationType.Q8_0 else values
        writer.add_tensor(f"{whole[module]}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Kind(
        "gguf", sound, {"m.gguf": [damaged]}, lambda it, rng: command("get", it / "m.gguf", "--out", it / "out")
    )
