"""How far a student's next-token distribution q is from its teacher's p, and the gradient for the student's logits.

Both come as log-probabilities [N, V] of one temperature. With z the student's logits over it, log q = log_softmax(z):

    forward    KL(p ‖ q) = Σ p (log p − log q)                  d/dz = q − p
    reverse    KL(q ‖ p) = Σ q (log q − log p)                  d/dz = q (log q − log p − KL)
    mixture    β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q    d/dz = (1 − β) q (log q − log m − KL(q ‖ m))

The mixture is the generalized Jensen-Shannon divergence of GKD (arXiv 2306.13649), with β as trl has it: there 0 and 1
stand for forward and reverse, to which it tends up to a factor. From K tokens drawn from p (arXiv 2503.16870) the
forward one is estimated without bias, value and gradient, since both are linear in p.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.compression.distill.config import DistillConfig

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log q [N, V], log p [N, V]) -> nats of each row [N], and their gradient for z [N, V]. It may overwrite both."""


def forward_kl(log_q_NV: Tensor, log_p_NV: Tensor) -> tuple[Tensor, Tensor]:
    p_NV = log_p_NV.exp()
    value_N = log_p_NV.sub_(log_q_NV).mul_(p_NV).sum(-1)
    return value_N, log_q_NV.exp_().sub_(p_NV)


def reverse_kl(log_q_NV: Tensor, log_p_NV: Tensor) -> tuple[Tensor, Tensor]:
    q_NV = log_q_NV.exp()
    apart_NV = log_q_NV.sub_(log_p_NV)
    value_N = (q_NV * apart_NV).sum(-1)
    return value_N, apart_NV.sub_(value_N.unsqueeze(-1)).mul_(q_NV)


def mixture(log_q_NV: Tensor, log_p_NV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    log_m_NV = torch.logaddexp(log_p_NV + math.log(beta), log_q_NV + math.log1p(-beta))
    q_NV = log_q_NV.exp()
    theirs_N = log_p_NV.exp().mul_(log_p_NV.sub_(log_m_NV)).sum(-1)
    apart_NV = log_q_NV.sub_(log_m_NV)
    ours_N = (q_NV * apart_NV).sum(-1)
    gradient_NV = apart_NV.sub_(ours_N.unsqueeze(-1)).mul_(q_NV).mul_(1 - beta)
    return beta * theirs_N + (1 - beta) * ours_N, gradient_NV


def divergence_of(settings: DistillConfig) -> Divergence:
    """As a recipe says it."""
    if settings.divergence == "mixture":
        return functools.partial(mixture, beta=settings.weight)
    return forward_kl if settings.divergence == "forward" else reverse_kl


@dataclass(frozen=True)
class Drawn:
    """Tokens drawn from N distributions, each with its share of the draws of its row, which estimates its probability.

    rows, ids: int64 [S], of each token that was drawn; weights: float32 [S], 1 together in each row. entropy_N: of
    the whole distributions, in nats.
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor
    entropy_N: Tensor

    def to(self, device: torch.device) -> Drawn:
        return Drawn(*(part.to(device) for part in (self.rows, self.ids, self.weights, self.entropy_N)))

    def part(self, first: int, end: int) -> Drawn:
        """Of rows first to end; rows are in order."""
        low, high = torch.searchsorted(self.rows, self.rows.new_tensor([first, end])).tolist()
        here = slice(low, high)
        return Drawn(self.rows[here] - first, self.ids[here], self.weights[here], self.entropy_N[first:end])


def sampled_kl(log_q_NV: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The forward divergence by samples: what is expected of value and gradient is what `forward_kl` gives."""
    weights = drawn.weights.to(log_q_NV.dtype)
    crossed_N = torch.zeros_like(log_q_NV[:, 0])
    crossed_N.index_add_(0, drawn.rows, weights * log_q_NV[drawn.rows, drawn.ids])
    gradient_NV = log_q_NV.exp_()
    gradient_NV.index_put_((drawn.rows, drawn.ids), -weights, accumulate=True)
    return -crossed_N - drawn.entropy_N.to(log_q_NV.dtype), gradient_NV


def draw(p_NV: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`count` tokens from each distribution, independent of each other -> ids [N, count]."""
    return torch.multinomial(p_NV, count, replacement=True, generator=random)


def drawn_of(ids_NK: Tensor, entropy_N: Tensor) -> Drawn:
    """What draws amount to: each token once, with its share of them."""
    ids_NK = ids_NK.sort(-1).values
    first_NK = torch.ones_like(ids_NK, dtype=torch.bool)
    first_NK[:, 1:] = ids_NK[:, 1:] != ids_NK[:, :-1]
    places = first_NK.flatten().nonzero().flatten()
    ends = torch.cat([places[1:], places.new_tensor([ids_NK.numel()])])
    return Drawn(
        places // ids_NK.shape[1], ids_NK.flatten()[places], (ends - places).float() / ids_NK.shape[1], entropy_N
    )
