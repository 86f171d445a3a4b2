"""All blocks of a plain decoder in one native call for each pass with a cache (`kernels.decode`); the twin is the stack.

Plain are blocks of RMSNorm, grouped-query attention with rotary positions and SwiGLU, one after another, whose weights
are in blocks: Llama, Qwen2, Qwen3. What else a pass may have (no cache, external vectors, windows) goes through the
stack that is replaced.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.kernels.blocks import BLOCK, BlockMatrix, MatrixStruct, block_kernels, joined
from shoestring.nn.attention.gqa import GroupedQueryAttention, attend_all
from shoestring.nn.block import SequentialBlock
from shoestring.nn.cache import Cache, CacheRows, KVCache
from shoestring.nn.context import Context
from shoestring.nn.feed_forward import SwiGLU
from shoestring.nn.norm import RMSNorm
from shoestring.nn.quantized.blocks import BlockLinear
from shoestring.nn.stack import Aux, SequentialStack


class _Layer(ctypes.Structure):
    _fields_ = [
        ("attention_norm", ctypes.c_void_p), ("feed_forward_norm", ctypes.c_void_p), ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p), ("queries_keys_values", MatrixStruct), ("output", MatrixStruct),
        ("gate_up", MatrixStruct), ("down", MatrixStruct), ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p),
    ]  # fmt: skip


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "width", "heads", "kv_heads", "head_width", "hidden", "capacity")),
        ("epsilon", ctypes.c_float),
    ]  # fmt: skip


class _Pass(ctypes.Structure):
    _fields_ = [
        ("tokens", ctypes.c_int64), ("slots", ctypes.c_void_p), ("places", ctypes.c_void_p), ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p), ("x", ctypes.c_void_p),
    ]  # fmt: skip


class _Room(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("codes", "scales", "sums", "wide", "narrow", "scores")]


class NativeStack:
    """Instead of a `SequentialStack` over these blocks. Raises nothing: what it cannot do it leaves to that one."""

    def __init__(self, stack: SequentialStack, blocks: list[SequentialBlock], kernels: ctypes.CDLL):
        self.order, self._stack, self._kernels = stack.order, stack, kernels
        self._layers = [_matrices(blocks[index]) for index in stack.order]
        self._blocks = [blocks[index] for index in stack.order]

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache: Any, recompute: Any
    ) -> tuple[Tensor, Aux]:
        held = cache.cache if isinstance(cache, CacheRows) else cache
        if not self._fits(x_BTD, context, held):
            return self._stack(blocks, x_BTD, context, cache, recompute)
        rows = cache if isinstance(cache, CacheRows) else None
        return self._run(x_BTD, context, held, rows), {}

    def _fits(self, x_BTD: Tensor, context: Context, held: Cache | None) -> bool:
        return (
            isinstance(held, KVCache) and held.keys[0].dtype == torch.float32 and x_BTD.dtype == torch.float32
            and x_BTD.is_cpu and not torch.is_grad_enabled() and context.rotary is not None
        )  # fmt: skip

    def _run(self, x_BTD: Tensor, context: Context, held: KVCache, rows: CacheRows | None) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]).clone()
        tokens, width = x_ND.shape
        slots, places, kept = _places(rows if rows is not None else held.all_rows(context.counts), x_BTD.shape[1])
        if len(kept) < tokens:  # padding takes no part
            part = torch.tensor(kept)
            x_ND = x_ND[part].contiguous()
        first = self._blocks[0]
        attention, hidden = first.attention, first.feed_forward.down.in_features
        heads = attention.output.in_features // attention.head_width
        kv_heads = held.keys[0].shape[1]
        shape = _Shape(
            len(self._layers), width, heads, kv_heads, attention.head_width, hidden, held.capacity,
            first.attention_norm.epsilon,
        )  # fmt: skip
        cos_NC, sin_NC = (_table(table, x_BTD.shape[:2], kept) for table in context.rotary)  # type: ignore[union-attr]
        threads = torch.get_num_threads()
        many, group = len(kept), heads // kv_heads
        widest = max(width, heads * attention.head_width)
        depth = max(widest, hidden)
        room = [
            torch.empty(many, depth, dtype=torch.int8), torch.empty(many, depth // BLOCK), torch.empty(many, depth // BLOCK),
            torch.empty(many, max((heads + 2 * kv_heads) * attention.head_width, 2 * hidden)), torch.empty(many, widest),
            torch.empty(threads, held.capacity * group),
        ]  # fmt: skip
        layers = (_Layer * len(self._layers))()
        for at, (layer, parts) in enumerate(zip(layers, self._layers, strict=True)):
            norms, matrices = parts
            layer.attention_norm, layer.feed_forward_norm, layer.query_norm, layer.key_norm = norms
            layer.queries_keys_values, layer.output, layer.gate_up, layer.down = (one.struct() for one in matrices)
            layer.keys, layer.values = held.keys[at].data_ptr(), held.values[at].data_ptr()
        slots_N, places_N = torch.tensor(slots), torch.tensor(places)
        given = _Pass(
            many, slots_N.data_ptr(), places_N.data_ptr(), cos_NC.data_ptr(), sin_NC.data_ptr(), x_ND.data_ptr()
        )
        self._kernels.decode_layers(
            ctypes.byref(shape), layers, ctypes.byref(given), ctypes.byref(_Room(*(one.data_ptr() for one in room))), threads
        )
        if len(kept) < tokens:
            whole = x_BTD.new_zeros(tokens, width)
            whole[part] = x_ND
            x_ND = whole
        return x_ND.view(x_BTD.shape)


def native_stack(decoder: Any) -> NativeStack | None:
    """For a decoder whose blocks are plain and in blocks of codes, where there is a compiler; None for another."""
    kernels, stack, blocks = block_kernels(), decoder._stack, list(decoder.blocks)
    if kernels is None or type(stack) is not SequentialStack or not all(map(_is_plain, blocks)):
        return None
    return NativeStack(stack, blocks, kernels)


def _is_plain(block: nn.Module) -> bool:
    if type(block) is not SequentialBlock:
        return False
    attention, feed_forward = block.attention, block.feed_forward
    if type(attention) is not GroupedQueryAttention or type(feed_forward) is not SwiGLU:
        return False
    linears = (attention.query, attention.key, attention.value, attention.output)
    linears += (feed_forward.gate, feed_forward.up, feed_forward.down)
    aligned = all(type(one) is BlockLinear and one.in_features == one.matrix.depth for one in linears)
    norms = (attention.query_norm, attention.key_norm)
    return (
        aligned and attention.over_keys is attend_all and attention.head_width % 2 == 0
        and all(isinstance(norm, (RMSNorm, nn.Identity)) for norm in norms)
        and isinstance(block.attention_bottleneck, nn.Identity) and isinstance(block.feed_forward_bottleneck, nn.Identity)
    )  # fmt: skip


def _matrices(block: Any) -> tuple[tuple[int | None, ...], tuple[BlockMatrix, ...]]:
    """Where the norms' weights are, and the matrices as the kernel takes them."""
    attention, feed_forward = block.attention, block.feed_forward
    norms = (block.attention_norm, block.feed_forward_norm, attention.query_norm, attention.key_norm)
    found = tuple(norm.weight.data_ptr() if isinstance(norm, RMSNorm) else None for norm in norms)
    together = joined([attention.query.matrix, attention.key.matrix, attention.value.matrix])
    gate_up = joined([feed_forward.gate.matrix, feed_forward.up.matrix])
    return found, (together, attention.output.matrix, gate_up, feed_forward.down.matrix)


def _places(rows: CacheRows, length: int) -> tuple[list[int], list[int], list[int]]:
    """Slot and place of each new token, and where it stands among the pass's tokens."""
    slots, places, kept = [], [], []
    for new in rows.new:
        held = rows.cache.lengths[new.slot]
        slots += [new.slot] * new.count
        places += range(held, held + new.count)
        kept += range(new.row * length + new.start, new.row * length + new.start + new.count)
    return slots, places, kept


def _table(table_B1TC: Tensor, shape: Any, kept: list[int]) -> Tensor:
    flat = table_B1TC[:, 0].expand(*shape, -1).reshape(-1, table_B1TC.shape[-1])
    return (flat if len(kept) == len(flat) else flat[torch.tensor(kept)]).contiguous()
