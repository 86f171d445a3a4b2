"""Root-mean-square norm (arXiv 1910.07467): y = x / sqrt(mean(x²) + ε) · weight, over the last dimension.

Computed in float32 (float64 for float64 inputs), then cast back, as Llama does. The fast path (`kernels.norm`) keeps x
and one number per row for the backward pass; `rms_norm_plain` is its twin and defines what it must compute.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoestring.kernels import norm


def wide(x: Tensor) -> Tensor:
    """x in at least float32: half-precision sums lose too much."""
    return x if x.dtype == torch.float64 else x.float()


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the last dimension, without writing a·b to memory, in the dtype that a and b have.

    Autocast counts vecdot among the matrix products and would compute it in half precision.
    """
    if not torch.is_autocast_enabled(a.device.type):
        return torch.linalg.vecdot(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return torch.linalg.vecdot(a, b)


def rms_norm_plain(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The definition, in ordinary autograd operations. x: [..., D], weight: [D]."""
    x32 = wide(x)
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return normed.to(x.dtype) * weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        y, scale = norm.rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, weight, scale = ctx.saved_tensors
        return *norm.rms_norm_backward(gradients[0], x, weight, scale, ctx.needs_input_grad[1]), None


class RMSNorm(nn.Module):
    """x: [..., width] -> [..., width], same dtype."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return rms_norm_plain(x, self.weight, self.epsilon)
        if not torch.is_grad_enabled():  # decoding: the autograd wrapper would cost more than the norm
            return norm.rms_norm(x, self.weight, self.epsilon)[0]
        return _RMSNorm.apply(x, self.weight, self.epsilon)
