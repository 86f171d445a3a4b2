"""Linears of blocks in FP8, through torchao or TransformerEngine: the model's weights stay what and where they are.

Products take numbers of 8 bits (arXiv 2209.05433), around them is bfloat16. Embedding and head are left out, and so is
a linear whose sizes are no multiples of 16. Not yet run on a GPU: rounding and scales are tested emulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.errors import ConfigError
from shoestring.core.extras import need
from shoestring.models.decoder import Decoder
from shoestring.train import transformer_engine
from shoestring.train.precision_config import TRANSFORMER_ENGINE, FP8Config

MULTIPLE = 16  # of a linear's sizes, as the units want them
CAPABILITY = (8, 9)  # of NVIDIA's GPUs with such units


def check(config: FP8Config, device: torch.device) -> None:
    """Raises ConfigError where this machine cannot."""
    if config.recipe in TRANSFORMER_ENGINE:
        transformer_engine.check(config)
    else:
        need("torchao", "precision.fp8", "train")
    if config.emulate:
        return
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    if not able:
        raise ConfigError(
            f"precision.fp8: {device} has no units for FP8, which NVIDIA's GPUs have from compute capability 8.9 on",
            hint="--no-fp8 trains in bfloat16; --precision.fp8.emulate true computes the same numbers, slowly",
        )


def convert(decoder: Decoder, config: FP8Config) -> list[str]:
    """Replace the linears of blocks in place; -> their names. Raises ConfigError where there is none that can be."""
    names = [
        f"blocks.{name}"
        for name, module in decoder.blocks.named_modules()
        if isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
    ]
    if not names:
        raise ConfigError(
            f"precision.fp8: no linear of this model has sizes that are multiples of {MULTIPLE}", hint="--no-fp8"
        )
    theirs = config.recipe in TRANSFORMER_ENGINE
    make: Callable[[Any], nn.Module] = transformer_engine.linear if theirs else _torchao_linear(config)
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = decoder.get_submodule(parent)
        setattr(owner, last, make(owner.get_submodule(last)))
    if config.recipe in TRANSFORMER_ENGINE:
        transformer_engine.under_autocast(decoder, config)
    return names


def left_out(decoder: Decoder) -> list[str]:
    """Linears of blocks whose sizes do not fit, without the blocks' numbers."""
    found = {
        name.partition(".")[2]
        for name, module in decoder.blocks.named_modules()
        if isinstance(module, nn.Linear) and (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
    }
    return sorted(found)


def _torchao_linear(config: FP8Config) -> Callable[[Any], nn.Module]:
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear

    settings: Any = Float8LinearConfig.from_recipe_name(config.recipe)
    settings = dataclasses.replace(settings, emulate=config.emulate)

    def make(linear: nn.Linear) -> nn.Module:
        made = Float8Linear.from_float(linear, config=settings)
        made.register_forward_pre_hook(_in_autocast_format)
        return made.train(linear.training)

    return make


def _in_autocast_format(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """torchao asks CUDA's autocast alone."""
    x, *rest = inputs
    kind = x.device.type
    return (x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x, *rest)
