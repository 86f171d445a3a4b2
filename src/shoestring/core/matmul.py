"""Float32 matrix products on CPUs through the faster of the two libraries that torch carries.

torch sends float32 products to MKL, which keeps its fast kernels for Intel's processors: on an AMD Zen 5 it
reaches about half of what oneDNN does with the same cores. So on an x86 CPU of another maker, products go to
oneDNN; everywhere else torch's own choice stands. The choice depends on the processor alone, never on a timing,
so that a resumed run repeats it. SHOESTRING_MATMUL=mkl|onednn overrides it (for comparisons).
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch
from torch import Tensor

# Below this many multiply-adds the call costs more than the product, and MKL's call is the cheaper one.
WORTHWHILE = 1 << 20


def product(rows_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """rows · weightᵀ -> [M, N]: a plain product without autograd, either operand may be a transposed view.

    The same result as `torch.mm(rows, weight.t())` up to the order of sums. rows may have leading dimensions.
    """
    if goes_to_onednn(rows_MK, weight_NK):
        rows_MK, weight_NK = _without_gaps(rows_MK), _without_gaps(weight_NK)
        return torch.ops.mkldnn._linear_pointwise(rows_MK, weight_NK, None, "none", [], "")
    return torch.matmul(rows_MK, weight_NK.t())


def _without_gaps(x: Tensor) -> Tensor:
    """x or a copy of it: a transposed slice of wider rows sends oneDNN to its reference code, 100 times slower."""
    plain = x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous())
    return x if plain else x.contiguous()


def goes_to_onednn(rows_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether `product` leaves torch's own path for these operands."""
    return (
        rows_MK.dtype == torch.float32
        and rows_MK.device.type == "cpu"
        and weight_NK.dtype == torch.float32
        and rows_MK.numel() * weight_NK.shape[0] >= WORTHWHILE
        and prefers_onednn()
    )


@functools.cache
def prefers_onednn() -> bool:
    """Whether float32 products of this process go to oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return False
    wished = os.environ.get("SHOESTRING_MATMUL", "")
    if wished in ("mkl", "onednn"):
        return wished == "onednn"
    return torch.backends.mkl.is_available() and cpu_vendor() == "AuthenticAMD"


def cpu_vendor() -> str:
    """The processor's maker as CPUID spells it, "" where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("vendor_id"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return next((name for name in ("AuthenticAMD", "GenuineIntel") if name in platform.processor()), "")
