"""A model on disk is a Hugging Face folder: config.json, safetensors (whole or in shards), tokenizer files.

`load_model` allocates the decoder once and reads each tensor into its place, so the peak is one model.
`save_model` writes shard by shard from the live weights. transformers reads what is written here, and the
other way round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.core.files import atomic_folder
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import allocate, build
from shoestring.models.compressed_tensors import SECTION, Others, section_of
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder, Parts
from shoestring.models.families.registry import config_fields, family_of, read_config, read_json
from shoestring.models.packed_files import configs_of, fill_packed, packed_linears, packed_tensors, put_packed
from shoestring.models.rounded_rows import ENDS, RoundedRows, scale_names
from shoestring.models.weight_files import INDEX, WEIGHTS, WeightFiles
from shoestring.models.weights import TensorFile, save_file, write_one_by_one
from shoestring.nn.head import Head
from shoestring.nn.quantized.config import PackedConfig
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

Dtypes = torch.dtype | Mapping[str, torch.dtype] | None
"""What weights are saved in: one number format, or one for each parameter; None: as they are in memory."""


class AsRead(Protocol):
    """What changes parts of a decoder as they come into memory, in place."""

    def ends(self, decoder: Decoder, rounded: Mapping[str, RoundedRows]) -> None:
        """Its embedding and head; it has no blocks yet. rounded: those that the folder has in 8 bits."""
        ...

    def block(self, block: torch.nn.Module) -> Any: ...


# --- loading ------------------------------------------------------------------------------------------------


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantized: Config | None = None,
    as_read: AsRead | None = None,
    part: Callable[[Decoder], Decoder] | None = None,
    held: Callable[[str], bool] | None = None,
) -> Decoder:
    """The decoder in a model folder, ready to run; `train()` makes it ready to train.

    dtype: of the weights in memory; None is float32, whatever the file holds: CPUs compute fastest in it. quantized:
    what the linears of the blocks become as they are read, one block after another, so that they are never all dense;
    where they compute in int8, the head does as well. as_read: changes all parts in the same order. part: makes of the
    decoder, before it has memory, one that lacks some of its modules; held: of which parameters, by name, it has; the
    folder may lack the others.
    A head that config.json ties but the file gives other values is untied, as transformers does. Linears that the
    folder keeps in few bits stay so. Raises ModelFileError with what is missing, unexpected, misshapen or broken.
    """
    with WeightFiles(folder, packed=True, held=held) as files:
        if files.packed and quantized is not None:
            raise ConfigError("this model's weights are quantized already", hint="use the dense model of it")
        if quantized is None and as_read is None and part is None and not files.packed:
            decoder = build(files.config, device=device, dtype=dtype or torch.float32)
            _fill(decoder, "", files)
            return decoder.eval()
        decoder = build(files.config, device="meta", dtype=dtype or torch.float32)
        put_packed(decoder, files.packed)
        if part is not None:
            decoder = part(decoder)
        blocks, decoder.blocks = decoder.blocks, torch.nn.ModuleList()
        allocate(decoder, device)
        _fill(decoder, "", files)
        if as_read is not None:
            as_read.ends(decoder, files.rounded)
        elif isinstance(decoder.head, Head):
            decoder.head = head_for(decoder.head, quantized)
        for index, block in enumerate(blocks):
            allocate(block, device)
            _fill(block, f"blocks.{index}.", files)
            _fill_packed(block, f"blocks.{index}.", files, dtype or torch.float32)
            if as_read is not None:
                as_read.block(block)
            elif quantized is not None:
                replace_linears(block, quantized, lambda *_: True)
        decoder.blocks = blocks
        return decoder.eval()


@torch.no_grad()
def read_weights(decoder: Decoder, folder: str | Path) -> None:
    """The weights of a folder into a decoder of the same shapes that is there already, with no second copy of them."""
    with WeightFiles(folder) as files:
        if files.config.layers != decoder.config.layers:
            message = f"the model here has {files.config.layers} layers, not {decoder.config.layers}"
            raise ModelFileError(message, str(folder))
        if missing := [name for name, _ in decoder.named_parameters() if name not in files.places]:
            raise ModelFileError(f"{missing[0]} is not in this folder", str(folder))
        _fill(decoder, "", files, decoder.parts)
    torch.autograd.graph.increment_version(list(decoder.parameters()))  # what is made of them is old


def _fill_packed(root: torch.nn.Module, prefix: str, files: WeightFiles, dtype: torch.dtype) -> None:
    """Read the packed linears below `root`. dtype: of what they are made dense in."""
    for name, linear in packed_linears(root).items():
        linear.dense_dtype = dtype
        fill_packed(linear, files.packed[prefix + name], files.places.get(f"{prefix}{name}.bias"))


def _fill(root: torch.nn.Module, prefix: str, files: WeightFiles, parts: Parts | None = None) -> None:
    """Read the parameters below `root`, or what of them lies here, in the order of the files."""
    parameters = {prefix + name: parameter for name, parameter in root.named_parameters()}
    for name, place in files.places.items():
        if name in parameters:
            read_weight(place.file, place.tensor, parameters[name], parts)


def read_weight(file: TensorFile, name: str, parameter: Tensor, parts: Parts | None) -> None:
    """A parameter from a file, or what of it lies here."""
    if parts is None:
        file.read_into(name, parameter)
        return
    own, first = parts.own(parameter)
    file.read_part(name, first, own)


def check_rows(tokenizer: Tokenizer, config: ModelConfig, folder: str | Path | None = None) -> None:
    """Raises ModelFileError for a tokenizer with tokens that the embedding has no row for."""
    beyond = tokenizer.tokens_from(config.vocabulary)
    if not beyond:
        return
    where, added = None if folder is None else str(folder), tokenizer.backend.get_added_tokens_decoder()
    rows = f"the model's embedding {config.vocabulary:,} rows"
    if len(beyond) == tokenizer.vocabulary_size - config.vocabulary and all(i in added for i in beyond):
        named = ", ".join(map(repr, list(beyond.values())[:3])) + (", ..." if len(beyond) > 3 else "")
        raise ModelFileError(
            f"tokens were added to the tokenizer ({named}), and {rows}, none for them", where,
            "use the tokenizer that the model came with, or a model whose embedding was resized and saved",
        )  # fmt: skip
    raise ModelFileError(
        f"the tokenizer has {tokenizer.vocabulary_size:,} ids, {rows}", where,
        "tokenizer.json and the weights belong to different models",
    )  # fmt: skip


# --- saving -------------------------------------------------------------------------------------------------


def save_model(
    decoder: Decoder,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    generation: GenerationDefaults | None = None,
    max_shard_bytes: float = 5e9,
    replace: bool = False,
    dtypes: Dtypes = None,
) -> None:
    """Write a model folder that appears whole or not at all; `replace` allows it to take another's place.

    Raises RunError when the folder exists or the disk is full. max_shard_bytes: largest weight file. dtypes: what
    weights are rounded to.
    """
    with atomic_folder(folder, replace=replace) as temporary:
        write_model_files(decoder, temporary, tokenizer, generation, max_shard_bytes, dtypes)


def write_model_files(
    decoder: Decoder,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    generation: GenerationDefaults | None = None,
    max_shard_bytes: float = 5e9,
    dtypes: Dtypes = None,
    rounded: Mapping[str, RoundedRows] | None = None,
) -> None:
    """Write the files of a model folder into an existing folder, which the caller makes appear at once.

    generation: defaults for decoding; None takes the special ids from the tokenizer. rounded: embedding and head that
    are written in 8 bits, as another folder has them, in place of the decoder's. Raises ModelFileError for a weight
    that the number format cannot hold.
    """
    folder = Path(folder)
    family = family_of(decoder.config)
    if generation is None:
        generation = GenerationDefaults.of_tokenizer(tokenizer)
    packed = packed_linears(decoder)
    dtype = dtype_of(dtypes, "embedding.weight", decoder.embedding.weight)
    config, *others = configs_of(packed).items() or ((None, []),)
    write_configs(folder, decoder.config, dtype, generation, config[0], dict(others), rounded or ())
    tensors: dict[str, tuple[Tensor, torch.dtype]] = {
        family.tensor_name(name): (parameter, dtype_of(dtypes, name, parameter))
        for name, parameter in decoder.named_parameters()
        if name.removesuffix(".weight") not in (rounded or {})
    }
    for end, rows in (rounded or {}).items():
        name, scales = family.tensor_name(f"{end}.weight"), scale_names(family, end, decoder.config.tied_head)
        found = rows.tensors(name, scales)
        tensors |= {each: (tensor, tensor.dtype) for each, tensor in found.items()}
    for name, linear in packed.items():
        module = family.tensor_name(f"{name}.weight").removesuffix(".weight")
        tensors |= {key: (tensor, tensor.dtype) for key, tensor in packed_tensors(linear, module).items()}
    _write_shards(tensors, folder, max_shard_bytes, decoder.parts)
    if tokenizer is not None:
        tokenizer.save(folder)


def write_configs(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    generation: GenerationDefaults,
    packed: PackedConfig | None = None,
    others: Others | None = None,
    rounded: Collection[str] = (),
) -> None:
    """config.json and generation_config.json. dtype: of dense weights; packed: how the blocks' linears are kept;
    others: some by name that are kept in other ways; rounded: of embedding and head those in 8 bits."""
    fields = {**config_fields(config, str(dtype).removeprefix("torch.")), **generation.ids()}
    if packed is not None:
        family = family_of(config)
        names = {
            each: [family.tensor_name(f"{name}.weight").removesuffix(".weight") for name in linears]
            for each, linears in (others or {}).items()
        }
        with_scales = ENDS if rounded and config.tied_head else rounded
        ends = [family.tensor_name(f"{end}.weight").removesuffix(".weight") for end in with_scales]
        fields[SECTION] = section_of(packed, names, ends)
    _write_json(folder / "config.json", fields)
    _write_json(folder / "generation_config.json", {**generation.settings, **generation.ids()})


def dtype_of(dtypes: Dtypes, name: str, parameter: Tensor) -> torch.dtype:
    """What the parameter of this name is saved in."""
    if isinstance(dtypes, torch.dtype):
        return dtypes
    return parameter.dtype if dtypes is None else dtypes.get(name, parameter.dtype)


def stored_dtypes(
    folder: str | Path, packed: bool = False, held: Callable[[str], bool] | None = None
) -> dict[str, torch.dtype]:
    """What each parameter is stored in, by the decoder's names; embedding and head in 8 bits as their scales. held: of
    those alone, and the folder may lack others. Raises ModelFileError, and for linears in few bits too unless `packed`:
    then they are left out."""
    with WeightFiles(folder, packed, held) as files:
        return {name: files.dtype_of(name) for name in files.places}


def write_weights(tensors: Mapping[str, tuple[Tensor, torch.dtype]], file: Path, parts: Parts | None) -> None:
    """A safetensors file of these, each rounded to its dtype; those that lie in parts are gathered one by one."""
    metadata = {"format": "pt"}
    if parts is None:
        save_file({name: rounded_to(name, *tensor) for name, tensor in tensors.items()}, file, metadata=metadata)
        return

    def make(name: str) -> Tensor:
        tensor, dtype = tensors[name]
        return rounded_to(name, parts.whole(tensor), dtype)

    shapes = {name: (dtype, tuple(tensor.shape)) for name, (tensor, dtype) in tensors.items()}
    with open(file, "wb") as out:
        write_one_by_one(out, shapes, make, metadata)


def _write_shards(
    tensors: dict[str, tuple[Tensor, torch.dtype]], folder: Path, max_shard_bytes: float, parts: Parts | None
) -> None:
    shards: list[list[str]] = [[]]
    total, used = 0, 0
    for name, (tensor, dtype) in tensors.items():
        size = tensor.numel() * dtype.itemsize
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used, total = used + size, total + size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_weights({name: tensors[name] for name in shard}, folder / file, parts)
        weight_map.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / INDEX, index)


def rounded_to(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Detached and on the CPU; the same memory where nothing is to be done. Raises ModelFileError for numbers beyond
    float16."""
    found = tensor.detach().to("cpu", dtype).contiguous()
    if dtype == torch.float16 and tensor.dtype != dtype and not bool(found.isfinite().all()):
        raise ModelFileError(f"tensor {name} has numbers beyond those of float16", hint="take bfloat16 or float32")
    return found


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
