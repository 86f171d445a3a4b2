"""Inputs made larger where they count, as AWQ does (arXiv 2306.00978), so that rounding errs less in their weights.

A linear's input i is divided by s_i and its weights are multiplied by it: what stands before takes the division, a norm
in its weights, a linear in its rows, so that the block computes what it did. s = rms(x)^α, α the one of ten between
0 and 1 with which rounding errs least in what comes out, over all linears that share the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.quantize.gptq import row_errors
from shoestring.nn.norm import RMSNorm
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.grid import fit

_STEPS = 10
_LEAST = 1e-4  # of the largest input
# What stands before the linears that share an input, by the first of them.
BEFORE = {
    "attention.query": "attention_norm",
    "attention.output": "attention.value",
    "feed_forward.gate": "feed_forward_norm",
    "feed_forward.down": "feed_forward.up",
}
Kept = Callable[[str, Tensor], Tensor]
"""A parameter of the block in the numbers that it will be kept in."""


@torch.no_grad()
def scale_inputs(
    block: nn.Module, linears: Sequence[str], hessian_II: Tensor, config: PackedConfig, kept: Kept
) -> Tensor:
    """Scale the inputs that these dense linears of the block share, in place; -> what their weights were multiplied by,
    [I]. hessian: of the inputs as they were."""
    members: list[Any] = [block.get_submodule(name) for name in linears]
    before: Any = block.get_submodule(BEFORE[linears[0]])
    size_I = hessian_II.diagonal().float().sqrt()
    if not bool((size_I > 0).any()):
        return torch.ones_like(size_I)
    if isinstance(before, nn.Linear):
        size_I = _by_rows(size_I, before.out_features, _head_width(block, linears))
    scale_I = _best([member.weight for member in members], hessian_II.float(), size_I, config)
    if isinstance(before, RMSNorm):
        name, old = f"{BEFORE[linears[0]]}.weight", before.weight
        new = kept(name, old / scale_I)
        whole = (new != 0) & (old != 0)
        scale_I = torch.where(whole, old / torch.where(whole, new, torch.ones_like(new)), torch.ones_like(new))
        before.weight.copy_(torch.where(whole, new, old))
    else:
        rows_O = _one_of_each(scale_I, before.out_features, _head_width(block, linears))
        before.weight.div_(rows_O.unsqueeze(1))
        if before.bias is not None:
            before.bias.copy_(kept(f"{BEFORE[linears[0]]}.bias", before.bias / rows_O))
    for member in members:
        member.weight.mul_(scale_I)
    return scale_I


def _head_width(block: nn.Module, linears: Sequence[str]) -> int | None:
    """Where an input of a linear is one of a head's, which several query heads have of one value head."""
    attention: Any = block.get_submodule("attention")
    return attention.head_width if linears[0] == "attention.output" else None


def _by_rows(size_I: Tensor, rows: int, head_width: int | None) -> Tensor:
    """The same size for inputs that come from one row: those of the query heads that share a value head."""
    if head_width is None or len(size_I) == rows:
        return size_I
    heads = size_I.view(rows // head_width, -1, head_width)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def _one_of_each(scale_I: Tensor, rows: int, head_width: int | None) -> Tensor:
    """[rows]: the scale of what each row before gives."""
    if head_width is None or len(scale_I) == rows:
        return scale_I
    return scale_I.view(rows // head_width, -1, head_width)[:, 0].reshape(-1)


def _best(weights: list[Tensor], hessian_II: Tensor, size_I: Tensor, config: PackedConfig) -> Tensor:
    """[I]"""
    size_I = size_I.clamp_min(float(size_I.max()) * _LEAST)
    best, least = torch.ones_like(size_I), float("inf")
    for step in range(_STEPS):
        scale_I = size_I ** (step / _STEPS)
        scale_I = scale_I / (scale_I.max() * scale_I.min()).sqrt()
        error = 0.0
        for weight_OI in weights:
            scaled = weight_OI * scale_I
            grid = fit(scaled, config, hessian_II.diagonal() / scale_I.square())
            off = grid.values(grid.codes(scaled)).div_(scale_I).sub_(weight_OI)
            error += float(row_errors(off, hessian_II).sum())
        if error < least:
            best, least = scale_I, error
    return best
