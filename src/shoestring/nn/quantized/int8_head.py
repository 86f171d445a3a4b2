"""An output head in int8, W ≈ scale ⊙ codes as `Int8Linear` has it, whose losses multiply integers both ways.

logits = hidden·Wᵀ, the hidden states rounded by rows but for their largest columns. The gradient's share p·W contracts
over the vocabulary, where the scales lie: they are folded into p, which is rounded for some rows of the head at a time.
A softmax is a few large numbers and a long tail, so it is dithered: to nearest, the tail would be gone and the mean of
the gradients off by a quarter. docs/experiments.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shoestring.core.config import Config
from shoestring.core.matmul import matmul
from shoestring.kernels import int8 as integers
from shoestring.kernels.int8 import Rows
from shoestring.nn.head import Block, Head, OutputHead
from shoestring.nn.head_blocks import block_rows
from shoestring.nn.norm import wide
from shoestring.nn.quantized.config import Int8Config
from shoestring.nn.quantized.int8 import KEPT_COLUMNS, quantize_rows

_TOGETHER = 1024  # rows of the head over which probabilities share a scale
_FEW_ROWS = 16  # torch's integer product on GPUs wants more


class Int8Block:
    """codes: int8 [V, D], scale [V]; dtype: of products that are not of integers (float64, few rows on a GPU)."""

    def __init__(self, codes_VD: Tensor, scale_V: Tensor, dtype: torch.dtype):
        self._codes_VD, self._scale_V, self._dtype = codes_VD, scale_V, dtype

    def __len__(self) -> int:
        return len(self._codes_VD)

    def logits(self, x: Rows | Tensor) -> Tensor:
        if isinstance(x, Rows):
            return integers.product(x, self._codes_VD, self._scale_V)
        return wide(matmul(x, self._codes_VD.to(x.dtype))).mul_(self._scale_V)

    def backward(self, gradient_NV: Tensor) -> Tensor:
        if not _in_integers(gradient_NV):
            return wide(matmul((gradient_NV * self._scale_V).to(self._dtype), self._codes_VD.t().to(self._dtype)))
        return dithered_product(gradient_NV, self._codes_VD, self._scale_V)

    def rows(self, numbers: Tensor) -> Tensor:
        scale = self._scale_V[numbers].unsqueeze(1)
        return self._codes_VD[numbers].to(scale.dtype) * scale


def dithered_product(gradient_NV: Tensor, codes_VD: Tensor, scale_V: Tensor, offset: int = 0) -> Tensor:
    """Σ_v g_v·scale_v·codes_v -> float32 [N, D] in integers, g ⊙ scale rounded by `kernels.int8.dither_rows`."""
    share_ND = None
    parts = (tensor.split(_TOGETHER, -1) for tensor in (gradient_NV, scale_V, codes_VD.t()))
    for gradient, scale, codes in zip(*parts, strict=True):
        share_ND = integers.product(integers.dither_rows(gradient.float(), scale, offset), codes, onto=share_ND)
    assert share_ND is not None
    return share_ND


def _in_integers(x: Tensor) -> bool:
    return x.dtype != torch.float64 and (x.device.type == "cpu" or len(x) > _FEW_ROWS)


class RoundedHead(OutputHead):
    """A head of `Int8Block`s, wherever they are kept."""

    def rounded(self, x_ND: Tensor) -> Rows | Tensor:
        return integers.quantize_rows(x_ND, keep=KEPT_COLUMNS) if _in_integers(x_ND) else x_ND


class Int8Head(RoundedHead):
    """In memory. codes: int8 [V, D], scale: [V]."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes_VD: Tensor, scale_V: Tensor, softcap: float | None = None):
        super().__init__()
        self.vocabulary, self.width = codes_VD.shape
        self.softcap = softcap
        self.register_buffer("codes", codes_VD)
        self.register_buffer("scale", scale_V)

    @classmethod
    @torch.no_grad()
    def from_head(cls, head: Head) -> Int8Head:
        """Rounded to nearest. The dense weight is not kept."""
        weight = head.weight.detach()
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(len(weight), dtype=wide(weight[:0]).dtype, device=weight.device)
        for first in range(0, len(weight), block_rows(head.width)):  # no second matrix of floats
            here = slice(first, first + block_rows(head.width))
            codes[here], scale[here] = quantize_rows(weight[here])
        return cls(codes, scale, head.softcap)

    def blocks(self, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, Block]]:
        for first in range(0, self.vocabulary, rows):
            here = slice(first, first + rows)
            yield first, Int8Block(self.codes[here], self.scale[here], dtype)


def head_for(head: Head, linears: Config | None) -> OutputHead:
    """The head beside blocks whose linears have this config: one that multiplies integers if they do."""
    return Int8Head.from_head(head) if linears == Int8Config(compute="int8") else head
