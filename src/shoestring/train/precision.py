"""What a recipe's number formats mean on this machine: `auto` settled, what cannot be refused, the model prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from shoestring.core import console
from shoestring.core.device import resolve_device
from shoestring.core.errors import ConfigError
from shoestring.core.speeds import matrix_peak
from shoestring.kernels.compiled import compiler
from shoestring.kernels.int8 import LONGEST
from shoestring.models.decoder import Decoder
from shoestring.models.fake_quantization import fake_quantize_blocks
from shoestring.nn.config import GQAConfig
from shoestring.nn.head import Head
from shoestring.nn.quantized.int8_trained import Int8TrainedHead, Int8TrainedLinear
from shoestring.train import fp8, parallel
from shoestring.train.loss_scale import LossScale
from shoestring.train.precision_config import PrecisionConfig
from shoestring.train.quantize_config import QuantizeSection
from shoestring.train.recipe import RunRecipe

R = TypeVar("R", bound=RunRecipe)
GAIN = 1.3  # of bfloat16 over float32 that is worth its rounding


def settled(recipe: R) -> R:
    """The recipe with `auto` replaced by the faster format, measured; so that a resumed run computes as it began.

    Raises ConfigError for FP8 that this machine has no units for.
    """
    precision, device = recipe.precision, resolve_device(recipe.device)
    if precision.fp8 is not None:
        fp8.check(precision.fp8, device)
    if precision.compute != "auto":
        return recipe

    def gains() -> bool:
        return matrix_peak(torch.bfloat16, device) >= GAIN * matrix_peak(torch.float32, device)

    compute = "bfloat16" if precision.fp8 is not None or parallel.by_first(gains) else "float32"
    return recipe.model_copy(update={"precision": precision.model_copy(update={"compute": compute})})


def prepared(
    make: Callable[[], Decoder], precision: PrecisionConfig, quantize: QuantizeSection | None = None
) -> Callable[[], Decoder]:
    """What makes the same model with its blocks ready for this precision, and for the few bits that its weights will be
    kept in. Parameters keep their names."""

    def made() -> Decoder:
        decoder = make()
        if precision.fp8 is not None:
            fp8.convert(decoder, precision.fp8)
            left = fp8.left_out(decoder)
            if left and parallel.rank() == 0:
                console.say(f"fp8       not for {', '.join(left)}: sizes are no multiples of {fp8.MULTIPLE}")
        if precision.compute == "int8":
            _round_products(decoder)
        if precision.compile:
            _compile(decoder)
        if quantize is not None:
            fake_quantize_blocks(decoder, quantize.packed())
        return decoder

    return made


def _round_products(decoder: Decoder) -> None:
    """Have the blocks' linears and the head multiply integers where they are trained; frozen ones do already."""
    for owner in list(decoder.blocks.modules()):
        for name, linear in list(owner.named_children()):
            if isinstance(linear, nn.Linear) and linear.weight.requires_grad and max(linear.weight.shape) <= LONGEST:
                setattr(owner, name, Int8TrainedLinear.around(linear))
    if isinstance(decoder.head, Head) and not decoder.head.frozen:
        decoder.head = Int8TrainedHead(decoder.head)


def _compile(decoder: Decoder) -> None:
    """Have torch.compile run each block, all with one graph; it chooses what going backward computes again.

    On a CPU attention stays as it is, between two graphs: its kernels take documents as they come, where a graph would
    be made anew for each row of them. Raises ConfigError for kinds that are no graph.
    """
    shape = decoder.config
    if shape.block != "sequential" or shape.memory is not None or not isinstance(shape.attention, GQAConfig):
        raise ConfigError(
            "precision.compile is for blocks of kind sequential with attention of kind gqa and without a memory",
            hint="leave out precision.compile",
        )
    if decoder.embedding.weight.is_cpu and compiler() is None:
        raise ConfigError("precision.compile needs a C++ compiler on a CPU, and none is found", hint="install g++")
    for block in decoder.blocks:
        attention: Any = block.attention
        if decoder.embedding.weight.is_cpu:
            attention.over_keys = torch.compiler.disable(attention.over_keys)
        block.compile()


def loss_scale(precision: PrecisionConfig) -> LossScale | None:
    """Of float16; other formats have float32's range."""
    return LossScale(precision.loss_scale) if precision.compute == "float16" else None


def told(precision: PrecisionConfig, device: torch.device) -> str:
    """Number formats in words, for a person."""
    matmuls: str = precision.settled
    if matmuls == "bfloat16":
        gain = parallel.by_first(lambda: matrix_peak(torch.bfloat16, device) / matrix_peak(torch.float32, device))
        matmuls += f" ({gain:.1f} times float32's speed here)"
    if matmuls == "int8":
        matmuls += f" where they can be, else in {precision.around}"
    if precision.fp8 is not None:
        emulated = ", emulated" if precision.fp8.emulate else ""
        matmuls += f", in blocks FP8 {precision.fp8.recipe}{emulated}"
    compiled = "; blocks compiled" if precision.compile else ""
    return f"matmuls in {matmuls}; weights that are trained and the optimizer in float32{compiled}"
