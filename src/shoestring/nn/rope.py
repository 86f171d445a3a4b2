"""Rotary positions (RoFormer, arXiv 2104.09864) and the scalings that lengthen a model's context.

A head of width C is turned in C/2 planes; plane i pairs component i with component i + C/2 (Llama's "halves",
not GPT-J's neighbours). Tables are computed in float32 from positions, so any position works and nothing is
stored. Scalings: linear (arXiv 2306.15595), Llama 3.1's, YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.core.device import to_device
from shoestring.kernels.rope import turn
from shoestring.nn.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from shoestring.nn.norm import wide


class RotaryTables(NamedTuple):
    """cos and sin of every angle, [B, 1, T, C/2] float32; B may be 1 when all rows share their positions."""

    cos: Tensor
    sin: Tensor


class RotaryEmbedding:
    """Makes the tables for given positions. Not a module: it owns no parameters and no buffers."""

    def __init__(self, config: RopeConfig, head_width: int):
        self.frequencies_C, self.temperature = scaled_frequencies(config, head_width)

    def __call__(self, positions_BT: Tensor) -> RotaryTables:
        if self.frequencies_C.device != positions_BT.device:
            self.frequencies_C = to_device(self.frequencies_C, positions_BT.device)
        angles = (positions_BT.float().unsqueeze(-1) * self.frequencies_C).unsqueeze(1)
        return RotaryTables(angles.cos().mul_(self.temperature), angles.sin().mul_(self.temperature))


def scaled_frequencies(config: RopeConfig, head_width: int) -> tuple[Tensor, float]:
    """Angle per position of each plane, [C/2] float32, and the factor on cos and sin."""
    # Built on the CPU even inside `with torch.device("meta")`: these are constants, not weights.
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device="cpu") / head_width
    frequencies = 1.0 / (config.theta**exponents)
    match config.scaling:
        case None:
            return frequencies, 1.0
        case LinearScaling(factor=factor):
            return frequencies / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(frequencies, scaling, config.theta, head_width)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_context * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(frequencies: Tensor, scaling: YarnScaling, theta: float, width: int) -> tuple[Tensor, float]:
    def plane_of(turns: float) -> float:
        return width * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = plane_of(scaling.beta_fast), plane_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = (high - low) or 0.001  # one plane wide: a step instead of a ramp
    ramp = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    temperature = scaling.attention_factor
    if temperature is None:
        temperature = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp), temperature


def rotate_plain(x_BHTC: Tensor, tables: RotaryTables) -> Tensor:
    """The definition, in ordinary autograd operations."""
    a, b = wide(x_BHTC).chunk(2, dim=-1)
    rotated = torch.cat([a * tables.cos - b * tables.sin, b * tables.cos + a * tables.sin], dim=-1)
    return rotated.to(x_BHTC.dtype)


class _Rotate(torch.autograd.Function):
    """Turns in one pass and saves only the tables: the inverse of a turn is a turn back."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin, +1)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        cos, sin = ctx.saved_tensors
        return turn(gradients[0], cos, sin, -1), None, None


def rotate(x_BHTC: Tensor, tables: RotaryTables) -> Tensor:
    """Turn each head of x by its token's position; same shape, dtype and strides."""
    if torch.compiler.is_compiling():
        return rotate_plain(x_BHTC, tables)
    if not torch.is_grad_enabled():
        return turn(x_BHTC, tables.cos, tables.sin, +1)
    return _Rotate.apply(x_BHTC, tables.cos, tables.sin)
