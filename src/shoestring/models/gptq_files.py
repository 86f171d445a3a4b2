"""Quantized linears in a model folder as the libraries of GPTQ and AWQ name and shape their tensors; only read.

A linear NAME with weight [O, I], b bits and G groups has, in place of NAME.weight:

    gptq   NAME.qweight int32 [I·b/32, O], NAME.qzeros int32 [G, O·b/32], NAME.scales [G, O], NAME.g_idx int32 [I]
    awq    NAME.qweight int32 [I, O·b/32], NAME.qzeros int32 [G, O·b/32], NAME.scales [G, O]

w = (q − z)·s, q and z from 0 to 2^b − 1, packed the lowest bits first: with gptq along the inputs, z less one unless
its format is gptq_v2; with awq along the outputs, the eight of a word in the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.models.packed_place import SCALES, PackedPlace, check_division, taken, with_scale
from shoestring.models.place import Place
from shoestring.models.quantization import Scheme
from shoestring.nn.quantized.packed import PackedLinear
from shoestring.nn.quantized.packing import pack, unpack, words

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of a word where its outputs stand
_REORDERED = (
    "the inputs of a group do not follow each other, as desc_act makes them, and such weights are not read",
    "use a folder that was quantized with desc_act off, or the unquantized weights",
)


def take_others(scheme: Scheme, name: str, shape: tuple[int, ...], where: dict[str, Place]) -> PackedPlace:
    """name: of the linear in the files. Raises ModelFileError for parts that are missing or misshapen."""
    outputs, inputs = shape
    config, awq = scheme.config, scheme.layout == "awq"
    packed = (inputs, words(outputs, config.bits)) if awq else (words(inputs, config.bits), outputs)
    codes = taken(f"{name}.qweight", packed, (torch.int32,), where)
    check_division(config, name, inputs, codes)
    groups = config.groups(inputs)
    zero = taken(f"{name}.qzeros", (groups, words(outputs, config.bits)), (torch.int32,), where)
    scale = taken(f"{name}.scales", (groups, outputs), tuple(SCALES), where)
    if not awq and f"{name}.g_idx" in where:
        order = taken(f"{name}.g_idx", (inputs,), (torch.int32,), where)
        in_order = torch.arange(inputs, dtype=torch.int32) // (inputs // groups)
        if not torch.equal(order.file.read(order.tensor), in_order):
            raise ModelFileError(f"{order.tensor}: {_REORDERED[0]}", str(order.file.path), _REORDERED[1])
    return PackedPlace(scheme.layout, with_scale(config, scale), codes, scale, zero)


def fill_others(linear: PackedLinear, place: PackedPlace) -> None:
    """Codes, scales and zero points into a linear's allocated buffers."""
    assert place.zero is not None and linear.zero is not None
    bits, outputs = linear.config.bits, linear.out_features
    codes, zeros = place.codes.file.read(place.codes.tensor), place.zero.file.read(place.zero.tensor)
    linear.scale.copy_(place.scale.file.read(place.scale.tensor).t())
    if place.layout == "awq":
        linear.packed.copy_(pack(_in_order(unpack(codes, bits, outputs)).t(), bits))
        linear.zero.copy_(_in_order(unpack(zeros, bits, outputs)).t())
        return
    linear.packed.copy_(codes.t())  # the same bits, row by row
    zero = unpack(zeros, bits, outputs).t().to(torch.int16)
    if place.layout == "gptq":
        half = 1 << bits - 1
        zero = (zero + 1 + half).remainder(2 * half) - half
    linear.zero.copy_(zero)


def _in_order(codes_RN: Tensor) -> Tensor:
    """Eight codes of each word as they belong."""
    return codes_RN.unflatten(1, (-1, 8))[..., list(_PLACES)].flatten(1)
