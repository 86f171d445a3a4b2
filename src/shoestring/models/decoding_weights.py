"""A decoder made ready to decode on a CPU: weights kept as they are to be read, plain kinds in native passes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.errors import ConfigError
from shoestring.kernels import large_pages
from shoestring.kernels.blocks import BlockMatrix, below, quantize
from shoestring.kernels.decode import FloatMatrix, Matrix, decode_kernels
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import read_quantization
from shoestring.models.folder import load_model, stored_dtypes
from shoestring.models.rounded_rows import RoundedRows
from shoestring.nn.attention.mla import LatentAttention
from shoestring.nn.cache import KVCache
from shoestring.nn.head import Head
from shoestring.nn.int8_cache import Int8KVCache
from shoestring.nn.linear import Linear
from shoestring.nn.native_stack import native_stack
from shoestring.nn.quantized.decoding import DecodingEmbedding, DecodingHead, DecodingLinear, QuickHead
from shoestring.nn.quantized.packed import PackedLinear
from shoestring.nn.quantized.packed_blocks import blocks_of

_BITS: dict[str, int] = {"int8": 8, "int4": 4}
_HALF: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "float16": torch.float16}
_STORED = {torch.bfloat16: "bf16", torch.float16: "float16"}
_TOGETHER = 4096  # rows laid out at a time
HEAD_BITS = 8  # with 4 bits a head loses more than all other matrices together


def load_for_decoding(folder: str | Path, weights: str) -> Decoder:
    """The decoder in a model folder on the CPU, each block's weights kept as `weights` says before the next is read.

    weights: "file" as they are stored, linears in few bits in blocks of 32 where their groups are such; else float32,
    bf16, int8 or int4. Raises what `load_model` does, ConfigError.
    """
    packed, own = read_quantization(folder) is not None, weights == "file"
    if own:
        weights = _STORED.get(stored_dtypes(folder, packed)["embedding.weight"], "float32")
    if weights == "float32" and not packed:
        return made_native(load_model(folder))
    return made_native(load_model(folder, as_read=Keeping(weights, own)))


def kept_as(decoder: Decoder, weights: str) -> Decoder:
    """The same for a decoder in memory, changed in place. Raises ConfigError."""
    if weights != "float32":
        keeping = Keeping(weights)
        keeping.ends(decoder, {})
        changed = [keeping.block(block) for block in decoder.blocks]
        if not any(changed):
            raise ConfigError(f"this model has no dense matrices to keep as {weights}", hint="decode it as it is")
    return made_native(decoder)


def made_native(decoder: Decoder) -> Decoder:
    """Native passes for plain kinds, and a head at the speed of memory, where there is a compiler; weights in large
    pages; in place."""
    head = decoder.head
    if type(head) is Head and _is_plain_float32(head.weight) and decode_kernels() is not None:
        decoder.head = QuickHead(head, FloatMatrix(head.weight.detach()))
    decoder._stack = native_stack(decoder) or decoder._stack
    large_pages.gather([*decoder.parameters(), *decoder.buffers()])
    return decoder


def with_int8_cache(decoder: Decoder) -> Decoder:
    """The same decoder, whose new caches keep keys and values in int8. Raises ConfigError where a cache holds other
    things."""
    make = decoder._make_cache
    if not isinstance(make, functools.partial) or make.func is not KVCache:
        raise ConfigError(
            "cache int8 is for grouped-query attention, without a memory and without a convolution",
            hint="leave cache out",
        )
    decoder._make_cache = functools.partial(Int8KVCache, **make.keywords)
    return decoder


class Keeping:
    """Rounds a decoder's parts, each as it comes into memory. weights: float32, bf16, float16, int8 or int4. own:
    linears in few bits stay so."""

    def __init__(self, weights: str, own: bool = False):
        self.weights, self.own = weights, own

    @torch.no_grad()
    def ends(self, decoder: Decoder, rounded: Mapping[str, RoundedRows]) -> None:
        """Head and embedding. Those that are in 8 bits in the folder stay so where that, or as few bits, is asked for.
        """
        head, dense = decoder.head, self.weights == "float32"
        codes = self.own or self.weights in _BITS
        kept: dict[str, Matrix | None] = {end: _in_blocks(rows) for end, rows in rounded.items() if codes}
        if dense and not kept:
            return
        if not isinstance(head, Head) or not head.weight.is_cpu:
            raise ConfigError(f"weights {self.weights} are kept of a dense model on the CPU", hint="leave weights out")
        tied = head.weight is decoder.embedding.weight
        embedding, last = kept.get("embedding"), kept.get("embedding" if tied else "head")
        if last is None and not dense:
            last = self._matrix(head.weight, bits=HEAD_BITS)
        if tied:
            embedding = last
        elif embedding is None and self.weights in _HALF:  # otherwise it may stay: it is read a row at a time
            embedding = self._matrix(decoder.embedding.weight)
        if last is not None:
            decoder.head = DecodingHead(last, head.width, head.softcap)
        if embedding is not None:
            decoder.embedding = DecodingEmbedding(embedding, head.width)  # type: ignore[assignment]

    @torch.no_grad()
    def block(self, block: nn.Module) -> int:
        """One block's linears; -> how many. What MLA folds into queries stays dense: it is read as a matrix."""
        count = 0
        for module in [*block.modules()]:
            for name, child in [*module.named_children()]:
                absorbed = isinstance(module, LatentAttention) and child is module.expand
                if isinstance(child, nn.Linear) and type(child) in (Linear, nn.Linear) and not absorbed:
                    setattr(module, name, DecodingLinear(self._matrix(child.weight, child.bias), child.in_features))
                    count += 1
                elif isinstance(child, PackedLinear):
                    setattr(module, name, self._packed(child))
                    count += 1
        return count

    def _packed(self, linear: PackedLinear) -> nn.Module:
        """Its own codes where they are asked for, or fit what is; else its weights, kept as asked."""
        if self.own or linear.config.bits <= _BITS.get(self.weights, 0):
            blocks = blocks_of(linear)
            if blocks is not None:
                return DecodingLinear(blocks, linear.in_features)
        if self.weights == "float32":  # inputs that are rounded to 8 bits are part of what the model is
            return linear.to_linear() if linear.config.activations is None else linear
        return DecodingLinear(self._matrix(linear.weights(), linear.bias), linear.in_features)

    def _matrix(self, weight: Tensor, bias: Any = None, bits: int | None = None) -> Matrix:
        bias = None if bias is None else bias.detach().float().contiguous().clone()
        if self.weights in _HALF:
            return FloatMatrix(weight.detach().to(_HALF[self.weights]).contiguous(), bias)
        return quantize(weight, bits or _BITS[self.weights], bias)


def _in_blocks(rows: RoundedRows) -> BlockMatrix | None:
    """The matrix as decoding multiplies it; None where blocks cannot hold it."""
    parts = [part for linear in rows.linears(_TOGETHER) if (part := blocks_of(linear)) is not None]
    whole = sum(part.columns for part in parts) == rows.codes.info.shape[0]
    return below(parts) if whole else None


def _is_plain_float32(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()
