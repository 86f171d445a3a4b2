"""Packed linears as blocks of 32 that decoding multiplies as they are (`kernels.blocks`): the same codes, laid out so.

A group of 32 inputs, or of a multiple of it, is one block or several with one scale. Scales become float16, which holds
those in bfloat16 exactly but for very small ones.
"""

from __future__ import annotations

import torch

from shoestring.kernels.blocks import BlockMatrix, pack
from shoestring.kernels.decode import BLOCK
from shoestring.nn.quantized.packed import PackedLinear

_EXACT = 1e-3  # of a scale that may be lost in float16: half of its last bit


@torch.no_grad()
def blocks_of(linear: PackedLinear) -> BlockMatrix | None:
    """The linear's matrix in blocks, on the CPU; None where its groups are no whole blocks, or a scale is beyond
    float16. Up to 4 bits become 4, more become 8."""
    config, inputs = linear.config, linear.in_features
    group = config.group or inputs
    if group % BLOCK or inputs % BLOCK:
        return None
    scales = linear.scale.float().cpu()
    if bool(((scales.half().float() - scales).abs() > _EXACT * scales).any()):
        return None
    scales = scales.repeat_interleave(group // BLOCK, 1)
    bits = 4 if config.bits <= 4 else 8
    middle = 8 if bits == 4 else 0  # codes of 4 bits are kept above zero
    offsets = None
    if linear.zero is not None:
        zeros = linear.zero.float().cpu().repeat_interleave(group // BLOCK, 1)
        offsets = -(zeros + middle) * scales
        if bool((offsets.abs() > torch.finfo(torch.float16).max).any()):
            return None
    codes = linear.codes().cpu()
    bias = None if linear.bias is None else linear.bias.detach().float().cpu().clone()
    return pack(codes + middle if middle else codes, scales, offsets, bits, bias)
