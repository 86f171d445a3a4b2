"""Weights that make up for what the layers before them have become, before they are rounded, as GPTAQ does (arXiv
2504.02692).

A linear of the quantized model gets x where that of the dense model gets y. GPTQ rounds W so that Q·x is near W·x; here
it rounds V = W + W·Σ(y − x)xᵀ·(H + λ·1)⁻¹, H = Σ x·xᵀ: the weights with which V·x is nearest to W·y over the text, kept
near W by λ, a tenth of the mean of H's diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shoestring.compression.passage import Passage, inputs_of
from shoestring.compression.quantize.gptq import Hessian, damped_factor
from shoestring.core.matmul import matmul
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.packed import round_rows

DAMPING = 0.1


@torch.no_grad()
def follow(
    block: nn.Module,
    dense: nn.Module,
    linears: Sequence[str],
    passages: Sequence[Passage],
    own: Sequence[Passage],
    config: PackedConfig,
) -> Hessian:
    """Give these linears of the block, which share an input and are dense, such weights, in place; -> Σ x·xᵀ of what
    reaches them. dense: the block as it was, whose text, as the dense model has it, is in `own`."""
    members: list[nn.Linear] = [block.get_submodule(name) for name in linears]  # type: ignore[misc]
    inputs = members[0].in_features
    hessian = Hessian(inputs)
    apart = keeps_inputs(inputs, [member.out_features for member in members])
    shapes = [(inputs, inputs)] if apart else [(member.out_features, inputs) for member in members]
    off = [torch.zeros(shape, dtype=hessian.sum_II.dtype) for shape in shapes]
    name = linears[0]
    for x_NI, y_NI in zip(inputs_of(block, name, passages), inputs_of(dense, name, own), strict=True):
        if config.activations is not None:
            x_NI = round_rows(x_NI)
        hessian.add(x_NI)
        y_NI.sub_(x_NI)
        if apart:
            off[0] += matmul(y_NI.t(), x_NI.t())
        else:
            for sum_OI, member in zip(off, members, strict=True):
                sum_OI += matmul(matmul(y_NI, member.weight).t(), x_NI.t())
    del x_NI, y_NI  # the last ones would stay while the matrix is factored, as they would in a `zip` with a name
    if apart:
        off = [member.weight.to(off[0].dtype) @ off[0] for member in members]
    factor_II = damped_factor(hessian.sum_II, DAMPING)
    for sum_OI, member in zip(off, members, strict=True):
        member.weight.add_(torch.cholesky_solve(sum_OI.t(), factor_II).t())
    return hessian


def keeps_inputs(inputs: int, outputs: Sequence[int]) -> bool:
    """Whether Σ (y − x)xᵀ is kept, which all linears share, or its product with the weights of each: the smaller."""
    return inputs <= sum(outputs)
