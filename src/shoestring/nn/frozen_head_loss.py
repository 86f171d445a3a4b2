"""Cross-entropy under a frozen head, in one pass over blocks of the vocabulary.

The gradient for a hidden state is Σ_v p_v·w_v − w_label: attention over the head's rows. So, as flash attention
does (arXiv 2205.14135), each block's softmax and its weighted sum of rows are merged into what earlier blocks gave,
scaled by how the normalizers compare. A block of the head is used twice and not needed again: the head can come from
disk, and [N, V] logits never exist. The label's own row stays out of the sum and gets p_label − 1 at the end: a block
in few bits rounds what is left, not the difference of two near numbers. `head_loss.head_loss_plain` is the twin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.kernels.softmax import log_sums, softmax_rows
from shoestring.nn.head import Block, OutputHead
from shoestring.nn.head_blocks import STATES, block_rows
from shoestring.nn.norm import wide


class FrozenHeadLoss(torch.autograd.Function):
    """(rows_ND, head, labels_N, count) -> the sum in nats of the first `count` rows, of which all labels must count.

    Under autocast products run in its dtype.
    """

    @staticmethod
    def forward(ctx, rows_ND: Tensor, head: OutputHead, labels_N: Tensor, count: int) -> Tensor:
        kind = rows_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows_ND.dtype
        wants_gradient = ctx.needs_input_grad[0]
        if not len(rows_ND):
            ctx.gradient = torch.zeros_like(rows_ND)
            return rows_ND.new_zeros((), dtype=torch.float32)
        parts, totals = [], []
        with torch.autocast(kind, enabled=False):
            for rows, labels in zip(rows_ND.to(dtype).split(STATES), labels_N.split(STATES), strict=True):
                loss_N, gradient_ND = _over_blocks(rows, head, labels, wants_gradient)
                totals.append(loss_N[: max(count - STATES * len(totals), 0)].sum())
                parts.append(gradient_ND)
        ctx.gradient = torch.cat(parts).to(rows_ND.dtype) if wants_gradient else None
        if wants_gradient and count < len(rows_ND):
            ctx.gradient[count:].zero_()
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gradient_ND, ctx.gradient = ctx.gradient, None  # scaled in place, so it serves once
        return gradient_ND.mul_(gradients[0]), None, None, None


def _over_blocks(
    rows_ND: Tensor, head: OutputHead, labels_N: Tensor, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """-> losses [N], and their gradients for the rows [N, D] (empty if they are not wanted)."""
    merged = (_Merged if rows_ND.is_cpu else _MergedOnGPU)(rows_ND, labels_N, head.softcap, wants_gradient)
    x = head.rounded(rows_ND)
    for first, block in head.blocks(block_rows(head.width), rows_ND.dtype):
        merged.add(x, first, block)
        del block  # before the next one is made
    return merged.normalizer_N - merged.labelled_N, merged.gradient() if wants_gradient else merged.mean_ND


class _Merged:
    """What the blocks so far gave: log Σ exp(z), the labels' logits, Σ p·w without the labels, and the labels' rows."""

    def __init__(self, rows_ND: Tensor, labels_N: Tensor, softcap: float | None, wants_gradient: bool):
        self.labels_N, self.softcap, self.wants_gradient = labels_N, softcap, wants_gradient
        accuracy = torch.float64 if rows_ND.dtype == torch.float64 else torch.float32
        count, device = rows_ND.shape[0], rows_ND.device
        self.normalizer_N = torch.full((count,), -torch.inf, dtype=accuracy, device=device)
        self.labelled_N = torch.empty_like(self.normalizer_N)
        self.mean_ND = torch.zeros(rows_ND.shape if wants_gradient else (0,), dtype=accuracy, device=device)
        self.label_rows_ND = torch.empty_like(self.mean_ND)

    def add(self, x: object, first: int, block: Block) -> None:
        """Merge the block of the head whose first row is `first`. x: the hidden states as blocks multiply them."""
        logits = block.logits(x)
        slope = None
        if self.softcap is not None:  # cap·tanh(z/cap), whose derivative is 1 − tanh²
            logits = wide(logits).div_(self.softcap).tanh_()
            slope = 1 - logits.square() if self.wants_gradient else None
            logits.mul_(self.softcap)
        self.find(first, len(block))
        self.note(logits)
        if self.wants_gradient:  # the logits become probabilities, zero at the labels
            block_N, _ = softmax_rows(logits, self.labels_N, first, less_one=False)
        else:
            block_N, _ = log_sums(logits, self.labels_N, first)
        normalizer_N = torch.logaddexp(self.normalizer_N, block_N)
        if self.wants_gradient:
            self.keep_rows(slope, block)
            if slope is not None:
                logits.mul_(slope)
            self.mean_ND.mul_((self.normalizer_N - normalizer_N).exp_().unsqueeze(1))
            self.mean_ND.addcmul_(block.backward(logits), (block_N - normalizer_N).exp_().unsqueeze(1))
        self.normalizer_N = normalizer_N

    def find(self, first: int, length: int) -> None:
        """Which labels are rows of the block at hand, and which rows."""
        self._here = ((self.labels_N >= first) & (self.labels_N < first + length)).nonzero().flatten()
        self._labels = self.labels_N[self._here] - first

    def note(self, logits: Tensor) -> None:
        """Keep the logits of these labels."""
        self.labelled_N[self._here] = logits[self._here, self._labels].to(self.labelled_N.dtype)

    def keep_rows(self, slope: Tensor | None, block: Block) -> None:
        """Keep the rows of these labels, which the weighted sum leaves out."""
        if not len(self._here):
            return
        label_rows = block.rows(self._labels)
        self.label_rows_ND[self._here] = (
            label_rows if slope is None else label_rows * slope[self._here, self._labels].unsqueeze(1)
        )

    def gradient(self) -> Tensor:
        """[N, D], when all blocks are merged."""
        certainty_N = (self.labelled_N - self.normalizer_N).expm1_()  # p_label − 1
        return self.mean_ND.addcmul_(self.label_rows_ND, certainty_N.unsqueeze(1))


class _MergedOnGPU(_Merged):
    """The same without asking how many labels are in a block, which would wait for the GPU: all are looked up, those of
    other blocks at its nearest row, and only what is in it is kept. `_Merged` is the twin."""

    def find(self, first: int, length: int) -> None:
        self._inside_N1 = ((self.labels_N >= first) & (self.labels_N < first + length)).unsqueeze(1)
        self._rows_N1 = (self.labels_N - first).clamp_(0, length - 1).unsqueeze(1)

    def note(self, logits: Tensor) -> None:
        found_N1 = logits.gather(1, self._rows_N1).to(self.labelled_N.dtype)
        self.labelled_N = torch.where(self._inside_N1, found_N1, self.labelled_N.unsqueeze(1)).squeeze(1)

    def keep_rows(self, slope: Tensor | None, block: Block) -> None:
        rows_ND = block.rows(self._rows_N1.squeeze(1)).to(self.label_rows_ND.dtype)
        if slope is not None:
            rows_ND = rows_ND * slope.gather(1, self._rows_N1)
        self.label_rows_ND = torch.where(self._inside_N1, rows_ND, self.label_rows_ND)
