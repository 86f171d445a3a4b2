"""A PEFT adapter (LoRA) as a GGUF file that llama.cpp and Ollama put beside the base model's.

Tensors are called as the base's with `.lora_a` [rank, in] and `.lora_b` [out, rank] behind. llama.cpp adds
(alpha / rank) · B A x with one alpha for the file, so what an adapter does otherwise (a rank or alpha of its own for a
module, alpha / √rank) is multiplied into B. Rows of B are interleaved where those of the base's matrix are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.core.files import atomic_write
from shoestring.export.config import GGUFType
from shoestring.export.gguf.architecture import Architecture, architecture_of, interleaved
from shoestring.export.gguf.encode import encode, rounded
from shoestring.export.gguf.format import GGUFTensor, Value, write_gguf
from shoestring.export.gguf.mixture import FILE_TYPES
from shoestring.export.result import Exported
from shoestring.models.builder import build
from shoestring.models.families.registry import read_config
from shoestring.models.gguf.dequantize import dequantize
from shoestring.models.gguf.reader import GGUFFile
from shoestring.models.peft_config import read_adapter_config
from shoestring.models.peft_folder import WEIGHTS, find_base
from shoestring.models.resolve import Say
from shoestring.models.weights import TensorFile

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_KINDS: dict[GGUFType, Kind] = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16}


def export_adapter(folder: Path, out: Path, kind: GGUFType, name: str, say: Say | None = None) -> Exported:
    """Write `out`. The base is looked for, since its shapes are needed, but its weights are not read.

    Raises ModelFileError for what llama.cpp does not have, such as DoRA, and for what does not read back.
    """
    tell = say or (lambda sentence: None)
    base = find_base(folder, say)
    config_of_base = read_config(base)
    if config_of_base.sharing is not None:
        raise ModelFileError(
            "layers of the base share blocks, and an adapter of those is not written to GGUF", str(base),
            "merge the adapter, then export that",
        )  # fmt: skip
    architecture = architecture_of(config_of_base, str(base))
    config = read_adapter_config(folder)
    if config.lora.dora:
        raise ModelFileError(
            "this adapter is DoRA, and llama.cpp has LoRA alone", str(folder),
            f"merge it: shoestring merge {folder} --out FOLDER, then export that",
        )  # fmt: skip
    alpha = config.lora.strength
    metadata: dict[str, Value] = {
        "general.architecture": architecture.name,
        "general.type": "adapter",
        "general.name": name,
        "general.file_type": int(FILE_TYPES[kind]),
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    with TensorFile(folder / WEIGHTS) as file:
        made: dict[str, np.ndarray] = {}
        for module, parameter in _modules(file, architecture, base):
            first, second = (_read(file, f"{_PREFIX}{module}{end}") for end in (_A, _B))
            try:
                of_module = config.of(module)
            except ValueError as error:
                raise ModelFileError(f"not a usable adapter config: {error}", str(folder)) from error
            if first.shape[0] != of_module.rank or second.shape[1] != of_module.rank:
                raise ModelFileError(
                    f"the adapter of {module} has rank {first.shape[0]}, its config says {of_module.rank}",
                    str(file.path),
                )
            layer = int(parameter.split(".")[1])
            tensor = architecture.tensor_name(parameter, layer)
            second = second * (of_module.scale / (alpha / of_module.rank))
            turned = architecture.turned(tensor)
            made[f"{tensor}.lora_a"] = first.numpy()
            made[f"{tensor}.lora_b"] = interleaved(second.numpy(), turned) if turned else second.numpy()
    tensors = [
        GGUFTensor(name, values.shape, _KINDS[kind], partial(_encoded, values, _KINDS[kind], name))
        for name, values in made.items()
    ]
    tell(f"writing {out.name}")
    with atomic_write(out, "wb") as stream:
        write_gguf(stream, metadata, tensors)
        stream.flush()
        size = stream.tell()
        _check(Path(stream.name), alpha, made, _KINDS[kind])
    return Exported(
        out, size, {_KINDS[kind].name: len(tensors)}, ["read back here: every tensor"],
        ["in llama.cpp: an adapter is only tried with its base"],
    )  # fmt: skip


def _encoded(values: np.ndarray, kind: Kind, name: str) -> Iterator[np.ndarray]:
    yield encode(values, kind, name)


def _modules(file: TensorFile, architecture: Architecture, base: Path) -> list[tuple[str, str]]:
    """(Hugging Face's name of a linear, the decoder's name of its weight) of every linear that the file adapts, in the
    order of the layers. Raises ModelFileError for tensors that belong to none."""
    shapes = build(architecture.config, device="meta")
    parameters = {architecture.family.tensor_name(name): name for name, _ in shapes.named_parameters()}
    sizes = {name: tuple(parameter.shape) for name, parameter in shapes.named_parameters()}
    found: dict[str, str] = {}
    for tensor, info in file.infos.items():
        end = next((end for end in (_A, _B) if tensor.endswith(end)), "")
        module = tensor.removeprefix(_PREFIX).removesuffix(end)
        parameter = parameters.get(f"{module}.weight") if end else None
        if parameter is None or not parameter.startswith("blocks.") or len(sizes[parameter]) != 2:
            raise ModelFileError(
                f"tensor {tensor} adapts no matrix of the base's blocks, and is not written to GGUF", str(file.path),
                "merge the adapter, then export that",
            )  # fmt: skip
        if ".experts." in parameter or ".router." in parameter:
            raise ModelFileError(
                f"the adapter changes experts ({tensor}), which is not written to GGUF", str(file.path),
                "merge the adapter, then export that",
            )  # fmt: skip
        outputs, inputs = sizes[parameter]
        if len(info.shape) != 2 or info.shape[end == _A] != (inputs if end == _A else outputs):
            raise ModelFileError(
                f"tensor {tensor} has shape {list(info.shape)}, and the base's matrix {[outputs, inputs]}",
                str(file.path), f"the adapter belongs to another model than {base}",
            )  # fmt: skip
        found[module] = parameter
    for module in found:
        for end in (_A, _B):
            if f"{_PREFIX}{module}{end}" not in file.infos:
                raise ModelFileError(f"tensor {_PREFIX}{module}{end} is missing", str(file.path))
    if not found:
        raise ModelFileError("there are no adapters in this file", str(file.path))
    order = {parameter: number for number, parameter in enumerate(sizes)}
    return sorted(found.items(), key=lambda pair: order[pair[1]])


def _read(file: TensorFile, name: str) -> Tensor:
    return file.read(name).to(torch.float32)


def _check(path: Path, alpha: float, made: dict[str, np.ndarray], kind: Kind) -> None:
    """Raises ModelFileError where the file does not read back as what was meant."""
    with GGUFFile(path) as file:
        same = [*file.tensors] == [*made]
        for name, values in made.items():
            if not same:
                break
            info = file.tensors[name]
            with file.raw(info) as raw:
                found = dequantize(raw, info.type, info.shape[-1])
            wanted = rounded(values, kind)
            same = same and info.shape == values.shape and wanted is not None and np.array_equal(found, wanted)
        kinds = file.text("general.type"), file.text("adapter.type")
        if not same or kinds != ("adapter", "lora") or file.number("adapter.lora.alpha") != np.float32(alpha):
            raise ModelFileError(
                "the file that was written does not read back as the adapter, so there is no file",
                hint="this is a fault of the export",
            )
