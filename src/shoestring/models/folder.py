"""A model on disk is a Hugging Face folder: config.json, safetensors (whole or in shards), tokenizer files.

`load_model` allocates the decoder once and reads each tensor into its place, so the peak is one model.
`save_model` writes shard by shard from the live weights. transformers reads what is written here, and the
other way round.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoestring.core.config import Config
from shoestring.core.errors import ModelFileError
from shoestring.core.files import atomic_folder
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import allocate, build
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import config_fields, family_of, read_config, read_json
from shoestring.models.weight_files import INDEX, WEIGHTS, WeightFiles
from shoestring.nn.head import Head
from shoestring.nn.quantized.int8_head import head_for
from shoestring.nn.replace import replace_linears

__all__ = [
    "GenerationDefaults",
    "load_model",
    "read_config",
    "read_generation_config",
    "save_model",
    "write_model_files",
]



# --- loading ------------------------------------------------------------------------------------------------


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantized: Config | None = None,
) -> Decoder:
    """The decoder in a model folder, ready to run or train.

    dtype: of the weights in memory; None is float32, whatever the file holds: CPUs compute fastest in it. quantized:
    what the linears of the blocks become as they are read, one block after another, so that they are never all dense;
    where they compute in int8, the head does as well.
    A head that config.json ties but the file gives other values is untied, as transformers does.
    Raises ModelFileError with what is missing, unexpected, misshapen or broken.
    """
    with WeightFiles(folder) as files:
        if quantized is None:
            decoder = build(files.config, device=device, dtype=dtype or torch.float32)
            _fill(decoder, "", files)
            return decoder
        decoder = build(files.config, device="meta", dtype=dtype or torch.float32)
        blocks, decoder.blocks = decoder.blocks, torch.nn.ModuleList()
        allocate(decoder, device)
        _fill(decoder, "", files)
        assert isinstance(decoder.head, Head)
        decoder.head = head_for(decoder.head, quantized)
        for index, block in enumerate(blocks):
            allocate(block, device)
            _fill(block, f"blocks.{index}.", files)
            replace_linears(block, quantized, lambda *_: True)
        decoder.blocks = blocks
        return decoder


def _fill(root: torch.nn.Module, prefix: str, files: WeightFiles) -> None:
    """Read the parameters below `root`, in the order of the files."""
    parameters = {prefix + name: parameter for name, parameter in root.named_parameters()}
    for name, place in files.places.items():
        if name in parameters:
            place.file.read_into(place.tensor, parameters[name])


# --- saving -------------------------------------------------------------------------------------------------


def save_model(
    decoder: Decoder,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    generation: GenerationDefaults | None = None,
    max_shard_bytes: float = 5e9,
    replace: bool = False,
) -> None:
    """Write a model folder that appears whole or not at all; `replace` allows it to take another's place.

    Raises RunError when the folder exists or the disk is full. max_shard_bytes: largest weight file.
    """
    with atomic_folder(folder, replace=replace) as temporary:
        write_model_files(decoder, temporary, tokenizer, generation, max_shard_bytes)


def write_model_files(
    decoder: Decoder,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    generation: GenerationDefaults | None = None,
    max_shard_bytes: float = 5e9,
) -> None:
    """Write the files of a model folder into an existing folder, which the caller makes appear at once.

    generation: defaults for decoding; None takes the special ids from the tokenizer.
    """
    folder = Path(folder)
    family = family_of(decoder.config)
    if generation is None:
        generation = GenerationDefaults.of_tokenizer(tokenizer)
    dtype = str(decoder.embedding.weight.dtype).removeprefix("torch.")
    _write_json(folder / "config.json", {**config_fields(decoder.config, dtype), **generation.ids()})
    _write_json(folder / "generation_config.json", {**generation.settings, **generation.ids()})
    tensors = {family.tensor_name(name): parameter.detach() for name, parameter in decoder.named_parameters()}
    _write_shards(tensors, folder, max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save(folder)


def _write_shards(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: float) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        on_cpu = {name: tensor.to("cpu").contiguous() for name, tensor in shard.items()}
        save_file(on_cpu, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / INDEX, index)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- generation defaults ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GenerationDefaults:
    """generation_config.json: special ids, and settings such as temperature, as they stand in the file."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer | None) -> GenerationDefaults:
        if tokenizer is None:
            return cls()
        eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        return cls(tokenizer.bos_id, eos, tokenizer.pad_id)

    def ids(self) -> dict[str, Any]:
        """The fields of the file, which config.json repeats for older readers."""
        eos = None if not self.eos_ids else self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids)
        return {"bos_token_id": self.bos_id, "eos_token_id": eos, "pad_token_id": self.pad_id}


def read_generation_config(folder: str | Path) -> GenerationDefaults:
    """What a folder says about decoding: generation_config.json, then config.json."""
    file = Path(folder) / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    older = read_json(Path(folder) / "config.json")
    ids: dict[str, tuple[int, ...]] = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(name)
        value = older.get(name) if value is None else value
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(i) is int for i in value):
            raise ModelFileError(f"{name} must be a token id or a list of them", str(file))
        ids[name] = tuple(value)
    settings = {k: v for k, v in values.items() if k not in ids and k != "transformers_version"}
    first = {name: found[0] if found else None for name, found in ids.items()}
    return GenerationDefaults(first["bos_token_id"], ids["eos_token_id"], first["pad_token_id"], settings)
