"""FP8 linears of NVIDIA's TransformerEngine (2 or newer), where it is installed beside a GPU with such units.

Going forward E4M3, going backward E5M2 (HYBRID). Delayed scales come from the largest numbers of the last steps, which
are part of a run's state. Not yet run on a GPU: tests hold the calls against a stand-in for the library.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.errors import ConfigError, RunError
from shoestring.models.decoder import Decoder
from shoestring.models.weights import TensorFile
from shoestring.train.precision_config import FP8Config

PACKAGE = "transformer_engine"
_SCALES = ("scale", "amax_history")
_PASSES = ("scaling_fwd", "scaling_bwd")


def check(config: FP8Config) -> None:
    """Raises ConfigError where the package is not installed. Imports nothing."""
    if PACKAGE not in sys.modules and importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            f"precision.fp8.recipe {config.recipe} needs the package {PACKAGE}, which is for NVIDIA's GPUs",
            hint='install it with: pip install "transformer_engine[pytorch]"; or take recipe tensorwise (torchao)',
        )


def linear(dense: nn.Linear) -> nn.Module:
    """The library's linear around the same parameters."""
    made = _pytorch().Linear(
        dense.in_features,
        dense.out_features,
        bias=dense.bias is not None,
        params_dtype=dense.weight.dtype,
        device=dense.weight.device,
    )
    made.weight = dense.weight
    if dense.bias is not None:
        made.bias = dense.bias
    return made.train(dense.training)


def under_autocast(decoder: Decoder, config: FP8Config) -> None:
    """Have the decoder's forward passes run with the recipe's scales."""
    engine, forward = _pytorch(), decoder.forward
    recipes = importlib.import_module(f"{PACKAGE}.common.recipe")
    if config.recipe == "delayed":
        recipe = recipes.DelayedScaling(
            fp8_format=recipes.Format.HYBRID, amax_history_len=config.history, amax_compute_algo="max"
        )
    else:
        recipe = recipes.Float8CurrentScaling(fp8_format=recipes.Format.HYBRID)

    def scaled(*arguments: Any, **options: Any) -> Any:
        with engine.autocast(enabled=True, recipe=recipe):
            return forward(*arguments, **options)

    setattr(decoder, "forward", scaled)  # noqa: B010  of this one decoder
    with engine.autocast(enabled=True, recipe=recipe):
        for module in decoder.modules():
            if isinstance(module, engine.Linear):
                module.init_fp8_metadata()  # scales are there from now on, for a checkpoint to be read into


def state(decoder: Decoder) -> dict[str, Tensor]:
    """Scales and histories by "MODULE/PASS.NAME", on a CPU; empty for a model without delayed scales."""
    return {key: getattr(holder, name).detach().to("cpu").contiguous() for key, holder, name in _scales(decoder)}


@torch.no_grad()
def restore(decoder: Decoder, file: TensorFile) -> None:
    """Take back what `state` gave. Raises RunError where it does not fit."""
    for key, holder, name in _scales(decoder):
        own = getattr(holder, name)
        info = file.infos.get(key)
        if info is None or info.shape != tuple(own.shape) or info.dtype != own.dtype:
            raise RunError(f"the trainer's state has no {key} of {list(own.shape)} numbers", str(file.path))
        file.read_into(key, own)


def _scales(decoder: Decoder) -> list[tuple[str, Any, str]]:
    found = []
    for path, module in decoder.named_modules():
        meta = getattr(module, "fp8_meta", {})
        for direction in _PASSES:
            holder = meta.get(direction)
            found += [(f"{path}/{direction}.{name}", holder, name) for name in _SCALES if hasattr(holder, name)]
    return found


def _pytorch() -> Any:
    return importlib.import_module(f"{PACKAGE}.pytorch")
