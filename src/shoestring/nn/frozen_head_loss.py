"""Cross-entropy under a frozen head, in one pass over blocks of the vocabulary.

The gradient for a hidden state is Σ_v p_v·w_v − w_label: attention over the head's rows. So, as flash attention
does (arXiv 2205.14135), each block's softmax and its weighted sum of rows are merged into what earlier blocks gave,
scaled by how the normalizers compare. A block of the head is used twice and not needed again: the head can come from
disk, and [N, V] logits never exist. `head_loss.head_loss_plain` is the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from shoestring.core.matmul import matmul
from shoestring.nn.norm import wide

_BLOCK_BYTES = 32_000_000  # of float32 weights in a block: full matmul speed, small buffers
_LARGEST_BLOCK = 8192  # rows
_STATES = 2048  # hidden states at once, which bounds the logits of a block; more of them read the head again

Blocks = Callable[[int], Iterable[tuple[int, Tensor]]]  # rows -> (number of the first row, weights [rows, D]) ...


def block_rows(width: int) -> int:
    """Rows of the head in a block, for hidden states of this width: the same resident and streamed."""
    return max(64, min(_LARGEST_BLOCK, _BLOCK_BYTES // (4 * width)))


class FrozenHeadLoss(torch.autograd.Function):
    """(rows_ND, blocks, labels_N, softcap) -> the sum in nats; labels must all count."""

    @staticmethod
    def forward(ctx, rows_ND: Tensor, blocks: Blocks, labels_N: Tensor, softcap: float | None) -> Tensor:
        kind = rows_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows_ND.dtype
        wants_gradient = ctx.needs_input_grad[0]
        if not len(rows_ND):
            ctx.gradient = torch.zeros_like(rows_ND)
            return rows_ND.new_zeros((), dtype=torch.float32)
        parts, totals = [], []
        with torch.autocast(kind, enabled=False):
            for rows, labels in zip(rows_ND.to(dtype).split(_STATES), labels_N.split(_STATES), strict=True):
                loss_N, gradient_ND = _over_blocks(rows, blocks, labels, softcap, wants_gradient)
                totals.append(loss_N.sum())
                parts.append(gradient_ND)
        ctx.gradient = torch.cat(parts).to(rows_ND.dtype) if wants_gradient else None
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gradient_ND, ctx.gradient = ctx.gradient, None  # scaled in place, so it serves once
        return gradient_ND.mul_(gradients[0]), None, None, None


def _over_blocks(
    rows_ND: Tensor, blocks: Blocks, labels_N: Tensor, softcap: float | None, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """-> losses [N], and their gradients for the rows [N, D] (empty if they are not wanted)."""
    merged = _Merged(rows_ND, labels_N, softcap, wants_gradient)
    for first, block_VD in blocks(block_rows(rows_ND.shape[1])):
        merged.add(first, block_VD.to(rows_ND.dtype))
        del block_VD  # before the next one is made
    return merged.normalizer_N - merged.labelled_N, merged.mean_ND.sub_(merged.label_rows_ND)


class _Merged:
    """What the blocks so far gave: log Σ exp(z), the labels' logits, Σ p·w, and the labels' rows."""

    def __init__(self, rows_ND: Tensor, labels_N: Tensor, softcap: float | None, wants_gradient: bool):
        self.rows_ND, self.labels_N, self.softcap, self.wants_gradient = rows_ND, labels_N, softcap, wants_gradient
        self.accuracy = torch.float64 if rows_ND.dtype == torch.float64 else torch.float32
        count, device = rows_ND.shape[0], rows_ND.device
        self.normalizer_N = torch.full((count,), -torch.inf, dtype=self.accuracy, device=device)
        self.labelled_N = torch.empty_like(self.normalizer_N)
        self.mean_ND = torch.zeros(rows_ND.shape if wants_gradient else (0,), dtype=self.accuracy, device=device)
        self.label_rows_ND = torch.empty_like(self.mean_ND)

    def add(self, first: int, block_VD: Tensor) -> None:
        """Merge the block of the head whose first row is `first`."""
        logits = wide(matmul(self.rows_ND, block_VD))
        slope = None
        if self.softcap is not None:  # cap·tanh(z/cap), whose derivative is 1 − tanh²
            logits.div_(self.softcap).tanh_()
            slope = 1 - logits.square() if self.wants_gradient else None
            logits.mul_(self.softcap)
        here = ((self.labels_N >= first) & (self.labels_N < first + block_VD.shape[0])).nonzero().flatten()
        labels = self.labels_N[here] - first
        self.labelled_N[here] = logits[here, labels]
        if self.wants_gradient and len(here):
            self.label_rows_ND[here] = block_VD[labels].to(self.accuracy)
            if slope is not None:
                self.label_rows_ND[here] *= slope[here, labels].unsqueeze(1)
        highest_N = logits.amax(1)
        torch.softmax(logits, dim=1, out=logits)
        # log Σ exp(z) of the block: its largest logit is its largest probability too.
        block_N = highest_N - logits.amax(1).log_()
        normalizer_N = torch.logaddexp(self.normalizer_N, block_N)
        if self.wants_gradient:
            if slope is not None:
                logits.mul_(slope)
            share_ND = matmul(logits.to(self.rows_ND.dtype), block_VD.t()).to(self.accuracy)
            self.mean_ND.mul_((self.normalizer_N - normalizer_N).exp_().unsqueeze(1))
            self.mean_ND.addcmul_(share_ND, (block_N - normalizer_N).exp_().unsqueeze(1))
        self.normalizer_N = normalizer_N
