"""How far a model's predictions moved from its base's: KL(base ‖ model) of the next token, under a frozen head.

The gradient for the model's logits is q − p, so each chunk of rows computes both distributions, the distance and the
gradient for the hidden states at once; nothing is computed twice and the [N, V] logits never exist as a whole. As a
penalty it is learning without forgetting (arXiv 1606.09282).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from shoestring.nn.head import OutputHead
from shoestring.nn.head_blocks import block_rows, compared_rows
from shoestring.nn.norm import wide


def base_distance(hidden_ND: Tensor, base_ND: Tensor, head: OutputHead) -> Tensor:
    """Sum in nats over N next-token distributions, as a float32 scalar. Differentiable in hidden_ND alone.

    base_ND: the base's hidden states at the same places. head: frozen.
    """
    return _Distance.apply(hidden_ND, base_ND, head)


def base_distance_plain(hidden_ND: Tensor, base_ND: Tensor, head: OutputHead) -> Tensor:
    """The definition, with full logits."""
    log_q, log_p = (torch.log_softmax(head(rows).float(), -1) for rows in (hidden_ND, base_ND))
    return (log_p.exp() * (log_p - log_q)).sum()


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND: Tensor, base_ND: Tensor, head: OutputHead) -> Tensor:
        gradient_ND = torch.empty_like(hidden_ND)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        rows, dtype = compared_rows(head.vocabulary), hidden_ND.dtype
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for part in range(0, len(hidden_ND), rows):
                here = slice(part, part + rows)
                log_p, _ = _log_softmax(base_ND[here].to(dtype), head)
                log_q, slope = _log_softmax(hidden_ND[here], head)
                p = log_p.exp()
                total += (log_p.sub_(log_q)).mul_(p).sum()
                gradient = log_q.exp_().sub_(p)
                if slope is not None:
                    gradient *= slope
                shares = (
                    block.backward(gradient[:, first : first + len(block)])
                    for first, block in head.blocks(block_rows(head.width), dtype)
                )
                gradient_ND[here] = functools.reduce(Tensor.add_, shares)
        ctx.gradient = gradient_ND
        return total

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gradient_ND, ctx.gradient = ctx.gradient, None  # scaled in place, so it serves once
        return gradient_ND.mul_(gradients[0]), None, None


def _log_softmax(rows_ND: Tensor, head: OutputHead) -> tuple[Tensor, Tensor | None]:
    """-> log-probabilities [N, V], and the cap's derivative (None without a cap)."""
    logits = rows_ND.new_empty(len(rows_ND), head.vocabulary, dtype=wide(rows_ND).dtype)
    x = head.rounded(rows_ND)
    for first, block in head.blocks(block_rows(head.width), rows_ND.dtype):
        logits[:, first : first + len(block)] = block.logits(x)
    slope = None
    if head.softcap is not None:  # cap·tanh(z/cap), whose derivative is 1 − tanh²
        logits.div_(head.softcap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(head.softcap)
    return torch.log_softmax(logits, -1), slope
