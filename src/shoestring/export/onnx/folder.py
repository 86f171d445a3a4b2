"""A model folder for onnxruntime-genai and transformers.js: graph, weights, tokenizer, and the configs of both.

`onnx/model.onnx` (with `_quantized` for int8, `_q4` for int4) and its weights in `onnx/model.onnx_data`, under the
names that transformers.js looks for; `genai_config.json` names the same file. Both read the tokenizer's two files.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoestring.core.errors import ModelFileError
from shoestring.core.files import atomic_folder
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.config import ONNXType
from shoestring.export.onnx import in_onnxruntime
from shoestring.export.onnx.decoder import check_kinds, decoder_graph
from shoestring.export.onnx.graph import write
from shoestring.export.result import Exported
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import family_of, read_config, read_json
from shoestring.models.folder import GenerationDefaults, check_rows, read_generation_config
from shoestring.models.peft_folder import is_adapter
from shoestring.models.resolve import Say
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.config import GQAConfig

NAMES: dict[ONNXType, str] = {"fp32": "model", "int8": "model_quantized", "int4": "model_q4"}
_DTYPES: dict[ONNXType, str] = {"fp32": "fp32", "int8": "q8", "int4": "q4"}  # as transformers.js calls them
_KNOWN_TYPES = ("llama", "qwen2", "qwen3")


def export_onnx_folder(folder: Path, out: Path, kind: ONNXType, say: Say | None = None) -> Exported:
    """Write the folder `out`. Raises what `check_folder` and `write_folder` do, and RunError where the disk is full."""
    check_folder(folder)
    with atomic_folder(out) as temporary:
        done = write_folder(folder, temporary, kind, say)
    return replace(done, file=out)


def check_folder(folder: Path) -> None:
    """Raises ModelFileError for an adapter, and for kinds that a graph cannot say, before anything is written."""
    if is_adapter(folder):
        raise ModelFileError(
            "an adapter is not written as an ONNX graph", str(folder),
            f"merge it: shoestring merge {folder} --out FOLDER, then export that",
        )  # fmt: skip
    check_kinds(read_config(folder), str(folder))


def write_folder(folder: Path, place: Path, kind: ONNXType, say: Say | None = None) -> Exported:
    """Fill the empty folder `place`. Raises ModelFileError where onnxruntime, if there, computes something else."""
    with WeightFiles(folder) as files:
        config = files.config
        tokenizer, generation = Tokenizer.load(folder), read_generation_config(folder)
        check_rows(tokenizer, config, folder)
        graph, inputs, outputs = decoder_graph(config, files.places, kind)
        (place / "onnx").mkdir()
        if say is not None:
            say(f"writing {NAMES[kind]}.onnx")
        path = place / "onnx" / f"{NAMES[kind]}.onnx"
        written = write(graph, path, inputs, outputs)
    _write_json(place / "config.json", _config(folder, config, generation, kind))
    genai = genai_config(config, tokenizer, generation, kind)
    _write_json(place / "genai_config.json", genai)
    ends = genai["model"]["eos_token_id"]
    ids = {**generation.ids(), "eos_token_id": ends}  # all of them: transformers.js looks nowhere else
    defaults = {**generation.settings, **{name: i for name, i in ids.items() if i not in (None, [])}}
    _write_json(place / "generation_config.json", defaults)
    tokenizer.save(place)
    checked, unchecked = in_onnxruntime.check(path, folder, config, tokenizer, kind, ends)
    formats = Counter(str(weight.dtype) for weight in graph.weights.values())
    return Exported(place, sum(file.stat().st_size for file in written), dict(formats), checked, unchecked)


def genai_config(
    config: ModelConfig, tokenizer: Tokenizer, generation: GenerationDefaults, kind: ONNXType
) -> dict[str, Any]:
    """What onnxruntime-genai reads. https://onnxruntime.ai/docs/genai/reference/config.html"""
    attention = config.attention
    assert isinstance(attention, GQAConfig)
    family = family_of(config).model_type
    ends = list(dict.fromkeys([*generation.eos_ids, *_some(tokenizer.eos_id), *_some(tokenizer.end_of_reply_id)]))
    pad = next(iter([*_some(tokenizer.pad_id), *_some(generation.pad_id), *ends]), 0)
    bos = next(iter([*_some(tokenizer.bos_id), *_some(generation.bos_id), *ends]), 0)
    return {
        "model": {
            "type": family if family in _KNOWN_TYPES else _KNOWN_TYPES[0],  # says only that it is a text model
            "bos_token_id": bos,
            "eos_token_id": ends,
            "pad_token_id": pad,
            "context_length": config.context,
            "vocab_size": config.vocabulary,
            "decoder": {
                "filename": f"onnx/{NAMES[kind]}.onnx",
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": attention.head_width,
                "hidden_size": config.width,
                "num_attention_heads": attention.heads,
                "num_key_value_heads": attention.kv_heads,
                "num_hidden_layers": config.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {**_search(generation.settings), "max_length": config.context, "past_present_share_buffer": False},
    }


def _search(settings: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json's own settings that genai has too; it samples where they ask for that."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    found = {name: settings[name] for name in names if type(settings.get(name)) in (int, float)}
    return {"do_sample": settings.get("do_sample") is True, "num_beams": 1, **found}


def _config(folder: Path, config: ModelConfig, generation: GenerationDefaults, kind: ONNXType) -> dict[str, Any]:
    """The model's own config.json, and which weights transformers.js takes, and where it finds them.

    Of a model that transformers.js does not know it needs no more than sizes: what is computed, the graph says."""
    attention = config.attention
    assert isinstance(attention, GQAConfig)
    values = read_json(folder / "config.json")
    if values.get("model_type") not in _KNOWN_TYPES:
        values = {
            "model_type": _KNOWN_TYPES[0],
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "intermediate_size": config.feed_forward.width,
            "num_hidden_layers": config.layers,
            "max_position_embeddings": config.context,
            **generation.ids(),
        }
    heads = {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_width,
    }
    where = {"dtype": _DTYPES[kind], "use_external_data_format": {f"{NAMES[kind]}.onnx": 1}}
    return {**values, **heads, "transformers.js_config": where}


def _some(i: int | None) -> list[int]:
    return [] if i is None else [i]


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
