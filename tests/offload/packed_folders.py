"""Tiny folders whose linears are in few bits, in every layout that is read, and their weights as dense folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.replace import replace_linears
from tests.finetuning.tiny import SHAPE
from tests.models.gptq_folders import make_folder
from tests.offload import tiny

OURS: dict[str, dict[str, Any]] = {
    "four bits": {"bits": 4, "group": 8},
    "three bits": {"bits": 3, "group": 8, "scale": "float32"},
    "zero points": {"bits": 4, "group": 8, "symmetric": False},
    "eight bits": {"bits": 8, "group": None, "scale": "float16"},
    "activations": {"bits": 8, "group": None, "activations": "int8"},
}
THEIRS = {"gptq": {"method": "gptq", "group": 8}, "awq": {"method": "awq", "group": 8}}
LAYOUTS = (*OURS, *THEIRS)


def packed(folder: Path, layout: str, family: str = "llama") -> Path:
    """-> folder/q"""
    if layout in THEIRS:
        shape = {**SHAPE, "vocabulary": tiny.VOCABULARY, "layers": tiny.LAYERS}  # what AWQ packs divides by eight
        save_model(build(ModelConfig.model_validate(shape), seed=0), dense := folder / "plain")
        make_folder(dense, folder / "q", **THEIRS[layout])  # type: ignore[arg-type]
        return folder / "q"
    decoder = load_model(tiny.save(folder / "plain", family, dtype=torch.float32))
    replace_linears(decoder, PackedConfig(**OURS[layout]), lambda name, _: name.startswith("blocks."))
    save_model(decoder, folder / "q")
    return folder / "q"


def dense_of(folder: Path, dtype: torch.dtype = torch.float64) -> Decoder:
    """The same model with dense linears of the same weights."""
    decoder = load_model(folder, dtype=dtype)
    for name, linear in packed_linears(decoder).items():
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, linear.to_linear())
    return decoder
