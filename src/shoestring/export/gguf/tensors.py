"""The tensors of a GGUF file, each with the places in a model folder that it is made of, and its numbers in slices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

from shoestring.export.gguf.architecture import Architecture, interleaved
from shoestring.export.gguf.encode import encode
from shoestring.export.gguf.format import GGUFTensor
from shoestring.export.gguf.mixture import Mixture
from shoestring.export.rows import folder_rows
from shoestring.models.weight_files import Place, WeightFiles
from shoestring.nn.config import block_order


class Source(NamedTuple):
    """A tensor of the file. folder_name: what a folder made of the file calls it, "" of several experts and of what is
    computed. places: of the experts in their order, else one. parameters: what a decoder without shared blocks calls
    each of them. turned: the head width of rows to interleave, or 0. constant: what is computed from the config."""

    name: str
    folder_name: str
    shape: tuple[int, ...]
    kind: Kind
    places: tuple[Place, ...]
    parameters: tuple[str, ...] = ()
    turned: int = 0
    constant: np.ndarray | None = None

    def rows(self) -> Iterator[np.ndarray]:
        """As they stand in the file but for its number format: float32 [rows, width], some after others."""
        if self.constant is not None:
            yield self.constant.reshape(1, -1)
        for place in self.places:
            for values in folder_rows(place, self.turned or 1):
                yield interleaved(values, self.turned) if self.turned else values

    def tensor(self) -> GGUFTensor:
        return GGUFTensor(self.name, self.shape, self.kind, self._encoded)

    def _encoded(self) -> Iterator[np.ndarray]:
        for values in self.rows():
            yield encode(values, self.kind, self.name)


def plan_tensors(files: WeightFiles, architecture: Architecture, mixture: Mixture) -> list[Source]:
    """Every tensor of the file, layer by layer. A block that several layers share is written for each of them."""
    planned: dict[str, Source] = {}

    def add(parameter: str, layer: int = 0) -> None:
        place = files.places[parameter]
        name, shape = architecture.tensor_name(parameter, layer), tuple(place.info.shape)
        own = parameter if not parameter.startswith("blocks.") else f"blocks.{layer}.{parameter.split('.', 2)[2]}"
        folder_name = architecture.family.tensor_name(own)
        places: tuple[Place, ...] = (place,)
        parameters: tuple[str, ...] = (own,)
        if "_exps." in name:
            if name in planned:
                places, parameters = (*planned[name].places, place), (*planned[name].parameters, own)
            shape, folder_name = (len(places), *shape), ""
        kind, turned = mixture.kind(name, shape), architecture.turned(name)
        planned[name] = Source(name, folder_name, shape, kind, places, parameters, turned)

    add("embedding.weight")
    in_blocks: dict[int, list[str]] = {}
    for parameter in files.places:
        if parameter.startswith("blocks."):
            in_blocks.setdefault(int(parameter.split(".")[1]), []).append(parameter)
    config = files.config
    for layer, block in enumerate(block_order(config.layers, config.sharing)):
        for parameter in sorted(in_blocks[block], key=_expert_last):
            add(parameter, layer)
    add("norm.weight")
    if not config.tied_head:
        add("head.weight")
    divisors = architecture.rope_divisors()
    if divisors is not None:
        planned["rope_freqs.weight"] = Source("rope_freqs.weight", "", divisors.shape, Kind.F32, (), constant=divisors)
    return list(planned.values())


def _expert_last(parameter: str) -> tuple[int, str]:
    """Experts in the order of their numbers: "blocks.0.feed_forward.experts.11.up.weight"."""
    words = parameter.split(".")
    return (int(words[4]), parameter) if words[3:4] == ["experts"] else (-1, parameter)
