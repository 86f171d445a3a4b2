"""Folders as the libraries of GPTQ and AWQ write them, number by number from what their formats say."""

from __future__ import annotations

import json
import random as randoms
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that stands at each nibble of a word


def signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def in_a_row(codes: list[int], bits: int) -> list[int]:
    """32-bit words of codes side by side, the first in the lowest bits."""
    number = sum(code << i * bits for i, code in enumerate(codes))
    return [signed(number >> 32 * w & 0xFFFFFFFF) for w in range(-(-len(codes) * bits // 32))]


def by_eights(codes: list[int]) -> list[int]:
    """As AWQ packs a row."""
    return [
        signed(sum(codes[first + place] << 4 * nibble for nibble, place in enumerate(_AWQ_ORDER)))
        for first in range(0, len(codes), 8)
    ]


def make_folder(
    dense: Path, folder: Path, method: str, bits: int = 4, group: int = 16, version: int = 1, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A folder of the same config with random codes in the linears of its blocks -> the weights that they stand for."""
    folder.mkdir()
    random = randoms.Random(seed)
    tensors, weights = load_file(dense / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        module, size = name.removesuffix(".weight"), inputs if group == -1 else group
        groups, top = inputs // size, 1 << bits
        q = [[random.randrange(top) for _ in range(inputs)] for _ in range(outputs)]
        z = [[random.randrange(top) for _ in range(outputs)] for _ in range(groups)]
        scale = torch.tensor([[random.uniform(0.005, 0.05) for _ in range(outputs)] for _ in range(groups)]).half()
        weights[name] = torch.tensor(
            [[(q[o][i] - z[i // size][o]) * float(scale[i // size, o]) for i in range(inputs)] for o in range(outputs)]
        )
        if method == "awq":
            tensors[f"{module}.qweight"] = torch.tensor(
                [by_eights([q[o][i] for o in range(outputs)]) for i in range(inputs)], dtype=torch.int32
            )
            tensors[f"{module}.qzeros"] = torch.tensor([by_eights(row) for row in z], dtype=torch.int32)
        else:
            stored = [[(one - 1) % top if version == 1 else one for one in row] for row in z]
            words = torch.tensor([in_a_row(row, bits) for row in q], dtype=torch.int32)
            tensors[f"{module}.qweight"] = words.t().contiguous()
            tensors[f"{module}.qzeros"] = torch.tensor([in_a_row(row, bits) for row in stored], dtype=torch.int32)
            tensors[f"{module}.g_idx"] = torch.arange(inputs, dtype=torch.int32) // size
        tensors[f"{module}.scales"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values: dict[str, Any] = json.loads((dense / "config.json").read_text())
    values["quantization_config"] = section_of(method, bits, group, version)
    (folder / "config.json").write_text(json.dumps(values))
    return weights


def section_of(method: str, bits: int, group: int, version: int) -> dict[str, Any]:
    if method == "awq":
        return {
            "quant_method": "awq", "bits": bits, "group_size": group, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": None,
        }  # fmt: skip
    return {
        "quant_method": "gptq", "bits": bits, "group_size": group, "sym": False, "desc_act": False,
        "damp_percent": 0.01, "checkpoint_format": "gptq" if version == 1 else "gptq_v2", "lm_head": False,
        "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:4.0.0"]},
    }  # fmt: skip
