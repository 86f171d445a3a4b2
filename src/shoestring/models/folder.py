"""A model on disk is a Hugging Face folder: config.json, safetensors (whole or in shards), tokenizer files.

`load_model` allocates the decoder once and reads each tensor into its place, so the peak is one model.
`save_model` writes shard by shard from the live weights. transformers reads what is written here, and the
other way round.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.core.files import atomic_folder
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.family import Family
from shoestring.models.families.registry import config_fields, family_named, family_of, read_config, read_json
from shoestring.models.weights import TensorFile

__all__ = [
    "GenerationDefaults",
    "load_model",
    "read_config",
    "read_generation_config",
    "save_model",
    "write_model_files",
]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Buffers that old files hold and that are computed from the config.
_COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


# --- loading ------------------------------------------------------------------------------------------------


def load_model(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Decoder:
    """The decoder in a model folder, ready to run or train.

    dtype: of the weights in memory; None is float32, whatever the file holds: CPUs compute fastest in it.
    A head that config.json ties but the file gives other values is untied, as transformers does.
    Raises ModelFileError with what is missing, unexpected, misshapen or broken.
    """
    folder = Path(folder)
    config = read_config(folder)
    family = family_named(read_json(folder / "config.json").get("model_type"))
    files = _tensor_files(folder)
    where = {name: file for file in files for name in file.infos}
    try:
        config = _settle_head(config, family, where)
        _check_size(config, where, folder)
        names = _match(build(config, device="meta"), family, where, folder)
        decoder = build(config, device=device, dtype=dtype or torch.float32)
        parameters = dict(decoder.named_parameters())
        for name, parameter in names:
            where[name].read_into(name, parameters[parameter])
    finally:
        for file in files:
            file.__exit__()
    return decoder


def _tensor_files(folder: Path) -> list[TensorFile]:
    """The open files that hold the weights, each with only the tensors that the index gives it."""
    if (folder / WEIGHTS).is_file():
        return [TensorFile(folder / WEIGHTS)]
    if not (folder / INDEX).is_file():
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled:
            raise ModelFileError(
                f"the weights are pickled ({pickled[0].name}), and a pickle can run any program",
                str(folder),
                "use the model's safetensors files",
            )
        raise ModelFileError(f"no {WEIGHTS} in this folder", str(folder), "fetch or save the model again")
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelFileError("weight_map is not an object of file names", str(index), "fetch the model again")
    files: list[TensorFile] = []
    try:
        for shard in sorted(set(weight_map.values())):
            if PurePosixPath(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
                raise ModelFileError(f"{shard!r} is not the name of a safetensors file beside it", str(index))
            if not (folder / shard).is_file():
                raise ModelFileError(f"the file {shard} is missing", str(index), "fetch the model again")
            file = TensorFile(folder / shard)
            files.append(file)
            listed = {name for name, home in weight_map.items() if home == shard}
            if absent := sorted(listed - file.infos.keys()):
                raise ModelFileError(
                    f"tensor {absent[0]} is not in {shard}", str(index), "fetch the model again"
                )
            file.infos = {name: file.infos[name] for name in file.infos if name in listed}
    except BaseException:
        for file in files:
            file.__exit__()
        raise
    return files


def _settle_head(config: ModelConfig, family: Family, where: dict[str, TensorFile]) -> ModelConfig:
    """Untie a head that the config ties and the file holds with other values; drop one that is equal."""
    embedding, head = (family.tensor_name(f"{part}.weight") for part in ("embedding", "head"))
    if not config.tied_head or head not in where:
        return config
    if embedding not in where:  # the same matrix under its other name
        where[head].infos[embedding] = where[head].infos[head]
        where[embedding] = where.pop(head)
        return config
    one, other = where[embedding].read(embedding), where[head].read(head)
    if one.dtype == other.dtype and torch.equal(one, other):
        where.pop(head)
        return config
    return config.model_copy(update={"tied_head": False})


def _check_size(config: ModelConfig, where: dict[str, TensorFile], folder: Path) -> None:
    """First of all: an absurd config must not make an absurd number of modules, or overflow a shape."""
    held = {match.group(1) for name in where if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    if config.unique_layers != len(held):
        counts = f"config.json says {config.unique_layers:,} layers, the weights hold {len(held):,}"
        raise ModelFileError(counts, str(folder), _MISMATCH)
    if config.parameter_count() > 2**48:
        raise ModelFileError(
            f"config.json asks for {config.parameter_count():,} parameters", str(folder), _MISMATCH
        )


_MISMATCH = "config.json and the weights do not belong together; fetch the model again"


def _match(
    shapes: Decoder, family: Family, where: dict[str, TensorFile], folder: Path
) -> list[tuple[str, str]]:
    """(name in the files, name in the decoder) in the order of the files; every tensor accounted for."""
    parameters = dict(shapes.named_parameters())
    wanted = {family.tensor_name(name): name for name in parameters}
    if missing := [name for name in wanted if name not in where]:
        raise ModelFileError(f"{_some(missing)} missing from the weights", str(folder), _MISMATCH)
    if unknown := [name for name in where if name not in wanted and not _COMPUTED.fullmatch(name)]:
        message = f"{_some(unknown)} not part of a {family.model_type} model of this config"
        raise ModelFileError(message, str(folder), _MISMATCH)
    for name, parameter in wanted.items():
        info, shape = where[name].infos[name], tuple(parameters[parameter].shape)
        if info.shape != shape:
            message = f"tensor {name} has shape {list(info.shape)}, config.json asks for {list(shape)}"
            raise ModelFileError(message, str(where[name].path), _MISMATCH)
        if info.dtype not in _FLOATS:
            kind = str(info.dtype).removeprefix("torch.")
            message = f"tensor {name} is {kind}: quantized weights cannot be read"
            raise ModelFileError(message, str(where[name].path), "use the model's unquantized weights")
    order = sorted(wanted, key=lambda name: (str(where[name].path), where[name].infos[name].offset))
    return [(name, wanted[name]) for name in order]


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"tensor {names[0]} is"
    return f"{len(names)} tensors ({names[0]}, {names[1]}{', ...' if len(names) > 2 else ''}) are"


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
