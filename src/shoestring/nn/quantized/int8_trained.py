"""Trained weights whose forward and input-gradient products are of integers; they stay floats, as their gradients.

y ≈ x·Wᵀ: rows of x and rows of W are rounded to int8 for the product alone, each with a scale of its own, the few
largest columns of x apart. g·W: the scales of W's rows lie where g is summed, so they go into g, whose rows are rounded
up or down by chance: right in the mean (tests repeat it), as gradients must be. gᵀ·x stays a product of floats. W is
rounded once a step. A trained head's products are the same, but that a gradient's largest number, the label's, stays a
float. Linears alone are within a run's noise of float32 at 5M parameters and 1,000 steps, with the head within 0.1% of
its loss over 200 steps of a small model; larger ones are an open question.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.kernels import int8 as integers
from shoestring.nn.head import Head, Whole, room
from shoestring.nn.linear import Linear
from shoestring.nn.quantized.int8 import KEPT_COLUMNS
from shoestring.nn.quantized.int8_head import dithered_product

_FEW_ROWS = 16  # gain nothing


class _Rounding:
    """Codes int8 [out, in] and scale [out] of a weight as it is now, made anew once it has been changed."""

    def __init__(self) -> None:
        self._at: tuple[int, int] | None = None

    @torch.no_grad()
    def of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        at = id(weight), weight._version
        if self._at != at:
            self._codes, self._scale, *_ = integers.quantize_rows(weight)
            self._at = at
        return self._codes, self._scale


def _chance() -> int:
    """Where a pattern of rounding begins."""
    return int(torch.randint(1 << 32, ()))


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
            rows = integers.dither_rows(gradient.float().contiguous(), scale, _chance())
            x_gradient = integers.product(rows, codes.t()).view(shape).to(dtype)
        return x_gradient, weight_gradient, None, None


class Int8TrainedLinear(Linear):
    """x: [..., in] -> [..., out]. While it is evaluated, or for few rows, a dense linear."""

    rounding: _Rounding

    @classmethod
    def around(cls, linear: nn.Linear) -> Int8TrainedLinear:
        """The same parameters."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        made.rounding = _Rounding()
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.numel() // self.in_features
        if not (self.training and input.is_cpu) or rows <= _FEW_ROWS:
            return super().forward(input)
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            y = _Product.apply(input, self.weight, *self.rounding.of(self.weight))
            return y if self.bias is None else y + self.bias.to(y.dtype)


class _Int8Whole:
    """codes: int8 [V, D] and scale: [V] of the weight; dtype: of what is no product of integers."""

    def __init__(self, weight_VD: Tensor, codes_VD: Tensor, scale_V: Tensor, dtype: torch.dtype):
        self._weight_VD, self._codes_VD, self._scale_V = weight_VD, codes_VD, scale_V
        self.dtype, self.vocabulary = dtype, len(weight_VD)

    def buffer(self, rows: int) -> Tensor:
        return room(rows, self.vocabulary, self._weight_VD)

    def logits(self, rows_ND: Tensor, buffer: Tensor | None) -> Tensor:
        rows = integers.quantize_rows(rows_ND, keep=KEPT_COLUMNS)
        return integers.product(rows, self._codes_VD, self._scale_V, into=buffer)

    def backward(self, gradient_NV: Tensor, labels_N: Tensor, into: Tensor) -> None:
        labels_N1 = labels_N.unsqueeze(1)
        own_N1 = gradient_NV.gather(1, labels_N1)
        gradient_NV.scatter_(1, labels_N1, 0)
        share_ND = dithered_product(gradient_NV, self._codes_VD, self._scale_V, _chance())
        gradient_NV.scatter_(1, labels_N1, own_N1)
        into.copy_(share_ND.addcmul_(self._weight_VD[labels_N].float(), own_N1.float()))


class Int8TrainedHead(Head):
    """A dense head whose loss multiplies integers while it is trained."""

    def __init__(self, head: Head):
        super().__init__(head.weight, head.softcap)
        self.rounding = _Rounding()
        self.train(head.training)

    def whole(self, dtype: torch.dtype) -> Whole:
        if not (self.training and self.weight.is_cpu and dtype in (torch.float32, torch.bfloat16)):
            return super().whole(dtype)
        return _Int8Whole(self.weight.detach(), *self.rounding.of(self.weight), dtype)
