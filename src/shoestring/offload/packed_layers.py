"""Streamed layers of a folder whose linears are in few bits: read as they lie, or from a copy that is laid out anew.

Codes in words and scales of symmetric grids, as compressed-tensors has them, lie as `PackedLinear` keeps them, and are
read where they are. Everything else (a byte a code, packed zero points, the layouts of GPTQ and AWQ) is laid out so
once, in a store (`offload.store`), with the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import allocate, build_block
from shoestring.models.packed_files import fill_packed, packed_linears, put_empty
from shoestring.models.place import Place
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.quantized.config import PackedConfig


def block_linears(files: WeightFiles) -> dict[str, PackedConfig]:
    """The linears that are in few bits in every block, by their names there; scales in float32 where blocks differ."""
    blocks = _by_block(files)
    found = {}
    for name, config in blocks[0].items():
        if all(name in block for block in blocks):
            alike = all(block[name] == config for block in blocks)
            found[name] = config if alike else config.model_copy(update={"scale": "float32"})
    return found


def check_alike(files: WeightFiles) -> None:
    """Raises ModelFileError where a linear is in few bits in some blocks only: one buffer holds any of them."""
    blocks = _by_block(files)
    for index, block in enumerate(blocks):
        if differing := sorted(blocks[0].keys() ^ block.keys()):
            raise ModelFileError(
                f"{differing[0]} is in few bits in some layers only (0 and {index} differ), and such a model cannot be"
                " streamed layer by layer", str(files.files[0].path), "give it the memory to be read as a whole",
            )  # fmt: skip


def lie_ready(files: WeightFiles, packed: Mapping[str, PackedConfig]) -> bool:
    """Whether the tensors of the files are those that `PackedLinear` keeps."""
    return all(
        place.layout == "compressed-tensors"
        and place.codes.info.dtype == torch.int32
        and place.zero is None
        and place.config == packed[name.split(".", 2)[2]]
        for name, place in files.packed.items()
    )


def format_of(files: WeightFiles) -> str:
    """What a store of them is called: the same files mean other weights to another layout."""
    place = next(iter(files.packed.values()))
    return f"packed-{place.layout}-{place.config.bits}"


def packed_piece(files: WeightFiles, index: int, name: str) -> Place:
    """Where a tensor of a block lies that is read as it is; name: as attention.query.packed."""
    linear, _, part = name.rpartition(".")
    place = files.packed.get(f"blocks.{index}.{linear}")
    if place is None:
        return files.places[f"blocks.{index}.{name}"]
    return place.codes if part == "packed" else place.scale


def packed_layer(files: WeightFiles, index: int, packed: Mapping[str, PackedConfig]) -> nn.Module:
    """A block as a store keeps it, in memory; what is dense in the files' formats."""
    prefix = f"blocks.{index}."
    with torch.device("meta"):
        block = build_block(files.config, index)
        put_empty(block, packed)
    dtypes = {name: files.places[prefix + name].info.dtype for name, _ in block.named_parameters()}
    allocate(block, "cpu")
    parameters: list[tuple[str, Tensor]] = [*block.named_parameters()]
    for name, parameter in parameters:
        place = files.places[prefix + name]
        parameter.data = parameter.data.to(dtypes[name])
        place.file.read_into(place.tensor, parameter)
    for name, linear in packed_linears(block).items():
        fill_packed(linear, files.packed[prefix + name], None)
    return block


def _by_block(files: WeightFiles) -> list[dict[str, PackedConfig]]:
    """Of the blocks that the files hold."""
    held = [name.split(".", 2) for name in (*files.places, *files.packed) if name.startswith("blocks.")]
    found: dict[int, dict[str, PackedConfig]] = {int(index): {} for _, index, _ in held}
    for name, place in files.packed.items():
        _, index, linear = name.split(".", 2)
        found[int(index)][linear] = place.config
    return [found[index] for index in sorted(found)]
