"""A GGUF file to a Hugging Face folder: config, weights, tokenizer and generation settings.

Tensors stream through memory in slices. llama.cpp rotates neighbouring pairs of a head where Hugging Face
rotates its two halves, so files of architecture `llama` store the rows of q and k interleaved; that is
undone here, per head. `qwen2` and `qwen3` files are not permuted. Quantized weights become float32 by
default, because their values (a scale times an integer) are exact in none of the 16-bit types.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType

from shoestring.core.files import atomic_folder
from shoestring.models.gguf.config import read_config
from shoestring.models.gguf.dequantize import SUPPORTED, read_slices
from shoestring.models.gguf.reader import GGUFFile, TensorInfo
from shoestring.models.gguf.safetensors_stream import DTYPES, StreamedTensor, cast, write_model
from shoestring.models.gguf.split import open_gguf
from shoestring.models.gguf.tokenizer import end_ids, read_tokenizer, token_id

SHARD_BYTES = 5 * 10**9


def convert(
    path: str | Path,
    folder: str | Path,
    dtype: str = "auto",
    max_shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> Path:
    """Write the model in the GGUF file `path`, or in all parts of which it is one, as a Hugging Face
    folder; -> that folder.

    dtype: "float32", "float16", "bfloat16", or "auto": the smallest that holds all values exactly. The folder
    appears whole or not at all; replace: an existing one is exchanged. Raises ModelFileError for a broken or
    unsupported file, TokenizerError for an unsupported tokenizer.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, not {dtype!r}")
    with open_gguf(path) as file:
        config = read_config(file)
        tensors = plan_tensors(file, config)
        tokenizer = read_tokenizer(file)
        if dtype == "auto":
            dtype = exact_dtype(file)
        count = config["vocab_size"]
        ends = end_ids(file)
        ids: dict[str, Any] = {
            "bos_token_id": token_id(file, "tokenizer.ggml.bos_token_id", count),
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": token_id(file, "tokenizer.ggml.padding_token_id", count),
        }
        with atomic_folder(folder, replace=replace) as temporary:
            write_model(temporary, tensors, dtype, max_shard_bytes)
            write_json(temporary / "config.json", {**config, **ids, "dtype": dtype})
            write_json(temporary / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
            tokenizer.save(temporary)
    return Path(folder)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def exact_dtype(file: GGUFFile) -> str:
    """The smallest dtype that holds every weight of the file without rounding.

    That is a 16-bit type only if all matrices have it and the float32 vectors (norms, biases) fit it too.
    """
    used = [info for name, info in file.tensors.items() if name != "rope_freqs.weight"]
    kinds = {info.type for info in used if len(info.shape) > 1}
    if kinds == {GGMLQuantizationType.F16}:
        dtype = "float16"
    elif kinds == {GGMLQuantizationType.BF16}:
        dtype = "bfloat16"
    else:
        return "float32"
    for info in used:
        if len(info.shape) > 1 or info.type == GGMLQuantizationType[DTYPES[dtype][0]]:
            continue
        for values in read_slices(file, info):
            stored = cast(values, dtype)
            if dtype == "bfloat16":
                back = (stored.view("<u2").astype("<u4") << 16).view("<f4")
            else:
                back = stored.astype(np.float32)
            if not np.array_equal(back.ravel(), values.ravel(), equal_nan=True):
                return "float32"
    return dtype


class Source(NamedTuple):
    """The tensor of a file that is one of the folder, called `name` there. halves: the head width whose interleaved
    rotary halves are to be put apart, 0 for none."""

    name: str
    info: TensorInfo
    halves: int


def plan_tensors(file: GGUFFile, config: dict[str, Any]) -> list[StreamedTensor]:
    """Each tensor of the folder with the slices that make it. Raises what `sources` does."""
    return [StreamedTensor(one.name, one.info.shape, partial(_values, file, one)) for one in sources(file, config)]


def sources(file: GGUFFile, config: dict[str, Any]) -> list[Source]:
    """Where each tensor of the folder comes from, in Hugging Face's order.

    Raises ModelFileError for a missing, unknown or wrongly shaped tensor, or one of an unsupported type.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    arch, layers = config["model_type"], config["num_hidden_layers"]
    if layers > len(file.tensors):
        raise file.error(f"{arch}.block_count is {layers}, more layers than there are tensors")
    left = {name for name in file.tensors if name != "rope_freqs.weight"}
    planned: list[Source] = []

    def take(source: str, target: str, *shape: int, halves: int = 0) -> None:
        info = file.tensors.get(source)
        if info is None:
            raise file.error(f"the tensor {source!r} is missing")
        if info.shape != shape:
            raise file.error(f"tensor {source!r} has the shape {info.shape}, expected {shape}")
        if info.type not in SUPPORTED:
            raise file.error(f"tensor {source!r} has the unsupported type {info.type.name}")
        left.remove(source)
        planned.append(Source(target, info, halves))

    take("token_embd.weight", "model.embed_tokens.weight", config["vocab_size"], hidden)
    halves = head_dim if arch == "llama" else 0
    for layer in range(layers):
        here, there = f"blk.{layer}.", f"model.layers.{layer}."
        take(f"{here}attn_norm.weight", f"{there}input_layernorm.weight", hidden)
        attention = f"{there}self_attn."
        take(f"{here}attn_q.weight", f"{attention}q_proj.weight", heads * head_dim, hidden, halves=halves)
        take(f"{here}attn_k.weight", f"{attention}k_proj.weight", kv_heads * head_dim, hidden, halves=halves)
        take(f"{here}attn_v.weight", f"{attention}v_proj.weight", kv_heads * head_dim, hidden)
        take(f"{here}attn_output.weight", f"{attention}o_proj.weight", hidden, heads * head_dim)
        if arch == "qwen2":
            take(f"{here}attn_q.bias", f"{attention}q_proj.bias", heads * head_dim)
            take(f"{here}attn_k.bias", f"{attention}k_proj.bias", kv_heads * head_dim)
            take(f"{here}attn_v.bias", f"{attention}v_proj.bias", kv_heads * head_dim)
        if arch == "qwen3":
            take(f"{here}attn_q_norm.weight", f"{attention}q_norm.weight", head_dim)
            take(f"{here}attn_k_norm.weight", f"{attention}k_norm.weight", head_dim)
        take(f"{here}ffn_norm.weight", f"{there}post_attention_layernorm.weight", hidden)
        take(f"{here}ffn_gate.weight", f"{there}mlp.gate_proj.weight", inner, hidden)
        take(f"{here}ffn_up.weight", f"{there}mlp.up_proj.weight", inner, hidden)
        take(f"{here}ffn_down.weight", f"{there}mlp.down_proj.weight", hidden, inner)
    take("output_norm.weight", "model.norm.weight", hidden)
    if not config["tie_word_embeddings"]:
        take("output.weight", "lm_head.weight", config["vocab_size"], hidden)
    if left:
        raise file.error(f"the tensor {min(left)!r} is not known for {arch} models")
    return planned


def _values(file: GGUFFile, source: Source) -> Iterable[np.ndarray]:
    return _halves_apart(file, source.info, source.halves) if source.halves else read_slices(file, source.info)


def _halves_apart(file: GGUFFile, info: TensorInfo, head_dim: int) -> Iterator[np.ndarray]:
    """Rows 0, 2, 4, ... of each head, then rows 1, 3, 5, ...: what llama.cpp's converter interleaved."""
    for rows in read_slices(file, info, multiple=head_dim):
        pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
        yield np.ascontiguousarray(pairs.swapaxes(1, 2))
