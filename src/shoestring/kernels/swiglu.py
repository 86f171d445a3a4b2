"""silu(gate) · up and its gradients, elementwise on tensors of one shape.

torch needs two passes over memory for the value and four for the gradients, with a slower exponential; the kernel
(swiglu.cpp) needs one each. It takes contiguous float32 and bfloat16 (computed in float32, rounded once) on a CPU, the
twin takes the rest.
"""

from __future__ import annotations

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.kernels.compiled import kernel

# Below this many numbers a call costs more than the passes that it saves.
WORTHWHILE = 1 << 14


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, without a graph."""
    kernels = _kernels(gate, up)
    if kernels is None:
        return silu_product_plain(gate, up)
    out = torch.empty_like(gate)
    kernels.silu_product(
        gate.data_ptr(), up.data_ptr(), out.data_ptr(), out.dtype == torch.bfloat16, out.numel(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def silu_product_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """-> the gradients of gate and of up."""
    kernels = _kernels(gradient, gate, up)
    if kernels is None:
        return silu_product_backward_plain(gradient, gate, up)
    gate_gradient, up_gradient = torch.empty_like(gate), torch.empty_like(up)
    kernels.silu_product_backward(
        gradient.data_ptr(), gate.data_ptr(), up.data_ptr(), gate_gradient.data_ptr(), up_gradient.data_ptr(),
        gate.dtype == torch.bfloat16, gate.numel(), torch.get_num_threads(),
    )  # fmt: skip
    return gate_gradient, up_gradient


def silu_product_plain(gate: Tensor, up: Tensor) -> Tensor:
    """The definition."""
    return F.silu(gate).mul_(up)


def silu_product_backward_plain(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The definition."""
    up_gradient = F.silu(gate).mul_(gradient)
    return torch.ops.aten.silu_backward(gradient * up, gate), up_gradient


def _kernels(*tensors: Tensor) -> ctypes.CDLL | None:
    dtype = tensors[0].dtype
    fits = all(x.dtype == dtype and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    fits = fits and dtype in (torch.float32, torch.bfloat16) and tensors[0].numel() >= WORTHWHILE
    return _typed_kernel() if fits else None


@functools.cache
def _typed_kernel() -> ctypes.CDLL | None:
    found = kernel("swiglu")
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.silu_product.argtypes = [at, at, at, number, size, number]
        found.silu_product_backward.argtypes = [at, at, at, at, at, number, size, number]
    return found
