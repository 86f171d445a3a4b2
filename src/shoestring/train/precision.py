"""What `precision.compute: auto` means on this machine."""

from __future__ import annotations

from typing import TypeVar

import torch

from shoestring.core.device import resolve_device
from shoestring.core.speeds import matrix_peak
from shoestring.train import parallel
from shoestring.train.recipe import RunRecipe

R = TypeVar("R", bound=RunRecipe)
_GAIN = 1.1  # of bfloat16 over float32 that is worth its rounding


def settled(recipe: R) -> R:
    """The recipe with `auto` replaced by the faster format, measured; so that a resumed run computes as it began."""
    if recipe.precision.compute != "auto":
        return recipe
    device = resolve_device(recipe.device)

    def gains() -> bool:
        return matrix_peak(torch.bfloat16, device) > _GAIN * matrix_peak(torch.float32, device)

    compute = "bfloat16" if parallel.by_first(gains) else "float32"
    return recipe.model_copy(update={"precision": recipe.precision.model_copy(update={"compute": compute})})
