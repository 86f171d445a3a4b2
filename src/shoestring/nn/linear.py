"""The dense linear: y = x·Wᵀ + b, each of its three products through the faster CPU library (`core.matmul`).

x: [..., in], W: [out, in], y: [..., out]. A subclass of torch's, so that whatever knows `nn.Linear` knows it.
The twin is `torch.nn.functional.linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.core.matmul import matmul, worthwhile


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        # A frozen weight needs no x, an x without a gradient no weight.
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        y = matmul(x, weight)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, weight = ctx.saved_tensors
        gradient = gradients[0]
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        x_gradient = matmul(gradient, weight.t()) if wants_x else None
        rows = gradient.flatten(0, -2)
        weight_gradient = matmul(rows.t(), x.flatten(0, -2).t()) if wants_weight else None
        return x_gradient, weight_gradient, rows.sum(0) if wants_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [..., in], weight: [out, in], bias: [out] -> [..., out]; differentiable in all three."""
    if worthwhile(x, weight) and not torch.is_autocast_enabled("cpu"):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """x: [..., in] -> [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
