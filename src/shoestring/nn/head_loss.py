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

from shoestring.core.matmul import matmul
from shoestring.data.batch import IGNORED, Layout
from shoestring.nn.frozen_head_loss import FrozenHeadLoss
from shoestring.nn.head import OutputHead, lifted, lowered, weight_share
from shoestring.nn.head_blocks import chunk_rows


def head_loss(
    hidden_BTD: Tensor, head: OutputHead, labels_BT: Tensor, layout: Layout | None = None
) -> tuple[Tensor, int]:
    """Sum of the cross-entropy in nats over labels that are not −100, as a float32 scalar, and their number.

    Differentiable in both; a frozen head costs no weight gradient. A head that is not has a `weight` [V, D].
    layout: of the batch, where it is known: without it a GPU is waited for.
    """
    rows = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    labels = labels_BT.reshape(-1)
    if layout is not None:
        count = layout.count
        if layout.counted_N is not None:
            rows, labels = (x.index_select(0, layout.counted_N) for x in (rows, labels))
    else:
        kept = labels != IGNORED
        count = int(kept.sum())
        if count < labels.numel():
            rows, labels = rows[kept], labels[kept]
    if head.frozen:
        return FrozenHeadLoss.apply(rows, head, labels), count
    return _HeadLoss.apply(rows, head.weight, labels, head.softcap), count


def head_loss_plain(hidden_BTD: Tensor, head: OutputHead, labels_BT: Tensor) -> tuple[Tensor, int]:
    """The definition, with full logits."""
    logits = head(hidden_BTD).float().flatten(0, -2)
    loss = F.cross_entropy(logits, labels_BT.reshape(-1), ignore_index=IGNORED, reduction="sum")
    return loss, int((labels_BT != IGNORED).sum())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, softcap: float | None) -> Tensor:
        kind = rows_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows_ND.dtype
        with torch.autocast(kind, enabled=False):
            return _forward(ctx, rows_ND, weight_VD, weight_VD.to(dtype), labels_N, softcap)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        rows_gradient, weight_gradient = ctx.gradients
        ctx.gradients = None  # scaled in place, so they serve once
        scale = gradients[0]
        if rows_gradient is not None:
            rows_gradient = rows_gradient.mul_(scale)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.mul_(scale)
        return rows_gradient, weight_gradient, None, None


def _forward(
    ctx, rows_ND: Tensor, parameter: Tensor, weight_VD: Tensor, labels_N: Tensor, softcap: float | None
) -> Tensor:
    """weight_VD: the parameter in the dtype that products run in. Gradients have the dtypes of rows and parameter."""
    wants_rows, wants_weight, *_ = ctx.needs_input_grad
    rows_gradient = torch.empty_like(rows_ND) if wants_rows else None
    weight_gradient = None
    total = torch.zeros((), dtype=torch.float32, device=rows_ND.device)
    step = chunk_rows(weight_VD.shape[0])
    for start in range(0, rows_ND.shape[0], step):
        rows = rows_ND[start : start + step].to(weight_VD.dtype)
        labels = labels_N[start : start + step].unsqueeze(1)
        logits = matmul(rows, weight_VD).float()
        slope = None
        if softcap is not None:  # cap·tanh(z/cap), whose derivative is 1 − tanh²
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square() if wants_rows or wants_weight else None
            logits.mul_(softcap)
        highest, where = logits.max(dim=1, keepdim=True)
        labelled = logits.gather(1, labels)
        torch.softmax(logits, dim=1, out=logits)
        # log Σ exp(z) = z_max − log p_max: exact where log p of an unlikely label would underflow.
        total += (highest - logits.gather(1, where).log() - labelled).sum()
        if not (wants_rows or wants_weight):
            continue
        logits.scatter_add_(1, labels, torch.full_like(labelled, -1.0))
        gradient = lifted(logits if slope is None else logits.mul_(slope), rows.dtype)
        if rows_gradient is not None:
            rows_gradient[start : start + step] = lowered(matmul(gradient, weight_VD.t()))
        if wants_weight:
            share_VD = weight_share(gradient, rows).to(parameter.dtype)
            weight_gradient = share_VD if weight_gradient is None else weight_gradient.add_(share_VD)
    ctx.gradients = (rows_gradient, weight_gradient)
    return total
