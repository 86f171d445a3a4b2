"""Embedding and head kept in 8 bits, a scale for each row, read as the matrix in float32 that they stand for.

Where a family's file has the matrix NAME.weight [V, D], such a folder has it as int8 codes and NAME.weight_scale [V, 1]
beside it: compressed-tensors' format int-quantized. A head that is the embedding has a scale under its own name too,
since other libraries scale it as a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.models.families.family import Family
from shoestring.models.packed_place import BROKEN, SCALES, taken
from shoestring.models.place import Place
from shoestring.models.weights import TensorFile, TensorInfo
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.grid import Grid, fit
from shoestring.nn.quantized.packed import PackedLinear

ENDS = ("embedding", "head")
SCALE = "_scale"  # behind the name of a weight
_ROWS = PackedConfig(bits=8, group=None)
_TOGETHER = 1 << 20  # numbers made at a time
_LEAST = 2.0**-17  # of a scale: float16, in which decoding has scales, holds no smaller ones to their last bit


class RoundedRows(TensorFile):
    """One matrix, of codes and scales in open files, which whoever opened them closes. It is no file of its own, so it
    has no stretches of bytes to `stream`."""

    def __init__(self, codes: Place, scale: Place):
        self.path, self.metadata = codes.file.path, codes.file.metadata
        self.codes, self.scale = codes, scale
        self.infos = {codes.tensor: TensorInfo(torch.float32, codes.info.shape, 0)}

    def __exit__(self, *exception: object) -> None:
        self.codes.file.__exit__()
        self.scale.file.__exit__()

    def again(self) -> RoundedRows:
        codes, scale = (place._replace(file=place.file.again()) for place in (self.codes, self.scale))
        return RoundedRows(codes, scale)

    def read(self, name: str) -> Tensor:
        return self.read_rows(name, 0, self.infos[name].shape[0])

    def read_into(self, name: str, target: Tensor) -> None:
        self._read(target, 0, TensorFile.read_rows_into)

    def read_rows_into(self, name: str, start: int, target: Tensor) -> None:
        rows = target.unsqueeze(0) if target.dim() == 1 else target
        self._read(rows, start, TensorFile.read_rows_into)

    def stream_rows(self, name: str, target: Tensor, start: int = 0) -> None:
        self._read(target, start, lambda file, tensor, first, rows: file.stream_rows(tensor, rows, first))

    def forget(self, name: str, start: int = 0, end: int | None = None) -> None:
        self.codes.file.forget(self.codes.tensor, start, end)

    def scales(self) -> Tensor:
        """[V, 1]"""
        return self.scale.file.read(self.scale.tensor)

    def linears(self, together: int) -> Iterator[PackedLinear]:
        """The same codes and scales, so many rows after others."""
        rows, width = self.codes.info.shape
        config, scales = config_of(self.scale.info.dtype), self.scales()
        for first in range(0, rows, together):
            last = min(first + together, rows)
            codes = self.codes.file.read_rows(self.codes.tensor, first, last)
            yield PackedLinear.of(codes, Grid(config.bits, scales[first:last], None), config, None)

    def tensors(self, name: str, scales: Sequence[str]) -> dict[str, Tensor]:
        """What a folder keeps of it, with the codes under this name and scales under these."""
        return {name: self.codes.file.read(self.codes.tensor), **{each: self.scales() for each in scales}}

    def _read(
        self, target: Tensor, start: int, read_codes: Callable[[TensorFile, str, int, Tensor], None]
    ) -> None:
        target = target.detach()
        step = max(_TOGETHER // target.shape[1], 1)
        codes = torch.empty((min(step, len(target)), target.shape[1]), dtype=torch.int8)
        for first in range(0, len(target), step):
            rows = target[first : first + step]
            part = codes[: len(rows)]
            read_codes(self.codes.file, self.codes.tensor, start + first, part)
            scale = self.scale.file.read_rows(self.scale.tensor, start + first, start + first + len(rows))
            rows.copy_(part.float().mul_(scale.float()))


def config_of(scale: torch.dtype) -> PackedConfig:
    """How such a matrix is kept."""
    return _ROWS.model_copy(update={"scale": SCALES[scale]})


def rounded_rows(weight_VD: Tensor, scale: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes int8 [V, D] and scales [V, 1] of rows, to nearest."""
    grid = Grid(_ROWS.bits, fit(weight_VD, config_of(scale)).scale_OG.clamp_min(_LEAST), None)
    return grid.codes(weight_VD), grid.scale_OG


def scale_names(family: Family, end: str, tied: bool) -> list[str]:
    """Where the scales of an end stand in a folder."""
    return [f"{family.tensor_name(f'{each}.weight')}{SCALE}" for each in (ENDS if tied else (end,))]


def take_rounded(family: Family, tied: bool, where: dict[str, Place]) -> dict[str, RoundedRows]:
    """By ends of the decoder those that are kept so; their scales are taken out of `where`, and their weights there
    become what they stand for.

    tied: whether the head is the embedding. where: by the names in the files. Raises ModelFileError for parts that are
    missing or misshapen.
    """
    found = {}
    for end in ENDS[:1] if tied else ENDS:
        name = family.tensor_name(f"{end}.weight")
        if f"{name}{SCALE}" not in where or name not in where:
            continue
        codes = where[name]
        if codes.info.dtype != torch.int8 or len(codes.info.shape) != 2:
            kind = str(codes.info.dtype).removeprefix("torch.")
            message = f"tensor {name} has scales, but is {kind} of shape {list(codes.info.shape)}, not a matrix of int8"
            raise ModelFileError(message, str(codes.file.path), BROKEN)
        first, *others = (_scales(each, codes, where) for each in scale_names(family, end, tied))
        for other in others:
            if not torch.equal(first.file.read(first.tensor), other.file.read(other.tensor)):
                message = f"{other.tensor} differs from {first.tensor}, and both are of one matrix"
                raise ModelFileError(message, str(other.file.path), BROKEN)
        found[end] = RoundedRows(codes, first)
        where[name] = Place("", found[end], codes.tensor)
    return found


def _scales(name: str, codes: Place, where: dict[str, Place]) -> Place:
    return taken(name, (codes.info.shape[0], 1), tuple(SCALES), where)
