"""Depth stacking: a trained decoder of L layers becomes one of n·L, whose new layers are copies (arXiv 2405.15319).

    blocks 0 .. L−1  ->  0 .. L−1, then copies of 0 .. L−1, again and again: layer i is a copy of layer i mod L

`stack` copies all weights: the function changes, and is found again within few steps. `zero` copies all but what writes
into the residual stream, which begins at zero: the new layers add nothing, and the function is what it was, to the last
bit, in sequential and in reversible blocks alike. Blocks that are shared in a cycle are not copied: they run once more.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from shoestring.models.builder import INTO_RESIDUAL, build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder

Growth = Literal["stack", "zero"]


@torch.no_grad()
def grown(decoder: Decoder, layers: int, growth: Growth = "stack") -> Decoder:
    """A decoder of `layers` layers, a multiple of the given one's, that shares that one's weights and has copies beside
    them.

    The given decoder is left as it is. Call `become` to put the result in its place.
    """
    config = decoder.config
    assert layers % config.layers == 0 and (growth == "stack" or config.sharing is None)
    shape = build(ModelConfig.model_validate({**config.model_dump(), "layers": layers}), device="meta")
    shape.embedding, shape.mix, shape.inputs = decoder.embedding, decoder.mix, decoder.inputs
    shape.rotary = decoder.rotary
    shape.norm, shape.head = decoder.norm, decoder.head
    shape.activation_checkpointing = decoder.activation_checkpointing
    blocks = list(decoder.blocks)
    for index in range(len(blocks), len(shape.blocks)):
        block = copy.deepcopy(decoder.blocks[index % len(decoder.blocks)])
        if growth == "zero":
            _add_nothing(block)
        blocks.append(block)
    shape.blocks = nn.ModuleList(blocks)
    shape.train(decoder.training)
    return shape


def become(decoder: Decoder, other: Decoder) -> None:
    """Whoever holds `decoder` has `other` from now on, which must not be used beside it."""
    decoder.__dict__.update(other.__dict__)


def _add_nothing(block: nn.Module) -> None:
    for name, module in block.named_modules():
        if INTO_RESIDUAL.fullmatch(f"blocks.0.{name}"):
            last = getattr(module, "second", module)  # of a low-rank one the factor that is applied last
            for parameter in last.parameters(recurse=False):
                parameter.zero_()
        elif name.endswith("_bottleneck"):
            for parameter in module.up.parameters() if hasattr(module, "up") else ():
                parameter.zero_()
