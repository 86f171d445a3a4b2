"""Int8 linear: W ≈ scale ⊙ codes, one scale for each output row: codes int8 [out, in], scale [out] = max|row| / 127.

The scale lies on the outputs, so it is never multiplied into the codes: x·Wᵀ = (x·codesᵀ) ⊙ scale going forward, and
g·W = (g ⊙ scale)·codes going backward; one copy of the codes serves both. Codes become floats for one product, or
with `compute="int8"` the rows of x and of g ⊙ scale become int8, each with a scale of its own (`kernels.int8`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.kernels import int8 as integers
from shoestring.kernels.int8 import Rows, Thin
from shoestring.nn.frozen import FrozenProducts, added, frozen_linear
from shoestring.nn.linear import Linear
from shoestring.nn.quantized.config import Int8Config


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """-> codes int8 [out, in] in −127 … 127, and scale [out] in the weight's dtype (at least float32)."""
    weight = weight_OI if weight_OI.dtype == torch.float64 else weight_OI.float()
    scale = weight.abs().amax(dim=1) / 127
    safe = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(1)
    return (weight / safe).round_().clamp_(-127, 127).to(torch.int8), scale


class Int8Linear(nn.Module):
    """x: [..., in] -> [..., out]; frozen, differentiable in x."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, compute: Literal["float", "int8"] = "float"
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.compute = compute
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(out_features))
        self.register_buffer("bias", torch.empty(out_features) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_linear(x, self.frozen_products(), self.bias)

    def frozen_products(self) -> FrozenProducts:
        def rounded(x: Tensor) -> Rows | None:
            return _rounded(x) if computes_in_integers(self, x) else None

        def forward(x: Tensor, thin: Thin | None = None, rows: Rows | None = None) -> Tensor:
            if computes_in_integers(self, x):
                y = integers.product(_rounded(x) if rows is None else rows, self.codes, self.scale, thin)
                return y.view(*x.shape[:-1], -1).to(x.dtype)
            return added(matmul(x, self.codes.to(x.dtype)).mul_(self.scale.to(x.dtype)), thin)

        def backward(gradient: Tensor, thin: Thin | None = None, onto: Tensor | None = None) -> Tensor:
            if not computes_in_integers(self, gradient):
                scaled = gradient * self.scale.to(gradient.dtype)
                return added(matmul(scaled, self.codes.to(gradient.dtype).t()), thin, onto)
            rows = integers.quantize_rows(gradient.flatten(end_dim=-2), self.scale)
            if onto is not None and onto.dtype == torch.float32:
                integers.product(rows, self.codes.t(), thin=thin, onto=onto.flatten(end_dim=-2))
                return onto
            x_gradient = integers.product(rows, self.codes.t(), thin=thin).view(*gradient.shape[:-1], -1)
            return x_gradient.to(gradient.dtype) if onto is None else onto.add_(x_gradient)

        return FrozenProducts(forward, backward, rounded)

    @classmethod
    def from_linear(cls, linear: Any, config: Int8Config) -> Int8Linear:
        """Rounded to nearest. The dense weight is not kept."""
        dense = as_dense(linear)
        with torch.device("meta"):
            made = cls(dense.in_features, dense.out_features, dense.bias is not None, config.compute)
        if dense.weight.is_meta:  # a shape to be filled; torch's operations on those import sympy, 50 MB
            return made
        made.codes, made.scale = quantize_rows(dense.weight.detach())
        made.bias = None if dense.bias is None else dense.bias.detach().clone()
        return made.train(dense.training)

    def to_linear(self) -> nn.Linear:
        """A dense linear of the rounded weights."""
        return dense_linear(self.codes.to(self.scale.dtype) * self.scale.unsqueeze(1), self.bias)


# Fewer rows, as in decoding, keep their activations as they are; they would gain nothing.
_FEW_ROWS = 16
# Of activations: eight take the rounding error of SmolLM2's normed inputs from 2.6% to 0.9%. Gradients gain little.
KEPT_COLUMNS = 8


def computes_in_integers(linear: Int8Linear, x: Tensor) -> bool:
    """Whether products with these rows [..., ·] are of integers."""
    return (
        linear.compute == "int8"
        and x.dtype != torch.float64
        and x.device.type in ("cpu", "cuda")
        and x.numel() > _FEW_ROWS * x.shape[-1]
        and max(linear.in_features, linear.out_features) <= integers.LONGEST
    )


def _rounded(x: Tensor) -> Rows:
    return integers.quantize_rows(x.flatten(end_dim=-2), keep=KEPT_COLUMNS)


def as_dense(linear: Any) -> nn.Linear:
    return linear if isinstance(linear, nn.Linear) else linear.to_linear()


@torch.no_grad()
def dense_linear(weight_OI: Tensor, bias: Tensor | None) -> nn.Linear:
    """A dense linear around these values."""
    with torch.device("meta"):
        made = Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight_OI)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made
