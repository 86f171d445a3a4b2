"""Parts of one block taken out: attention groups first, then feed-forward channels, each by what reaches it behind what
is pruned already. Width goes before both, so that they are chosen, and fitted, for the stream that is left.

What a matrix is fitted to is what it gives itself, whole, on its inputs: those of the model before, where it loses
components of the stream, else those behind what is pruned already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.passage import Passage, inputs_of
from shoestring.compression.prune.importance import channel_changes, fitted, group_changes, highest
from shoestring.compression.prune.narrow import (
    columns_of,
    group_inputs,
    without_channels,
    without_groups,
    without_width,
)
from shoestring.compression.prune.shape import Shape
from shoestring.compression.prune.survey import NORMS, Kept
from shoestring.compression.quantize.gptq import Hessian
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts

DAMPING = 1e-3


@torch.no_grad()
def prune_block(
    block: nn.Module, index: int, config: ModelConfig, target: Shape, kept: Kept, passages: Sequence[Passage],
    fit: bool, behind_norms: Mapping[str, Tensor],
) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
    """The block with the sizes of `target`, and for each kind of part that goes, what part of the importance went.

    config: of the model before. passages: as the narrower model takes them. fit: whether matrices make up for inputs
    that they lose. behind_norms: second moments of what the block's norms give in the model before, where width goes
    and that is to be made up for. Raises DataError.
    """
    found: dict[str, Any] = {}
    if kept.width is not None:
        scale = {name: kept.scale[f"blocks.{index}.{name}"] for name in NORMS}
        width_D = torch.tensor(kept.width)

        def columns(norm: str, weight_OD: Tensor) -> Tensor:
            return _columns(weight_OD, behind_norms[norm], width_D, True) if behind_norms else weight_OD[:, width_D]

        block = without_width(block, config, width_D, scale, columns)
        config = config.model_copy(update={"width": len(kept.width)})
    parts = dense_parts(config)
    assert parts is not None
    attention, feed_forward = parts
    if target.groups < attention.kv_heads:
        weight_DI, moments_II = _seen(block, "attention.output", passages)
        changes_G = group_changes(weight_DI, moments_II, group_inputs(attention))
        kept_G = highest(changes_G, target.groups)
        columns_N = columns_of(kept_G, group_inputs(attention))
        block = without_groups(block, config, kept_G, _columns(weight_DI, moments_II, columns_N, fit))
        heads = attention.heads // attention.kv_heads * target.groups
        smaller = attention.model_copy(update={"heads": heads, "kv_heads": target.groups})
        config = config.model_copy(update={"attention": smaller})
        found["groups"] = {"kept": kept_G.tolist(), "lost": _lost(changes_G, kept_G)}
    if target.feed_forward < feed_forward.width:
        weight_DF, moments_FF = _seen(block, "feed_forward.down", passages)
        changes_F = channel_changes(weight_DF, moments_FF)
        kept_F = highest(changes_F, target.feed_forward)
        block = without_channels(block, config, kept_F, _columns(weight_DF, moments_FF, kept_F, fit))
        found["channels"] = {"lost": _lost(changes_F, kept_F)}
    return block, found


def _seen(block: nn.Module, linear: str, passages: Sequence[Passage]) -> tuple[Tensor, Tensor]:
    """The weights of a linear, and the second moments of what reaches it."""
    module: Any = block.get_submodule(linear)
    hessian = Hessian(module.in_features)
    for x_NI in inputs_of(block, linear, passages):
        hessian.add(x_NI)
    return module.weight, hessian.sum_II


def _columns(weight_OI: Tensor, moments_II: Tensor, kept_N: Tensor, fit: bool) -> Tensor:
    return fitted(weight_OI, moments_II, kept_N, DAMPING) if fit else weight_OI[:, kept_N]


def _lost(changes: Tensor, kept: Tensor) -> float:
    """The part of the sum that went."""
    return float(1 - changes[kept].sum() / changes.sum().clamp_min(1e-30))
