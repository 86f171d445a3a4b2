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

from shoestring.core.matmul import product
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
    accuracy = torch.float64 if rows_ND.dtype == torch.float64 else torch.float32
    count = rows_ND.shape[0]
    normalizer_N = torch.full((count,), -torch.inf, dtype=accuracy, device=rows_ND.device)
    labelled_N = torch.empty_like(normalizer_N)
    mean_ND = torch.zeros(rows_ND.shape if wants_gradient else (0,), dtype=accuracy, device=rows_ND.device)
    label_rows_ND = torch.empty_like(mean_ND)
    for first, block_VD in blocks(block_rows(rows_ND.shape[1])):
        block_VD = block_VD.to(rows_ND.dtype)
        logits = wide(product(rows_ND, block_VD))
        slope = None
        if softcap is not None:  # cap·tanh(z/cap), whose derivative is 1 − tanh²
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square() if wants_gradient else None
            logits.mul_(softcap)
        here = ((labels_N >= first) & (labels_N < first + block_VD.shape[0])).nonzero().flatten()
        labels = labels_N[here] - first
        labelled_N[here] = logits[here, labels]
        if wants_gradient and len(here):
            label_rows_ND[here] = block_VD[labels].to(accuracy)
            if slope is not None:
                label_rows_ND[here] *= slope[here, labels].unsqueeze(1)
        highest_N = logits.amax(1)
        torch.softmax(logits, dim=1, out=logits)
        # log Σ exp(z) of the block: its largest logit is its largest probability too.
        block_N = highest_N - logits.amax(1).log_()
        merged_N = torch.logaddexp(normalizer_N, block_N)
        if wants_gradient:
            if slope is not None:
                logits.mul_(slope)
            share_ND = product(logits.to(rows_ND.dtype), block_VD.t()).to(accuracy)
            mean_ND.mul_((normalizer_N - merged_N).exp_().unsqueeze(1))
            mean_ND.addcmul_(share_ND, (block_N - merged_N).exp_().unsqueeze(1))
        normalizer_N = merged_N
    return normalizer_N - labelled_N, mean_ND.sub_(label_rows_ND)
