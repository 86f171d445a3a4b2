"""One block at a time: looked at for the choice of ranks, then factorized by what reaches its linears.

A linear's calibration inputs, when it is factorized, are those that the model makes whose linears before it, in the
same block too, are factors already. Ranks are chosen before that, by what reaches the dense ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.factorize.low_rank import Moments, best_factors, energies
from shoestring.compression.factorize.ranks import Matrix
from shoestring.compression.passage import Passage, inputs_of
from shoestring.compression.quantize.config import STAGES
from shoestring.compression.quantize.gptq import Hessian, row_errors
from shoestring.compression.quantize.scaling import Kept
from shoestring.nn.low_rank import LowRankLinear


@dataclass(frozen=True)
class Fitted:
    """Squared errors over the calibration inputs, or without any of the weights: of the factors, of those that plain
    SVD gives at this rank, and of zeros."""

    rank: int
    error: float
    plain: float
    whole: float


def look(
    block: nn.Module, passages: Sequence[Passage], by_text: bool, weights: Mapping[str, float] | None,
    done: Callable[[], Any],
) -> dict[str, Matrix]:  # fmt: skip
    """What each rank of the block's matrices would keep. weights: what the loss feels of errors in what each gives."""
    found = {}
    for stage, moments in _stages(block, passages, by_text):
        for name in stage:
            linear: Any = block.get_submodule(name)
            parts = energies(linear.weight, moments)
            weight = None if weights is None else weights[name]
            found[name] = Matrix.of(linear.in_features, linear.out_features, parts, weight)
            done()
    return found


def factorize_block(
    block: nn.Module, passages: Sequence[Passage], by_text: bool, ranks: Mapping[str, int], kept: Kept,
    done: Callable[[], Any],
) -> dict[str, Fitted]:  # fmt: skip
    """Replace the linears of these names by factors, in place; -> what each became. kept: what a weight of the block is
    kept as, which a factor is as well."""
    found = {}
    for stage, moments in _stages(block, passages, by_text):
        for name in stage:
            linear: Any = block.get_submodule(name)
            if name in ranks:
                of_name = functools.partial(kept, f"{name}.weight")
                made, found[name] = _factors(linear, ranks[name], moments, of_name)
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, made)
            else:
                linear.weight.copy_(kept(f"{name}.weight", linear.weight))
            done()
    return found


def _stages(block: nn.Module, passages: Sequence[Passage], by_text: bool) -> Any:
    """Linears that share their inputs, in the order in which they run, with the second moments of these."""
    for stage in STAGES:
        moments = None
        linears: list[Any] = [block.get_submodule(name) for name in stage]
        if by_text:
            hessian = Hessian(linears[0].in_features)
            for x_NI in inputs_of(block, stage[0], passages):
                hessian.add(x_NI)
            moments = Moments.of(hessian.sum_II)
            del hessian
            if any(linear.out_features > linear.in_features for linear in linears):
                moments = moments.with_root()
        yield stage, moments


def _factors(
    linear: Any, rank: int, moments: Moments | None, kept: Callable[[Tensor], Tensor]
) -> tuple[LowRankLinear, Fitted]:
    weight = linear.weight
    first, second = (kept(factor.float()) for factor in best_factors(weight, rank, moments))
    with torch.device("meta"):
        made = LowRankLinear(linear.in_features, linear.out_features, rank, linear.bias is not None)
    made.first.weight, made.second.weight = nn.Parameter(first), nn.Parameter(second)
    if linear.bias is not None:
        made.second.bias = nn.Parameter(linear.bias.detach().clone())
    dense = weight.double()
    error = _error(second.double() @ first.double() - dense, moments)
    plain = error
    if moments is not None:
        A, B = best_factors(weight, rank, None)
        plain = _error(B @ A - dense, moments)
    return made.requires_grad_(False).eval(), Fitted(rank, error, plain, _error(dense, moments))


def _error(off_OI: Tensor, moments: Moments | None) -> float:
    if moments is None:
        return float(off_OI.square().sum())
    return float(row_errors(off_OI, moments.sum_II).sum())
