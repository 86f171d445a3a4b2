"""A trained linear whose forward and input-gradient products are of integers; weights stay floats, as their gradients.

y ≈ x·Wᵀ: rows of x and rows of W are rounded to int8 for the product alone, each with a scale of its own, the few
largest columns of x apart. g·W: the scales of W's rows lie where g is summed, so they go into g, whose rows are rounded
up or down by chance: right in the mean (tests repeat it), as gradients must be. gᵀ·x stays a product of floats. W is
rounded once a step. Within a run's noise of float32 at 5M parameters and 1,000 steps; larger ones are an open question.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.kernels import int8 as integers
from shoestring.nn.linear import Linear
from shoestring.nn.quantized.int8 import KEPT_COLUMNS, quantize_rows

_FEW_ROWS = 16  # gain nothing


class _Product(torch.autograd.Function):
    """codes: int8 [out, in] and scale: [out] of the weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, codes, scale)
        y = integers.product(integers.quantize_rows(x.flatten(0, -2), keep=KEPT_COLUMNS), codes, scale)
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, codes, scale = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        weight_gradient = matmul(gradient.t(), x.flatten(0, -2).t()).float() if wants_weight else None
        shape, dtype = x.shape, x.dtype
        del x  # made again for this product alone (`nn.recompute`)
        x_gradient = None
        if wants_x:
            offset = int(torch.randint(1 << 32, ()))
            rows = integers.dither_rows(gradient.float().contiguous(), scale, offset)
            x_gradient = integers.product(rows, codes.t()).view(shape).to(dtype)
        return x_gradient, weight_gradient, None, None


class Int8TrainedLinear(Linear):
    """x: [..., in] -> [..., out]. While it is evaluated, or for few rows, a dense linear."""

    @classmethod
    def around(cls, linear: nn.Linear) -> Int8TrainedLinear:
        """The same parameters."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        if not (self.training and input.is_cpu) or rows <= _FEW_ROWS:
            return super().forward(input)
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            y = _Product.apply(input, self.weight, *self._rounded())
            return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def _rounded(self) -> tuple[Tensor, Tensor]:
        """Codes and scales of the weight as it is now, made anew once it has been changed."""
        if getattr(self, "_rounded_at", None) != self.weight._version:
            self._codes, self._scale = quantize_rows(self.weight)
            self._rounded_at = self.weight._version
        return self._codes, self._scale
