"""Output head and cross-entropy in one function, in row chunks: the [N, V] logits never exist as a whole.

Each chunk computes its logits, its loss, and at once the gradients for the hidden states and the head's weight,
so the backward pass is a scaling and nothing is computed twice. A frozen head goes by blocks of the vocabulary instead
(`frozen_head_loss`), which may come from disk. `head_loss_plain` is the twin of both. The idea of fusing the two is
from Liger Kernel (arXiv 2410.10989).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.core.matmul import add_matmul, filled_rows
from shoestring.data.batch import IGNORED, Layout
from shoestring.kernels.softmax import log_sums, softmax_rows
from shoestring.nn.frozen_head_loss import FrozenHeadLoss
from shoestring.nn.head import Head, OutputHead, Whole, lifted, weight_share
from shoestring.nn.head_blocks import chunk_rows, even_rows


def head_loss(
    hidden_BTD: Tensor, head: OutputHead, labels_BT: Tensor, layout: Layout | None = None
) -> tuple[Tensor, int]:
    """Sum of the cross-entropy in nats over labels that are not −100, as a float32 scalar, and their number.

    Differentiable in both; a frozen head costs no weight gradient. One that is not is a `Head`. Zero under a head that
    another process has.
    layout: of the batch, where it is known: without it a GPU is waited for.
    """
    if not head.here:
        counted = int((labels_BT != IGNORED).sum()) if layout is None else layout.count
        return hidden_BTD.new_zeros((), dtype=torch.float32), counted
    rows = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    labels = labels_BT.reshape(-1)
    if layout is not None:
        count, places = layout.count, layout.counted_N
    else:
        kept = labels != IGNORED
        count = int(kept.sum())
        places = kept.nonzero().flatten() if count < labels.numel() else None
    if places is not None:
        places = _filled_up(places, rows)
        rows, labels = (x.index_select(0, places) for x in (rows, labels))
    if head.frozen:
        return FrozenHeadLoss.apply(rows, head, labels, count), count
    assert isinstance(head, Head)
    return _HeadLoss.apply(rows, head.weight, labels, head, count), count


def _filled_up(places_N: Tensor, rows_ND: Tensor) -> Tensor:
    """The places that count, and behind them the first again, whose losses are left out, up to a number of rows that
    other batches have too (`core.filled`)."""
    more = filled_rows(rows_ND, len(places_N)) - len(places_N)
    return torch.cat([places_N, places_N[:1].expand(more)]) if more else places_N


def head_loss_plain(hidden_BTD: Tensor, head: OutputHead, labels_BT: Tensor) -> tuple[Tensor, int]:
    """The definition, with full logits."""
    logits = head(hidden_BTD).float().flatten(0, -2)
    loss = F.cross_entropy(logits, labels_BT.reshape(-1), ignore_index=IGNORED, reduction="sum")
    return loss, int((labels_BT != IGNORED).sum())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, head: Head, count: int) -> Tensor:
        kind = rows_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows_ND.dtype
        with torch.autocast(kind, enabled=False):
            return _forward(ctx, rows_ND, weight_VD.dtype, head.whole(dtype), labels_N, head.softcap, count)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        rows_gradient, weight_gradient = ctx.gradients
        ctx.gradients = None  # scaled in place, so they serve once
        scale = gradients[0]
        if rows_gradient is not None:
            rows_gradient = rows_gradient.mul_(scale)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.mul_(scale)
        return rows_gradient, weight_gradient, None, None, None


def _forward(
    ctx, rows_ND: Tensor, kept: torch.dtype, whole: Whole, labels_N: Tensor, softcap: float | None, count: int
) -> Tensor:
    """kept: the weight's dtype, which its gradient has too. count: of the rows, whose losses count."""
    wants_rows, wants_weight, *_ = ctx.needs_input_grad
    rows_gradient = torch.empty_like(rows_ND) if wants_rows else None
    weight_gradient = None
    total = torch.zeros((), dtype=torch.float32, device=rows_ND.device)
    step = even_rows(rows_ND.shape[0], chunk_rows(whole.vocabulary))
    buffer = whole.buffer(step)
    for start in range(0, rows_ND.shape[0], step):
        rows = rows_ND[start : start + step].to(whole.dtype)
        labels = labels_N[start : start + step]
        logits = whole.logits(rows, None if buffer is None else buffer[: len(rows)])
        if logits.dtype != torch.bfloat16 or softcap is not None:  # bfloat16 goes into the softmax as it is
            logits = logits.float()
        slope = None
        if softcap is not None:  # cap·tanh(z/cap), whose derivative is 1 − tanh²
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square() if wants_rows or wants_weight else None
            logits.mul_(softcap)
        total += _losses(logits, labels, wants_rows or wants_weight, count - start)
        if not (wants_rows or wants_weight):
            continue
        gradient = lifted(logits if slope is None else logits.mul_(slope), rows.dtype)
        del logits, slope
        if rows_gradient is not None:
            whole.backward(gradient, labels, rows_gradient[start : start + step])
        if wants_weight:
            weight_gradient = _with_share(weight_gradient, gradient, rows, kept)
        del gradient, rows  # before the next chunk's are made
    ctx.gradients = (rows_gradient, weight_gradient)
    return total


def _losses(logits_NV: Tensor, labels_N: Tensor, wants_gradient: bool, count: int) -> Tensor:
    """-> the sum of the losses of so many rows; the logits become its gradient where that is wanted."""
    normalizer_N, labelled_N = (softmax_rows if wants_gradient else log_sums)(logits_NV, labels_N)
    if count >= len(labels_N):
        return (normalizer_N - labelled_N).sum()
    count = max(count, 0)
    if wants_gradient:
        logits_NV[count:].zero_()
    return (normalizer_N - labelled_N)[:count].sum()


def _with_share(total_VD: Tensor | None, gradient_NV: Tensor, rows_ND: Tensor, kept: torch.dtype) -> Tensor:
    """The weight's gradient, of dtype `kept`, with a chunk's added, in place."""
    if total_VD is not None and rows_ND.dtype == kept == torch.float32:
        add_matmul(total_VD, gradient_NV.t(), rows_ND.t())
        return total_VD
    share_VD = weight_share(gradient_NV, rows_ND).to(kept)
    return share_VD if total_VD is None else total_VD.add_(share_VD)
