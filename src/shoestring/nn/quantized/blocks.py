"""Linears and heads whose weights are codes of 4 or 8 bits in blocks of 32, for decoding (`kernels.blocks`).

Activations are rounded to int8 by blocks before a product; there is no way backward.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.kernels.blocks import BLOCK, BlockMatrix, multiply, quantize
from shoestring.nn.head import Block, DenseBlock, OutputHead


def block_matrix(weight_NK: Tensor, bits: int, bias: Tensor | None = None) -> BlockMatrix:
    """Rounded to nearest; inputs beyond the last whole block are padded with zeros."""
    bias = None if bias is None else bias.detach().float().contiguous()
    return quantize(F.pad(weight_NK.detach().float(), (0, -weight_NK.shape[1] % BLOCK)), bits, bias)


class BlockLinear(nn.Module):
    """x: [..., in] -> [..., out], float32."""

    def __init__(self, matrix: BlockMatrix, in_features: int):
        super().__init__()
        self.matrix, self.in_features, self.out_features = matrix, in_features, matrix.columns

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.matrix.depth != self.in_features:
            rows = F.pad(rows, (0, self.matrix.depth - self.in_features))
        return multiply(rows, self.matrix).view(*x.shape[:-1], -1).to(x.dtype)


class BlockHead(OutputHead):
    """A head of codes; `embed` gives rows of the same weights, for a tied embedding."""

    def __init__(self, matrix: BlockMatrix, width: int, softcap: float | None = None):
        super().__init__()
        self.matrix, self.vocabulary, self.width, self.softcap = matrix, matrix.columns, width, softcap

    def forward(self, hidden: Tensor) -> Tensor:
        rows = F.pad(hidden.reshape(-1, self.width), (0, self.matrix.depth - self.width))
        logits = multiply(rows, self.matrix).view(*hidden.shape[:-1], -1)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def blocks(self, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, Block]]:
        """As dense rows, some at a time: for losses."""
        for first in range(0, self.vocabulary, rows):
            numbers = torch.arange(first, min(first + rows, self.vocabulary))
            yield first, DenseBlock(self.matrix.rows(numbers)[:, : self.width].to(dtype))


class BlockEmbedding(nn.Module):
    """Rows of a head's codes, float32. tokens: [...] -> [..., width]."""

    weight: Tensor  # no rows: it says the dtype and the device of what comes out

    def __init__(self, head: BlockHead):
        super().__init__()
        self.head = head
        self.register_buffer("weight", torch.empty(0, head.width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.head.matrix.rows(tokens.reshape(-1))[:, : self.head.width]
        return rows.view(*tokens.shape, self.head.width)
