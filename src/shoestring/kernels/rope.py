"""The turn of rotary positions (RoFormer, arXiv 2104.09864): halves a, b of a head become a·cos − b·sin, b·cos + a·sin.

x: [B, H, T, C] of any strides (heads are mostly interleaved with tokens), cos and sin: [B or 1, 1, T, C/2] float32.
torch needs four passes, the kernel (rope.cpp) one, and its one call costs less for a single token too. It takes float32
and bfloat16 (computed in float32, rounded once) on a CPU where the last stride is 1, the twin takes the rest.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor, nn

from shoestring.kernels.compiled import kernel

_FOUR = ctypes.c_int64 * 4
_TENSORS = (Tensor, nn.Parameter)  # a traced, faked or distributed one has no memory of its own to read


def turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """-> x turned by its angles (direction +1) or turned back (−1), without a graph; x's dtype and strides."""
    kernels = _kernels(x, cos, sin)
    if kernels is None:
        return turn_plain(x, cos, sin, direction)
    out = torch.empty_like(x)
    if out.stride(-1) != 1:  # for some x that overlaps itself
        return turn_plain(x, cos, sin, direction)
    table = 0 if len(cos) == 1 else cos.stride(0)
    kernels.turn(
        x.data_ptr(), _FOUR(*x.stride()), cos.data_ptr(), sin.data_ptr(), table, direction, out.data_ptr(),
        _FOUR(*out.stride()), _FOUR(*x.shape), x.dtype == torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    return out


def turn_plain(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """The definition. Writes both halves into one output; float64 stays so."""
    x32 = x if x.dtype == torch.float64 else x.float()
    half = x.shape[-1] // 2
    a, b = x32[..., :half], x32[..., half:]
    out = torch.empty_like(x32)  # keeps x's strides: heads stay interleaved with tokens
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=direction)
    return out.to(x.dtype)


def _kernels(x: Tensor, cos: Tensor, sin: Tensor) -> ctypes.CDLL | None:
    if x.dim() != 4 or x.dtype not in (torch.float32, torch.bfloat16) or x.stride(-1) != 1:
        return None
    rows, _, tokens, width = x.shape
    fits = x.is_cpu and type(x) in _TENSORS and width % 2 == 0 and len(cos) in (1, rows)
    fits = fits and all(
        table.shape[1:] == (1, tokens, width // 2)
        and table.dtype == torch.float32 and table.is_cpu and table.is_contiguous() and type(table) in _TENSORS
        for table in (cos, sin)
    )  # fmt: skip
    return _typed_kernel() if fits and len(cos) == len(sin) else None


@functools.cache
def _typed_kernel() -> ctypes.CDLL | None:
    found = kernel("rope")
    if found is not None:
        at, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.turn.argtypes = [at, at, at, at, size, ctypes.c_float, at, at, at, number, number]
    return found
