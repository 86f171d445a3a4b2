"""Root-mean-square norm over the last dimension (arXiv 1910.07467) and its gradients, each in one pass over memory.

x: [..., D], weight: [D]. torch needs three passes for the value and eight for the gradients. The kernel (norm.cpp)
takes contiguous float32 on a CPU, the twin takes the rest, computed in float32 at least.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor, nn

from shoestring.kernels.compiled import kernel

PARTS = 16  # of the rows: each adds up a weight gradient of its own, so that sums do not depend on threads
_TENSORS = (Tensor, nn.Parameter)  # a traced, faked or distributed one has no memory of its own to read


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """-> x · scale · weight in x's dtype, and scale = 1 / sqrt(mean(x²) + ε) of each row [..., 1]."""
    kernels = _kernels(x, weight)
    if kernels is None:
        return rms_norm_plain(x, weight, epsilon)
    y, scale = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)
    kernels.rms_norm(
        x.data_ptr(), weight.data_ptr(), epsilon, y.data_ptr(), scale.data_ptr(), scale.numel(), x.shape[-1],
        torch.get_num_threads(),
    )  # fmt: skip
    return y, scale


def rms_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, wants_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """-> the gradients of x and of the weight. scale: as `rms_norm` gave it."""
    kernels = _kernels(x, weight, scale, gradient := gradient.contiguous())
    if kernels is None:
        return rms_norm_backward_plain(gradient, x, weight, scale, wants_weight)
    x_gradient, width = torch.empty_like(x), x.shape[-1]
    sums = x.new_empty(PARTS, width) if wants_weight else None
    kernels.rms_norm_backward(
        gradient.data_ptr(), x.data_ptr(), weight.data_ptr(), scale.data_ptr(), x_gradient.data_ptr(),
        None if sums is None else sums.data_ptr(), PARTS, scale.numel(), width, torch.get_num_threads(),
    )  # fmt: skip
    return x_gradient, None if sums is None else sums.sum(0)


def rms_norm_plain(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The definition."""
    x32 = _wide(x)
    scale = torch.rsqrt((x32 * x32).sum(-1, keepdim=True).div_(x.shape[-1]).add_(epsilon))
    return (x32 * scale).to(x.dtype).mul_(weight), scale


def rms_norm_backward_plain(
    gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, wants_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """The definition."""
    gradient, normed = _wide(gradient), _wide(x) * scale
    weight_gradient = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype) if wants_weight else None
    inner = gradient * weight
    correction = (inner * normed).sum(-1, keepdim=True).div_(x.shape[-1])
    return inner.sub_(normed.mul_(correction)).mul_(scale).to(x.dtype), weight_gradient


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _kernels(*tensors: Tensor) -> ctypes.CDLL | None:
    fits = all(
        x.dtype == torch.float32 and x.is_cpu and x.is_contiguous() and type(x) in _TENSORS for x in tensors
    )
    return _typed_kernel() if fits else None


@functools.cache
def _typed_kernel() -> ctypes.CDLL | None:
    found = kernel("norm")
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.rms_norm.argtypes = [at, at, ctypes.c_float, at, at, size, size, number]
        found.rms_norm_backward.argtypes = [at, at, at, at, at, at, size, size, size, number]
    return found
