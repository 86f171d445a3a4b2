"""A decoder made ready to decode on a CPU: weights in blocks of 4 or 8 bits, and plain kinds in whole native passes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from shoestring.core.errors import ConfigError
from shoestring.models.decoder import Decoder
from shoestring.nn.head import Head
from shoestring.nn.linear import Linear
from shoestring.nn.native_stack import native_stack
from shoestring.nn.quantized.blocks import BlockEmbedding, BlockHead, BlockLinear, block_matrix

DecodingWeights = Literal["int8", "int4"]
_BITS: dict[str, int] = {"int8": 8, "int4": 4}
HEAD_BITS = 8  # with 4 bits a head loses more than all other matrices together


@torch.no_grad()
def to_blocks(decoder: Decoder, weights: DecodingWeights) -> Decoder:
    """The same decoder, its linears, its head and a tied embedding rounded in place, one after another.

    Raises ConfigError on a device that is not the CPU, and for a decoder without dense linears.
    """
    if decoder.embedding.weight.device.type != "cpu":
        raise ConfigError(f"weights {weights} are for decoding on a CPU", hint="leave them out, or choose device cpu")
    changed = 0
    for module in [*decoder.blocks.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, (Linear, nn.Linear)):
                made = BlockLinear(block_matrix(child.weight, _BITS[weights], child.bias), child.in_features)
                setattr(module, name, made)
                changed += 1
    if not changed:
        raise ConfigError(f"this model has no dense matrices to keep as {weights}", hint="decode it as it is")
    if isinstance(decoder.head, Head):
        tied = decoder.head.weight is decoder.embedding.weight
        head = BlockHead(block_matrix(decoder.head.weight, HEAD_BITS), decoder.head.width, decoder.head.softcap)
        decoder.head = head
        if tied:
            decoder.embedding = BlockEmbedding(head)
    decoder._stack = native_stack(decoder) or decoder._stack
    return decoder
