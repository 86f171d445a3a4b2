"""The best factors of a matrix for the inputs that it meets: of all B·A of rank r, those with the least E‖Wx − BAx‖².

With H = Σ x·xᵀ = R·Rᵀ the error is ‖(W − BA)·R‖², least where BA·R is the truncated SVD U·Σ·Vᵀ of W·R (SVD-LLM, arXiv
2403.07378, with R by Cholesky). As U·Σ·Vᵀ = U·Uᵀ·W·R, the factors B = U and A = Uᵀ·W do it without an inverse of R, and
where H is singular, too. U are eigenvectors of W·H·Wᵀ; where a matrix has more outputs than inputs they come from the
smaller Rᵀ·Wᵀ·W·R, with R of the eigenvectors of H.

W [O, I], A [r, I], B [O, r], H [I, I]; everything in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.core.errors import DataError

_TIES = 1e-11  # of the mean of H's diagonal, added to it: among directions without inputs those of W itself come first


@dataclass(frozen=True)
class Moments:
    """sum_II: H, float64. root_II: R, None until `with_root` makes it."""

    sum_II: Tensor
    root_II: Tensor | None = None

    @classmethod
    def of(cls, sum_II: Tensor) -> Moments:
        """Raises DataError for NaN and infinity."""
        sum_II = sum_II.double()
        mean = float(sum_II.diagonal().mean())
        if not 0 <= mean < float("inf"):
            raise DataError("the calibration text makes the model compute NaN or infinity", hint="the model is broken")
        sum_II.diagonal().add_(_TIES * mean or 1.0)
        return cls(sum_II)

    def with_root(self) -> Moments:
        """R of H = R·Rᵀ: eigenvectors, each times the root of its value."""
        if self.root_II is not None:
            return self
        values, vectors = torch.linalg.eigh(self.sum_II)
        return Moments(self.sum_II, vectors * values.clamp_min_(0).sqrt_())


@torch.no_grad()
def energies(weight_OI: Tensor, moments: Moments | None) -> Tensor:
    """Σ², largest first, [min(O, I)]: what each further rank takes off the error. moments: with a root where O > I;
    None weighs every direction alike."""
    weight = weight_OI.double()
    return torch.linalg.eigvalsh(_smaller_gram(weight, moments)[0]).flip(0).clamp_min_(0)


@torch.no_grad()
def best_factors(weight_OI: Tensor, rank: int, moments: Moments | None) -> tuple[Tensor, Tensor]:
    """-> (A, B). Each rank's column of B and row of A have one length."""
    weight = weight_OI.double()
    gram, seen = _smaller_gram(weight, moments)
    vectors = torch.linalg.eigh(gram)[1][:, -rank:].flip(1)
    if seen is not None:  # of the right side: brought to the left, where they keep right angles
        vectors = torch.linalg.qr(seen @ vectors)[0]
    first_RI = vectors.t() @ weight
    split = first_RI.norm(dim=1).sqrt_()
    split = torch.where(split > 0, split, torch.ones_like(split))
    return first_RI / split.unsqueeze(1), vectors * split


def _smaller_gram(weight: Tensor, moments: Moments | None) -> tuple[Tensor, Tensor | None]:
    """W·H·Wᵀ, or Rᵀ·Wᵀ·W·R and W·R where that is smaller."""
    outputs, inputs = weight.shape
    if outputs <= inputs:
        return (weight if moments is None else weight @ moments.sum_II) @ weight.t(), None
    seen = weight
    if moments is not None:
        assert moments.root_II is not None
        seen = weight @ moments.root_II
    return seen.t() @ seen, seen
