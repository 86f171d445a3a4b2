"""One block of a model on disk, in float32, checked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import allocate, build_block
from shoestring.models.place import Place
from shoestring.models.weight_files import WeightFiles

_TOGETHER = 1 << 22  # numbers looked at at a time


def read_block(files: WeightFiles, index: int) -> nn.Module:
    """Its weights in float32. Raises ModelFileError for NaN and infinity."""
    with torch.device("meta"):
        block = build_block(files.config, index)
    allocate(block, "cpu")
    for name, parameter in block.named_parameters():
        place = files.places[f"blocks.{index}.{name}"]
        place.file.read_into(place.tensor, parameter)
        place.file.forget(place.tensor)
        check_finite(parameter, place)
    return block.requires_grad_(False).eval()


def check_finite(tensor: Tensor, place: Place) -> None:
    """Raises ModelFileError for NaN and infinity."""
    if not all(bool(torch.isfinite(part).all()) for part in tensor.detach().reshape(-1).split(_TOGETHER)):
        raise ModelFileError(
            f"tensor {place.tensor} holds NaN or infinity", str(place.file.path),
            "the model is broken: fetch it again, or train it again",
        )  # fmt: skip
