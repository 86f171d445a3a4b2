"""An adapter into a linear that is no dense matrix: rounded again in few bits, or as further ranks of its factors.

In few bits W + s·B·A is rounded to nearest, each group on the grid that it had or on one fitted to it now, of nine
ranges, whichever brings it nearer; so a group is never further off than on its old grid. Factors B₀·A₀ take the
adapter in without loss: [B₀ s·B]·[A₀; A], of as many ranks as both have together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.errors import ModelFileError
from shoestring.models.adapters import adapted_linears
from shoestring.models.decoder import Decoder
from shoestring.nn.config import DenseConfig, FactorizedConfig
from shoestring.nn.lora import LoRA, LoRALinear
from shoestring.nn.low_rank import LowRankLinear
from shoestring.nn.quantized.grid import Grid, fit
from shoestring.nn.quantized.packed import PackedLinear


@dataclass(frozen=True)
class MergedMatrix:
    """error: squared, of the rounded matrix, as a part of the exact one's length squared; of_update: as a part of what
    the adapter changes (0 where it changes nothing)."""

    name: str
    error: float
    of_update: float


@torch.no_grad()
def round_again(linear: LoRALinear, name: str) -> tuple[PackedLinear, MergedMatrix]:
    """A linear of the same grid for the base and its active adapter together. Raises ModelFileError for NaN."""
    base: Any = linear.base
    assert isinstance(base, PackedLinear)
    exact = linear.to_linear().weight
    check_numbers(name, exact)
    old, update = base.grid, exact - base.weights(exact.dtype)
    new = fit(exact, base.config, torch.ones(base.in_features, dtype=exact.dtype, device=exact.device))
    grid = _nearer(exact, old, new)
    codes = grid.codes(exact)
    made = PackedLinear.of(codes, grid, base.config, base.bias)
    made.dense_dtype = base.dense_dtype
    off, whole, changed = (float(part.double().square().sum()) for part in (grid.values(codes) - exact, exact, update))
    return made.eval(), MergedMatrix(name, off / (whole or 1.0), off / changed if changed else 0.0)


def _nearer(exact_OI: Tensor, old: Grid, new: Grid) -> Grid:
    """Of each group the one that is nearer."""
    errors_OG = [
        (grid.values(grid.codes(exact_OI), exact_OI.dtype) - exact_OI)
        .unflatten(1, (grid.scale_OG.shape[1], -1)).square_().sum(-1)
        for grid in (old, new)
    ]  # fmt: skip
    better_OG = errors_OG[1] < errors_OG[0]
    zero = None
    if old.zero_OG is not None and new.zero_OG is not None:
        zero = torch.where(better_OG, new.zero_OG, old.zero_OG)
    return Grid(old.bits, torch.where(better_OG, new.scale_OG, old.scale_OG), zero)


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raises ModelFileError for NaN and infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise ModelFileError(
            f"{name} holds NaN or infinity once it is merged", hint="the adapter or its base is broken: train it again"
        )


@torch.no_grad()
def into_factors(linear: LoRALinear) -> nn.Module:
    """Factors of the base and its active adapter together; one matrix where they would be no smaller."""
    base: Any = linear.base
    assert isinstance(base, LowRankLinear) and linear.active is not None
    adapter = linear.adapters[linear.active]
    assert isinstance(adapter, LoRA)
    inputs, outputs, rank = base.in_features, base.out_features, base.rank + adapter.config.rank
    if rank * (inputs + outputs) >= inputs * outputs:
        return linear.to_linear()
    made = LowRankLinear(inputs, outputs, rank, base.bias is not None).to(base.second.weight.dtype)
    made.first.weight.copy_(torch.cat([base.first.weight, adapter.lora_A]))
    second = torch.cat([base.second.weight, adapter.lora_B * adapter.scale], 1)
    if adapter.magnitude is not None:
        second *= (adapter.magnitude / linear.row_norms(adapter).clamp_min(1e-30)).unsqueeze(1)
    made.second.weight.copy_(second)
    if base.bias is not None:
        made.second.bias.copy_(base.bias)
    return made


def fold(decoder: Decoder) -> list[MergedMatrix]:
    """Fold the active adapters into their bases, which stay of their kinds, in place; -> what was rounded."""
    found = []
    for name, linear in adapted_linears(decoder).items():
        if linear.active is None:
            made: nn.Module = linear.base
        elif isinstance(linear.base, PackedLinear):
            made, matrix = round_again(linear, name)
            found.append(matrix)
        elif isinstance(linear.base, LowRankLinear) and decoder.config.named_matrices():
            made = into_factors(linear)
        else:
            made = linear.to_linear()
        _put(decoder, name, made.train(linear.training))
    _settle_ranks(decoder)
    return found


def multiply_out(decoder: Decoder) -> None:
    """Every linear of the blocks that is no dense matrix becomes one, in place."""
    inside = [name for name, module in decoder.named_modules() if isinstance(module, (PackedLinear, LowRankLinear))]
    for name in inside:
        linear: Any = decoder.get_submodule(name)
        _put(decoder, name, linear.to_linear().train(linear.training))
    decoder.config = decoder.config.model_copy(update={"linear": DenseConfig()})


def _settle_ranks(decoder: Decoder) -> None:
    """Write into the config which ranks factors have now; whole matrices where it has no names for them."""
    if isinstance(decoder.config.linear, DenseConfig):
        return
    names = tuple(decoder.config.named_matrices())
    named = {f"blocks.{index}.{name}" for index in range(len(decoder.blocks)) for name in names}
    if any(isinstance(module, LowRankLinear) and name not in named for name, module in decoder.named_modules()):
        multiply_out(decoder)
        return
    rows = tuple(tuple(getattr(block.get_submodule(name), "rank", 0) for name in names) for block in decoder.blocks)
    linear = FactorizedConfig(names=names, ranks=rows)
    decoder.config = type(decoder.config).model_validate({**decoder.config.model_dump(), "linear": linear.model_dump()})


def _put(decoder: Decoder, name: str, linear: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(decoder.get_submodule(parent), last, linear)
