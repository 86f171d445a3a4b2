"""Low-rank linear: y = B(A x) + b with A [r, in] and B [out, r], in place of one matrix [out, in].

From scratch, or from a dense weight: the truncated SVD is the best factorization of W itself (Eckart and
Young), and with the second moment M = E[x xᵀ] of the inputs the factors minimize E‖Wx − BAx‖² instead (as
in SVD-LLM, arXiv 2403.07378). For the latter, W·M^½ is truncated and M^−½ multiplied back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shoestring.nn.config import LowRankConfig
from shoestring.nn.frozen import FrozenProducts, frozen_products
from shoestring.nn.linear import Linear


class LowRankLinear(nn.Module):
    """x: [..., in] -> [..., out]."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.first = Linear(in_features, rank, bias=False)
        self.second = Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    @property
    def bias(self) -> Tensor | None:
        return self.second.bias

    def frozen_products(self) -> FrozenProducts:
        first, second = frozen_products(self.first), frozen_products(self.second)
        return FrozenProducts(
            lambda x, thin=None, rows=None: second.forward(first.forward(x), thin),
            lambda g, thin=None, onto=None: first.backward(second.backward(g), thin, onto),
        )

    @torch.no_grad()
    def initialize(self, random: torch.Generator, std: float) -> None:
        """Entries of B·A have the given standard deviation, the inner numbers the scale of x."""
        inner = 1 / math.sqrt(self.in_features)
        for linear, deviation in ((self.first, inner), (self.second, std / (inner * math.sqrt(self.rank)))):
            values = torch.empty(linear.weight.shape).normal_(0.0, deviation, generator=random)
            linear.weight.copy_(values)
            if linear.bias is not None:
                linear.bias.zero_()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, config: LowRankConfig, second_moment: Tensor | None = None
    ) -> nn.Module:
        """Truncated SVD of a dense linear. second_moment: [in, in], the mean of x xᵀ over its inputs.

        A linear that factors of this rank would not make smaller is returned as it is.
        """
        rank = config.rank_of(linear.in_features, linear.out_features)
        if rank is None:
            return linear
        made = cls(linear.in_features, linear.out_features, rank, linear.bias is not None)
        made.to(device=linear.weight.device, dtype=linear.weight.dtype)
        first_RI, second_OR = factorize(linear.weight.detach(), rank, second_moment)
        with torch.no_grad():
            made.first.weight.copy_(first_RI)
            made.second.weight.copy_(second_OR)
            if linear.bias is not None:
                made.second.bias.copy_(linear.bias)
        return made.train(linear.training)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """One matrix B·A that computes the same."""
        dense = Linear(self.in_features, self.out_features, bias=self.second.bias is not None)
        dense.to(device=self.second.weight.device, dtype=self.second.weight.dtype)
        dense.weight.copy_(self.second.weight @ self.first.weight)
        if self.second.bias is not None:
            dense.bias.copy_(self.second.bias)
        return dense


def factorize(weight_OI: Tensor, rank: int, second_moment_II: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """-> (A [r, in], B [out, r]), the best factors of this rank, in float64. The scale is split evenly."""
    weight = weight_OI.double()
    if second_moment_II is None:
        return _truncate(weight, rank)
    values, vectors = torch.linalg.eigh(second_moment_II.double())
    # Directions that the inputs never take cost nothing: a floor keeps the inverse finite.
    scales = values.clamp_min(values.max().clamp_min(1e-300) * 1e-12).sqrt()
    first, second = _truncate((weight @ vectors) * scales, rank)
    return (first / scales) @ vectors.t(), second


def _truncate(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = values[:rank].sqrt()
    return roots.unsqueeze(1) * right[:rank], left[:, :rank] * roots
