"""Linears, heads and embeddings over matrices as decoding keeps them (`kernels.decode`): frozen, float32 in and out.

Over a matrix in blocks, activations are rounded to int8 by blocks before a product. The way backward is only that which
adapters beside such a linear need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.core.matmul import matmul
from shoestring.kernels.decode import Matrix, multiply, pick, weights_of
from shoestring.nn.frozen import FrozenProducts, added
from shoestring.nn.head import Block, DenseBlock, Head, OutputHead
from shoestring.nn.linear import Linear


def _product(x: Tensor, matrix: Matrix) -> Tensor:
    """x: [..., at most K] -> [..., N] in x's dtype."""
    rows, missing = x.reshape(-1, x.shape[-1]), matrix.depth - x.shape[-1]
    y = multiply(F.pad(rows, (0, missing)) if missing else rows, matrix)
    return y.view(*x.shape[:-1], matrix.columns).to(x.dtype)


class DecodingLinear(nn.Module):
    """x: [..., in] -> [..., out]. matrix: of at least this depth; what is more are zeros."""

    held: Tensor

    def __init__(self, matrix: Any, in_features: int):
        super().__init__()
        self.matrix, self.in_features, self.out_features = matrix, in_features, matrix.columns
        self.register_buffer("held", matrix.held, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.matrix)

    @property
    def bias(self) -> Tensor | None:
        return self.matrix.bias

    def frozen_products(self) -> FrozenProducts:
        plain = replace(self.matrix, bias=None)
        return FrozenProducts(
            lambda x, thin=None, rows=None: added(_product(x, plain), thin),
            lambda g, thin=None, onto=None: added(matmul(g, self._dense().to(g.dtype).t()), thin, onto),
        )

    def to_linear(self) -> nn.Linear:
        """A dense linear of the same weights."""
        dense = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        with torch.no_grad():
            dense.weight.copy_(self._dense())
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense

    def _dense(self) -> Tensor:
        return weights_of(self.matrix)[:, : self.in_features]


class DecodingHead(OutputHead):
    """width: of the hidden states; the matrix may be deeper, by zeros."""

    def __init__(self, matrix: Matrix, width: int, softcap: float | None = None):
        super().__init__()
        self.matrix, self.vocabulary, self.width, self.softcap = matrix, matrix.columns, width, softcap
        self.register_buffer("held", matrix.held, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = _product(hidden, self.matrix)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def blocks(self, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, Block]]:
        for first in range(0, self.vocabulary, rows):
            weights = self.matrix.rows(first, min(first + rows, self.vocabulary))
            yield first, DenseBlock(weights[:, : self.width].to(dtype))


class QuickHead(Head):
    """A dense head whose products with few rows read it once, at the speed of memory, where there is no graph."""

    def __init__(self, head: Head, matrix: Matrix):
        super().__init__(head.weight, head.softcap)
        self.matrix, self._pointer = matrix, matrix.held.data_ptr()

    def forward(self, hidden: Tensor) -> Tensor:
        few = hidden.is_cpu and not torch.is_grad_enabled() and hidden.dtype == self.weight.dtype
        if not few or self.weight.data_ptr() != self._pointer:
            return super().forward(hidden)
        logits = _product(hidden, self.matrix)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class DecodingEmbedding(nn.Module):
    """Rows of a matrix, perhaps the head's. tokens: [...] -> [..., width] float32."""

    weight: Tensor  # without rows: it says the dtype and the device of what comes out

    def __init__(self, matrix: Matrix, width: int):
        super().__init__()
        self.matrix, self.width = matrix, width
        self.register_buffer("weight", torch.empty(0, width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = pick(self.matrix, tokens.reshape(-1))[:, : self.width]
        return rows.reshape(*tokens.shape, self.width)
