"""Where the tensors of a quantized linear stand in a model folder, checked for shape and format before any is read."""

from __future__ import annotations

from typing import NamedTuple

import torch

from shoestring.core.errors import ModelFileError
from shoestring.models.place import Place
from shoestring.models.quantization import Layout
from shoestring.nn.quantized.config import PackedConfig

SCALES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
BROKEN = "config.json and the weights do not belong together; fetch or quantize the model again"


class PackedPlace(NamedTuple):
    """Where a linear's codes stand: in 32-bit words, or a byte each. zero: None on a symmetric grid."""

    layout: Layout
    config: PackedConfig
    codes: Place
    scale: Place
    zero: Place | None


def taken(
    tensor: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], where: dict[str, Place]
) -> Place:
    """The tensor's place, which `where` then lacks. Raises ModelFileError."""
    place = where.pop(tensor, None)
    if place is None:
        raise ModelFileError(f"tensor {tensor} is missing from the weights", hint=BROKEN)
    if place.info.shape != shape:
        message = f"tensor {tensor} has shape {list(place.info.shape)}, config.json asks for {list(shape)}"
        raise ModelFileError(message, str(place.file.path), BROKEN)
    if place.info.dtype not in dtypes:
        kind, right = (str(dtype).removeprefix("torch.") for dtype in (place.info.dtype, dtypes[0]))
        raise ModelFileError(f"tensor {tensor} is {kind} instead of {right}", str(place.file.path), BROKEN)
    return place


def check_division(config: PackedConfig, name: str, inputs: int, codes: Place) -> None:
    """Raises ModelFileError for groups that are not all of one size."""
    if config.group is not None and inputs % config.group:
        message = f"groups of {config.group} do not divide the {inputs:,} inputs of {name}"
        raise ModelFileError(message, str(codes.file.path), BROKEN)


def with_scale(config: PackedConfig, scale: Place) -> PackedConfig:
    """The config with the format of scales as they stand there."""
    return config.model_copy(update={"scale": SCALES[scale.info.dtype]})
