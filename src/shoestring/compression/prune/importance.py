"""What a part of a model counts for: how much a linear's output changes on the calibration text when the part is gone.

Of inputs y with the second moments M = Σ y·yᵀ, a linear W that loses the inputs of a part P changes by the squared norm

    Σ ‖W_P · y_P‖² = trace(W_P · M_PP · W_Pᵀ)

For a feed-forward channel f, an input of `down`, that is M_ff · ‖W_f‖²; for an attention group, the inputs of `output`
that its query heads give. Minitron (arXiv 2407.14679) takes the size of what the parts give, without the weights that
read it. Behind the choice the columns K that stay are fitted so that they make up for those that go, R:

    W_K + W_R · M_RK · (M_KK + λ·1)⁻¹

the least squares of the whole output, drawn towards W_K by λ, a part of the mean of M's diagonal (as in SlimGPT, arXiv
2412.18110, and in GPTQ, where one column at a time goes).

A layer counts for 1 − mean cosine(x in, x out) over tokens: ShortGPT's block influence, arXiv 2403.03853. A component
of the residual stream counts for the mean of |norm(x)_d| over tokens, summed over all norms: Minitron's formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.core.errors import DataError

_TRIES = 4  # with ten times the damping each


def channel_changes(weight_DF: Tensor, moments_FF: Tensor) -> Tensor:
    """[F]: squared change of a linear's output without each input."""
    return moments_FF.diagonal() * weight_DF.to(moments_FF.dtype).square().sum(0)


def group_changes(weight_DI: Tensor, moments_II: Tensor, group: int) -> Tensor:
    """[I / group]: the same without each run of `group` inputs."""
    changes = []
    for first in range(0, weight_DI.shape[1], group):
        part = slice(first, first + group)
        weight_DP = weight_DI[:, part].to(moments_II.dtype)
        changes.append(((weight_DP @ moments_II[part, part]) * weight_DP).sum())
    return torch.stack(changes)


def fitted(weight_OI: Tensor, moments_II: Tensor, kept_N: Tensor, damping: float) -> Tensor:
    """[O, N]: the columns that are kept, fitted to what all gave. Raises DataError where the moments hold NaN."""
    gone = torch.ones(weight_OI.shape[1], dtype=torch.bool)
    gone[kept_N] = False
    if not bool(gone.any()):
        return weight_OI[:, kept_N]
    weight = weight_OI.to(moments_II.dtype)
    among_NN = moments_II[kept_N][:, kept_N]
    lost_ON = weight[:, gone] @ moments_II[gone][:, kept_N]
    mean = among_NN.diagonal().mean().clamp_min(1e-30)
    for _ in range(_TRIES):
        damped_NN = among_NN + torch.eye(len(kept_N), dtype=among_NN.dtype) * (damping * mean)
        factor_NN, failed = torch.linalg.cholesky_ex(damped_NN)
        if not int(failed):
            found = weight[:, kept_N] + torch.cholesky_solve(lost_ON.t(), factor_NN).t()
            if bool(found.isfinite().all()):
                return found.to(weight_OI.dtype)
        damping *= 10
    raise DataError(
        "what reaches a matrix on the calibration text is no basis to fit it to",
        hint="give other text, or --unfitted",
    )


def highest(importance_N: Tensor, count: int) -> Tensor:
    """Places of the so many highest, in their own order."""
    return importance_N.topk(count).indices.sort().values
