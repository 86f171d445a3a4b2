"""A block with parts taken out: a block of another config that holds some rows and columns of its matrices.

    width      inputs of query, key, value, gate, up; outputs of output, down; both norms
    groups     rows of key and value of a head, of query of its heads, and those columns of output
    channels   rows of gate and up, columns of down
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shoestring.models.builder import allocate, build_block
from shoestring.models.config import ModelConfig
from shoestring.nn.config import GQAConfig, SwiGLUConfig

Columns = Callable[[str, Tensor], Tensor]
_READS_STREAM = ("attention.query", "attention.key", "attention.value", "feed_forward.gate", "feed_forward.up")
_WRITES_STREAM = ("attention.output", "feed_forward.down")


def without_width(
    block: nn.Module, config: ModelConfig, kept_D: Tensor, scale: dict[str, float], columns: Columns
) -> nn.Module:
    """scale: of each norm's weights, which make up for components that its mean square no longer has. columns: of a
    matrix [O, D] that reads what the norm of this name gives, those that stay."""
    tensors = _tensors(block)
    for name in tensors:
        module, _, last = name.rpartition(".")
        if module in _READS_STREAM and last == "weight":
            tensors[name] = columns(f"{module.split('.')[0]}_norm", tensors[name])
        elif module in _WRITES_STREAM:
            tensors[name] = tensors[name][kept_D]
        elif module in scale:
            tensors[name] = tensors[name][kept_D] * scale[module]
    return _built(config.model_copy(update={"width": len(kept_D)}), tensors)


def without_groups(block: nn.Module, config: ModelConfig, kept_G: Tensor, output_DN: Tensor) -> nn.Module:
    """output_DN: the columns of `output` that stay, as `columns_of` numbers them."""
    tensors, attention = _tensors(block), config.attention
    assert isinstance(attention, GQAConfig)
    queries, keys = columns_of(kept_G, group_inputs(attention)), columns_of(kept_G, attention.head_width)
    for part, rows in (("query", queries), ("key", keys), ("value", keys)):
        for last in ("weight", "bias"):
            name = f"attention.{part}.{last}"
            if name in tensors:
                tensors[name] = tensors[name][rows]
    tensors["attention.output.weight"] = output_DN
    heads = attention.heads // attention.kv_heads * len(kept_G)
    smaller = attention.model_copy(update={"heads": heads, "kv_heads": len(kept_G)})
    return _built(config.model_copy(update={"attention": smaller}), tensors)


def without_channels(block: nn.Module, config: ModelConfig, kept_F: Tensor, down_DN: Tensor) -> nn.Module:
    """down_DN: the columns of `down` that stay."""
    tensors, feed_forward = _tensors(block), config.feed_forward
    assert isinstance(feed_forward, SwiGLUConfig)
    for part in ("gate", "up"):
        for last in ("weight", "bias"):
            name = f"feed_forward.{part}.{last}"
            if name in tensors:
                tensors[name] = tensors[name][kept_F]
    tensors["feed_forward.down.weight"] = down_DN
    smaller = feed_forward.model_copy(update={"width": len(kept_F)})
    return _built(config.model_copy(update={"feed_forward": smaller}), tensors)


def group_inputs(attention: GQAConfig) -> int:
    """Inputs of `output` that a group's query heads give."""
    return attention.heads // attention.kv_heads * attention.head_width


def columns_of(kept_G: Tensor, each: int) -> Tensor:
    """The places of groups of so many."""
    return (kept_G.unsqueeze(1) * each + torch.arange(each)).flatten()


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in block.named_parameters()}


def _built(config: ModelConfig, tensors: dict[str, Tensor]) -> nn.Module:
    with torch.device("meta"):
        block = build_block(config)
    allocate(block, "cpu")
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(tensors[name])
    return block.requires_grad_(False).eval()
