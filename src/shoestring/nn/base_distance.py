"""How far a model's predictions moved from its base's: KL(base ‖ model) of the next token, under a frozen head.

The gradient for the model's logits is q − p, so each chunk of rows computes both distributions, the distance and the
gradient for the hidden states at once; nothing is computed twice and the [N, V] logits never exist as a whole. As a
penalty it is learning without forgetting (arXiv 1606.09282).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoestring.core.matmul import matmul

CHUNK_BYTES = 25_000_000  # of float32 logits; three of that size are held


def base_distance(hidden_ND: Tensor, base_ND: Tensor, head: nn.Module) -> Tensor:
    """Sum in nats over N next-token distributions, as a float32 scalar. Differentiable in hidden_ND alone.

    base_ND: the base's hidden states at the same places. head: as `head_loss` has it, frozen.
    """
    return _Distance.apply(hidden_ND, base_ND, head.weight, head.softcap)


def base_distance_plain(hidden_ND: Tensor, base_ND: Tensor, head: nn.Module) -> Tensor:
    """The definition, with full logits."""
    log_q, log_p = (torch.log_softmax(head(rows).float(), -1) for rows in (hidden_ND, base_ND))
    return (log_p.exp() * (log_p - log_q)).sum()


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND: Tensor, base_ND: Tensor, weight_VD: Tensor, softcap: float | None) -> Tensor:
        gradient_ND = torch.empty_like(hidden_ND)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        rows = max(1, CHUNK_BYTES // (4 * len(weight_VD)))
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight_VD = weight_VD.to(hidden_ND.dtype)
            for part in range(0, len(hidden_ND), rows):
                here = slice(part, part + rows)
                log_p, _ = _log_softmax(base_ND[here].to(weight_VD.dtype), weight_VD, softcap)
                log_q, slope = _log_softmax(hidden_ND[here], weight_VD, softcap)
                p = log_p.exp()
                total += (log_p.sub_(log_q)).mul_(p).sum()
                gradient = log_q.exp_().sub_(p)
                if slope is not None:
                    gradient *= slope
                gradient_ND[here] = matmul(gradient.to(weight_VD.dtype), weight_VD.t())
        ctx.gradient = gradient_ND
        return total

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        gradient_ND, ctx.gradient = ctx.gradient, None  # scaled in place, so it serves once
        return gradient_ND.mul_(gradients[0]), None, None, None


def _log_softmax(rows_ND: Tensor, weight_VD: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """-> log-probabilities [N, V], and the cap's derivative (None without a cap)."""
    logits = matmul(rows_ND, weight_VD)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    slope = None
    if softcap is not None:  # cap·tanh(z/cap), whose derivative is 1 − tanh²
        logits.div_(softcap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(softcap)
    return torch.log_softmax(logits, -1), slope
