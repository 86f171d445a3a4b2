"""rows · weightᵀ on CPUs through whichever library is the faster one for this kind of product.

rows_MK: [..., K], weight_NK: [N, K] -> [..., N]; either operand may be a transposed view, so that y = x·Wᵀ,
dx = g·W and dW = gᵀ·x are all this one product. torch carries two libraries for them (its BLAS, mostly MKL, and
oneDNN), and neither is best everywhere: Zen 5 wants oneDNN for float32, Zen 3 wants MKL by 1.4 to 1.7 times but oneDNN
for thin products (docs/performance.md). So each kind is measured once and the choice kept (`core.matmul_choice`).
SHOESTRING_MATMUL=mkl|onednn takes one library for all of them (for comparisons).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shoestring.core.filled import filled
from shoestring.core.matmul_choice import LAYOUTS, Kind, Product, Table

# Below this many multiply-adds choosing costs more than it gains.
WORTHWHILE = 1 << 20
OTHER_MACHINE = (
    "matrix products were made by other libraries before (another processor, torch, number of threads or"
    " SHOESTRING_MATMUL), so numbers may differ in their last bits"
)
_TILE = 1024  # numbers in each direction that `_widened` makes float32 at a time: 12 MB in all
_FORMATS = (torch.float32, torch.bfloat16)
_TENSORS = (Tensor, nn.Parameter)  # a traced, faked or distributed one has products of its own


def matmul(rows_MK: Tensor, weight_NK: Tensor, out: Tensor | None = None) -> Tensor:
    """rows · weightᵀ -> [..., N]: a plain product without autograd, either operand may be a transposed view.

    The same result as `torch.matmul(rows, weight.t())` up to the order of sums. out: [M, N], where the result may be
    written, its rows as far apart as they like; only the tensor that is returned counts, since not every library can.
    """
    if out is not None and _by_torch(rows_MK, weight_NK):
        return torch.mm(rows_MK, weight_NK.t(), out=out)
    if not worthwhile(rows_MK, weight_NK):
        return torch.matmul(rows_MK, weight_NK.t())
    return TABLE.product(kind_of(rows_MK, weight_NK))(rows_MK, weight_NK)


def add_matmul(total_MN: Tensor, rows_MK: Tensor, weight_NK: Tensor) -> None:
    """total += rows · weightᵀ, in place, by a product that adds where the library has one."""
    if _by_torch(rows_MK, weight_NK):
        total_MN.addmm_(rows_MK, weight_NK.t())
    else:
        total_MN.add_(matmul(rows_MK, weight_NK))


def halved(x: Tensor) -> bool:
    """Whether products with x are in half precision on a CPU."""
    if not x.is_cpu:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype in (torch.bfloat16, torch.float16)


def filled_rows(x: Tensor, rows: int) -> int:
    """So many rows, or more (`core.filled`) where they are to be multiplied like x in half precision on a CPU."""
    return filled(rows) if rows and halved(x) else rows


def writes_in_place(rows: int, outputs: int, inputs: int) -> bool:
    """Whether a float32 linear of this shape has all three products from torch's own library, which can write anywhere.

    Going forward [rows, inputs] · [outputs, inputs]ᵀ.
    """
    if rows * outputs * inputs < WORTHWHILE:
        return True
    shapes = {
        (False, False): (rows, outputs, inputs),
        (False, True): (rows, inputs, outputs),
        (True, True): (outputs, inputs, rows),
    }
    return all(TABLE.product(_kind(torch.float32, lies, *shape)) is _torch for lies, shape in shapes.items())


def _by_torch(rows_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether torch's own library serves this product."""
    return not worthwhile(rows_MK, weight_NK) or TABLE.product(kind_of(rows_MK, weight_NK)) is _torch


def worthwhile(rows_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether these operands are ones that `matmul` chooses a library for."""
    return (
        rows_MK.numel() * weight_NK.shape[0] >= WORTHWHILE
        and rows_MK.dim() > 1
        and rows_MK.is_cpu
        and weight_NK.is_cpu
        and rows_MK.dtype in _FORMATS
        and rows_MK.dtype == weight_NK.dtype
        and type(rows_MK) in _TENSORS
        and type(weight_NK) in _TENSORS
        and not torch.compiler.is_compiling()
    )


def kind_of(rows_MK: Tensor, weight_NK: Tensor) -> Kind:
    """What the choice depends on besides the processor: format, layout of both operands, size class."""
    outputs, inner = weight_NK.shape
    lies = _is_transposed(rows_MK), _is_transposed(weight_NK)
    return _kind(rows_MK.dtype, lies, rows_MK.numel() // inner, outputs, inner)


@functools.lru_cache(maxsize=4096)  # a few hundred products in a step, each looked up again and again
def _kind(dtype: torch.dtype, transposed: tuple[bool, bool], M: int, N: int, K: int) -> Kind:
    return Kind.of(dtype, LAYOUTS[transposed], M, N, K)


def _is_transposed(x: Tensor) -> bool:
    return x.dim() == 2 and x.stride(0) == 1 and x.stride(1) > 1


# --- the libraries ------------------------------------------------------------------------------------------


def _torch(rows_MK: Tensor, weight_NK: Tensor) -> Tensor:
    return torch.matmul(rows_MK, weight_NK.t())


def _onednn(rows_MK: Tensor, weight_NK: Tensor) -> Tensor:
    rows_MK, weight_NK = _without_gaps(rows_MK), _without_gaps(weight_NK)
    return torch.ops.mkldnn._linear_pointwise(rows_MK, weight_NK, None, "none", [], "")


def _without_gaps(x: Tensor) -> Tensor:
    """x or a copy of it: a transposed slice of wider rows sends oneDNN to its reference code, 100 times slower."""
    plain = x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous())
    return x if plain else x.contiguous()


def _widened(rows_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """In float32, tile by tile, rounded once: without bfloat16 units both libraries are 5 to 100 times slower."""
    rows = rows_MK if rows_MK.dim() == 2 else rows_MK.flatten(end_dim=-2)
    y = rows.new_empty(len(rows), len(weight_NK))
    for m in range(0, len(rows), _TILE):
        for n in range(0, len(weight_NK), _TILE):
            tile = y[m : m + _TILE, n : n + _TILE]
            sums = torch.zeros(tile.shape, device=y.device)
            for k in range(0, weight_NK.shape[1], _TILE):
                left = rows[m : m + _TILE, k : k + _TILE].float()
                sums.addmm_(left, weight_NK[n : n + _TILE, k : k + _TILE].float().t())
            tile.copy_(sums)
    return y.view(*rows_MK.shape[:-1], len(weight_NK))


@functools.cache
def libraries(dtype: torch.dtype) -> dict[str, Product]:
    """What can multiply matrices of this format here, by name; torch's own way comes first and always works."""
    found: dict[str, Product] = {"torch": _torch}
    if dtype in _FORMATS and _onednn_takes(dtype):
        found["onednn"] = _onednn
    if dtype == torch.bfloat16:
        found["widened"] = _widened
    return found


def _onednn_takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.no_grad():
            _onednn(*(torch.ones(16, 16, dtype=dtype, device="cpu") for _ in range(2)))
    except (AttributeError, RuntimeError):  # not built in, or no units for bfloat16
        return False
    return True


def served_by(choices: Mapping[str, str]) -> str:
    """Libraries by kind in words: "MKL 9, oneDNN 3 kinds of product"."""
    counts: dict[str, int] = {}
    for library in choices.values():
        counts[spoken(library)] = counts.get(spoken(library), 0) + 1
    parts = ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    return f"{parts} kinds of product" if parts else "torch"


def spoken(library: str) -> str:
    """The library's own name."""
    names = {"torch": "MKL" if torch.backends.mkl.is_available() else "torch", "onednn": "oneDNN"}
    return names.get(library, "float32")


TABLE = Table(libraries, {"mkl": "torch"}.get(wish := os.environ.get("SHOESTRING_MATMUL", ""), wish))
