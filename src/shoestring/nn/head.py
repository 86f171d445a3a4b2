"""Output heads: hidden [..., D] -> logits [..., V], or the vocabulary block by block for losses without all logits.

A head says how it is kept: dense here, in int8 in `nn.quantized.int8_head`, on disk in `offload.ends`. Losses ask for
`blocks`, or where it is trained for its `whole`, and multiply with what they get; no loss knows of formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul, writes_in_place
from shoestring.nn.head_blocks import block_rows, row_stride
from shoestring.nn.linear import linear
from shoestring.nn.norm import wide

_LIFT = 1024.0  # of gradients in float16
_ROOM = 16384.0  # for a sum of so many rows, each of them up to 4


def lifted(gradient_NV: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of logits in the dtype of products. float16 would lose what a softmax has under 6e-8, so there it is
    larger, in place, and its product with weights is `lowered`."""
    return gradient_NV.mul_(_LIFT).to(dtype) if dtype == torch.float16 else gradient_NV.to(dtype)


def lowered(x: Tensor) -> Tensor:
    """A product with a `lifted` gradient, as it would be without."""
    return x.float().div_(_LIFT) if x.dtype == torch.float16 else x


def weight_share(gradient_NV: Tensor, rows_ND: Tensor) -> Tensor:
    """gradientᵀ · rows -> [V, D] of a `lifted` gradient, in float16 so that sums over many rows fit into it."""
    if rows_ND.dtype != torch.float16:
        return matmul(gradient_NV.t(), rows_ND.t())
    factor = 2.0 ** math.floor(math.log2(_ROOM / max(len(rows_ND), 1)))
    return matmul(gradient_NV.t(), (rows_ND * (factor / _LIFT)).t()).float().div_(factor)


class Block(Protocol):
    """Some rows of a head, [V, D], as products without a graph. Results are at least float32, but for logits of
    bfloat16."""

    def __len__(self) -> int: ...

    def logits(self, x: Any) -> Tensor:
        """[N, V]. x: what the head's `rounded` made of N hidden states."""
        ...

    def backward(self, gradient_NV: Tensor) -> Tensor:
        """The gradient for hidden states [N, D] of a gradient for these logits, Σ_v g_v·w_v."""
        ...

    def rows(self, numbers: Tensor) -> Tensor:
        """[n, D]: the weights of these rows."""
        ...


class DenseBlock:
    """weight_VD: in the dtype that products run in."""

    def __init__(self, weight_VD: Tensor):
        self._weight_VD = weight_VD

    def __len__(self) -> int:
        return len(self._weight_VD)

    def logits(self, x: Tensor) -> Tensor:
        logits = matmul(x, self._weight_VD)
        return logits if logits.dtype == torch.bfloat16 else wide(logits)

    def backward(self, gradient_NV: Tensor) -> Tensor:
        return wide(lowered(matmul(lifted(gradient_NV, self._weight_VD.dtype), self._weight_VD.t())))

    def rows(self, numbers: Tensor) -> Tensor:
        return wide(self._weight_VD[numbers])


class Whole(Protocol):
    """A head that is trained, as products without a graph. dtype: of those that are of floats."""

    dtype: torch.dtype
    vocabulary: int

    def buffer(self, rows: int) -> Tensor | None:
        """[rows, V], where all chunks' logits are made, if products can be: what follows reads them in place too."""
        ...

    def logits(self, rows_ND: Tensor, buffer: Tensor | None) -> Tensor:
        """[N, V], in `buffer` where there is one: float32, or as bfloat16 products give them."""
        ...

    def backward(self, gradient_NV: Tensor, labels_N: Tensor, into: Tensor) -> None:
        """Write the gradient for hidden states into `into` [N, D]. gradient_NV: `lifted`, of a softmax for labels_N."""
        ...


class DenseWhole:
    """weight_VD: in the dtype that products run in."""

    def __init__(self, weight_VD: Tensor):
        self._weight_VD, self.dtype, self.vocabulary = weight_VD, weight_VD.dtype, len(weight_VD)

    def buffer(self, rows: int) -> Tensor | None:
        if self.dtype != torch.float32 or not writes_in_place(rows, *self._weight_VD.shape):
            return None
        return room(rows, self.vocabulary, self._weight_VD)

    def logits(self, rows_ND: Tensor, buffer: Tensor | None) -> Tensor:
        return matmul(rows_ND, self._weight_VD, buffer)

    def backward(self, gradient_NV: Tensor, labels_N: Tensor, into: Tensor) -> None:
        same = into.dtype == gradient_NV.dtype == torch.float32
        weight_DV = self._weight_VD.t()
        into.copy_(matmul(gradient_NV, weight_DV, into) if same else lowered(matmul(gradient_NV, weight_DV)))


def room(rows: int, vocabulary: int, like: Tensor) -> Tensor:
    """Room for float32 logits [rows, V]."""
    return like.new_empty(rows, row_stride(vocabulary), dtype=torch.float32)[:, :vocabulary]


class OutputHead(nn.Module):
    """What all heads have. vocabulary, width: the shape [V, D] of its weights. here: whether this process has them;
    where another does, losses are zero here."""

    here = True
    vocabulary: int
    width: int
    softcap: float | None = None  # logits become cap · tanh(logits / cap); blocks leave that to their caller

    @property
    def frozen(self) -> bool:
        """Whether its weights have no gradient."""
        return True

    def rounded(self, x_ND: Tensor) -> Any:
        """Hidden states as its blocks multiply them, once for all blocks."""
        return x_ND

    def blocks(self, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, Block]]:
        """The weights in blocks of so many rows, each with the number of its first; good until the next is asked for.

        dtype: that products of floats run in, which is the hidden states'.
        """
        raise NotImplementedError

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits without a graph, in hidden's dtype."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = torch.empty((len(rows), self.vocabulary), dtype=hidden.dtype, device=hidden.device)
        x = self.rounded(rows)
        for first, block in self.blocks(block_rows(self.width), hidden.dtype):
            logits[:, first : first + len(block)] = block.logits(x)
            del block  # before the next one is made
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits.view(*hidden.shape[:-1], -1)


class Head(OutputHead):
    """A dense head in memory. Its weight [V, D] may be the embedding's. softcap: Gemma 2's (arXiv 2408.00118)."""

    def __init__(self, weight_VD: Tensor, softcap: float | None = None):
        super().__init__()
        self.vocabulary, self.width = weight_VD.shape
        self.weight = weight_VD
        self.softcap = softcap

    @property
    def frozen(self) -> bool:
        return not self.weight.requires_grad

    def forward(self, hidden: Tensor) -> Tensor:
        logits = linear(hidden, self.weight)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def whole(self, dtype: torch.dtype) -> Whole:
        """The weight as it is trained, its products in this dtype."""
        return DenseWhole(self.weight.detach().to(dtype))

    def blocks(self, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, Block]]:
        for first in range(0, self.vocabulary, rows):
            yield first, DenseBlock(self.weight.detach()[first : first + rows].to(dtype))
