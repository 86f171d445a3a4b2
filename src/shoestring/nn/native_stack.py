"""All blocks of a plain decoder, and its head, in one native call for each pass with a cache (decode.cpp); the twin is
the stack.

Plain are blocks of RMSNorm, grouped-query attention with rotary positions and SwiGLU, one after another: Llama, Qwen2,
Qwen3. Their linears are `DecodingLinear`s, or dense ones in float32, whose own memory is read. Whatever else a pass may
be (without a cache, with a graph, with adapters at work, over weights that were put elsewhere, of many tokens over
floats) goes through the stack that is replaced.
"""

from __future__ import annotations

import ctypes
import operator
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.kernels.decode import (
    BLOCK,
    FEW,
    FloatMatrix,
    Matrix,
    MatrixStruct,
    RowsStruct,
    decode_kernels,
    is_blocks,
    struct_of,
)
from shoestring.nn.attention.gqa import GroupedQueryAttention, attend_all
from shoestring.nn.block import SequentialBlock
from shoestring.nn.cache import Cache, CacheRows, KVCache
from shoestring.nn.context import Context
from shoestring.nn.feed_forward import SwiGLU
from shoestring.nn.int8_cache import Int8KVCache
from shoestring.nn.linear import Linear
from shoestring.nn.lora import LoRALinear
from shoestring.nn.norm import RMSNorm
from shoestring.nn.quantized.decoding import DecodingHead, DecodingLinear, QuickHead
from shoestring.nn.stack import Aux, SequentialStack

_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")
_NORMS = ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")
_HELD = ("keys", "values", "key_scales", "value_scales")
_SIZES = ("layers", "width", "heads", "kv_heads", "head_width", "hidden", "capacity", "longest")
_WINDOW = 8  # as in decode.cpp
_DTYPE = operator.attrgetter("dtype")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _NORMS), *((name, MatrixStruct) for name in _MATRICES),
        *((name, ctypes.c_void_p) for name in _HELD),
    ]  # fmt: skip


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("epsilon", ctypes.c_float),
    ]  # fmt: skip


class _Pass(ctypes.Structure):
    _fields_ = [
        ("tokens", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("slots", "places", "cos", "sin", "x")),
    ]


class _Room(ctypes.Structure):
    _fields_ = [
        ("rows", RowsStruct), ("inner", RowsStruct),
        *((name, ctypes.c_void_p) for name in ("wide", "narrow", "scores", "normed")),
    ]  # fmt: skip


class _Ends(ctypes.Structure):
    _fields_ = [
        ("norm", ctypes.c_void_p), ("head", MatrixStruct), ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("which", "logits")),
    ]  # fmt: skip


class NativeStack:
    """Instead of a `SequentialStack` over these blocks. Raises nothing: what it cannot do it leaves to that one."""

    def __init__(self, stack: SequentialStack, blocks: list[Any], kernels: ctypes.CDLL, ends: _End | None = None):
        self.order, self._stack, self._kernels, self._blocks = stack.order, stack, kernels, blocks
        first = blocks[0]
        self._width, self._hidden = first.feed_forward.down.out_features, first.feed_forward.down.in_features
        self._head_width = first.attention.head_width
        self._heads = first.attention.query.out_features // self._head_width
        self._kv_heads = first.attention.key.out_features // self._head_width
        self._epsilon = first.attention_norm.epsilon
        parts = [_Parts(block) for block in blocks]
        self._parts, self._end = parts, ends  # what the structures point at
        self._held = _Held([*parts, *([] if ends is None else [ends])])
        self._layers = (_Layer * len(self.order))(*(parts[index].layer for index in self.order))
        self._latest: tuple[list[list[int]], Any] = [], self._layers
        self._in_floats = not all(is_blocks(one) for part in parts for one in part.matrices)
        self._rows_in_floats = self._in_floats or (ends is not None and not is_blocks(ends.matrix))

    def __call__(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache: Any, recompute: Any
    ) -> tuple[Tensor, Aux]:
        held = cache.cache if isinstance(cache, CacheRows) else cache
        if not self._fits(x_BTD, context, held) or not self._as_they_were(blocks):
            return self._stack(blocks, x_BTD, context, cache, recompute)
        assert isinstance(held, KVCache | Int8KVCache)
        rows = cache if isinstance(cache, CacheRows) else held.all_rows(context.counts)
        return self._run(x_BTD, context, held, rows), {}

    def logits(
        self, blocks: nn.ModuleList, x_BTD: Tensor, context: Context, cache: Any, which: list[int]
    ) -> Tensor | None:
        """Logits [n, V] behind n tokens of a pass [1, N], numbered by `which`: all in one call, or None where the parts
        have to be called one by one."""
        held = cache.cache if isinstance(cache, CacheRows) else cache
        end = self._end
        if end is None or not which or not self._fits(x_BTD, context, held) or not self._as_they_were(blocks):
            return None
        assert isinstance(held, KVCache | Int8KVCache)
        rows = cache if isinstance(cache, CacheRows) else held.all_rows(context.counts)
        if len(x_BTD) > 1 or sum(rows.counts) < x_BTD.shape[1]:
            return None
        logits_NV = torch.empty(len(which), end.matrix.columns)
        numbered = (ctypes.c_int64 * len(which))(*which)
        ends = _Ends(end.pointer, struct_of(end.matrix), len(which), ctypes.addressof(numbered), logits_NV.data_ptr())
        self._run(x_BTD, context, held, rows, ends)
        return logits_NV if end.softcap is None else torch.tanh(logits_NV / end.softcap) * end.softcap

    def __reduce__(self) -> Any:  # a copy has weights of its own: it begins with the stack
        return SequentialStack, (self.order,)

    def _fits(self, x_BTD: Tensor, context: Context, held: Cache | None) -> bool:
        if not isinstance(held, KVCache | Int8KVCache) or context.rotary is None:
            return False
        few = not self._in_floats or x_BTD.shape[0] * x_BTD.shape[1] <= FEW
        whole = 2 * context.rotary.cos.shape[-1] == self._head_width
        kind = torch.int8 if isinstance(held, Int8KVCache) else torch.float32
        keys = held.keys[0]
        kept = x_BTD.dtype == torch.float32 and x_BTD.is_cpu and keys.dtype == kind and keys.is_contiguous()
        return few and whole and kept and any(context.counts) and not torch.is_grad_enabled()

    def _as_they_were(self, blocks: nn.ModuleList) -> bool:
        """Whether all that the structures point at is where it was."""
        return list(blocks) == self._blocks and self._held.as_it_was()

    def _run(
        self, x_BTD: Tensor, context: Context, held: KVCache | Int8KVCache, rows: CacheRows, ends: _Ends | None = None
    ) -> Tensor:
        x_ND = x_BTD.reshape(-1, self._width)
        tokens = len(x_ND)
        slots, places, kept = _places(rows, x_BTD.shape[1])
        part = None if len(kept) == tokens else torch.tensor(kept)  # padding takes no part
        x_ND = x_ND.clone() if part is None else x_ND[part]
        cos_NC, sin_NC = (_table(table, x_BTD.shape, part) for table in context.rotary)  # type: ignore[union-attr]
        many, threads, longest = len(kept), torch.get_num_threads(), max(places) + 1
        queries, keys = self._heads * self._head_width, self._kv_heads * self._head_width
        narrow, copies = max(self._width, queries), threads if many < 4 * threads else 1
        ready, inner = self._rows(copies * many, narrow), self._rows(many, self._hidden)
        numbers = [
            torch.empty(many, max(queries + 2 * keys, 2 * self._hidden, self._width)), torch.empty(many, narrow),
            torch.empty(threads, _WINDOW * self._heads // self._kv_heads, longest), torch.empty(threads, self._width),
        ]  # fmt: skip
        made = (RowsStruct(*(one.data_ptr() for one in some)) for some in (ready, inner))
        room = _Room(*made, *(one.data_ptr() for one in numbers))
        shape = _Shape(
            len(self.order), self._width, self._heads, self._kv_heads, self._head_width, self._hidden, held.capacity,
            longest, self._epsilon,
        )  # fmt: skip
        layers = self._over(held)
        numbered = ctypes.c_int64 * many
        slots_N, places_N = numbered(*slots), numbered(*places)
        where = (ctypes.addressof(one) for one in (slots_N, places_N))
        given = _Pass(many, *where, *(one.data_ptr() for one in (cos_NC, sin_NC, x_ND)))
        self._kernels.decode_layers(
            ctypes.byref(shape), layers, ctypes.byref(given), ctypes.byref(room),
            None if ends is None else ctypes.byref(ends), threads,
        )  # fmt: skip
        if part is not None:
            whole = x_BTD.new_zeros(tokens, self._width)
            whole[part] = x_ND
            x_ND = whole
        return x_ND.view(x_BTD.shape)

    def _over(self, held: KVCache | Int8KVCache) -> Any:
        """The layers with this cache's memory. Those of the pass before where it was the same: they are only read, and
        a pass of another cache, of another thread maybe, makes its own."""
        names = _HELD[: 4 if isinstance(held, Int8KVCache) else 2]
        pointers = [list(map(Tensor.data_ptr, getattr(held, name))) for name in names]
        before, layers = self._latest
        if before != pointers:
            layers = type(self._layers).from_buffer_copy(self._layers)
            for name, some in zip(names, pointers, strict=True):
                for layer, pointer in zip(layers, some, strict=True):
                    setattr(layer, name, pointer)
            self._latest = pointers, layers
        return layers

    def _rows(self, count: int, depth: int) -> list[Tensor]:
        """Room for rows of so many numbers, as the kernel makes them ready."""
        scales = torch.empty(count, depth // BLOCK + 1)
        floats = torch.empty(count, depth) if self._rows_in_floats else scales
        codes, totals = torch.empty(count, depth, dtype=torch.int8), torch.empty(scales.shape)
        return [codes, scales, totals, floats]


class _Parts:
    """What one block gives to the kernel. places: the dictionary, name and module of each part; tensors: in floats."""

    def __init__(self, block: Any):
        attention, feed_forward = block.attention, block.feed_forward
        homes = [attention._modules] * 4 + [feed_forward._modules] * 3
        linears = [home[name] for home, name in zip(homes, _MATRICES, strict=True)]
        self.matrices = [_matrix_of(linear) for linear in linears]
        around = [block._modules] * 2 + [attention._modules] * 2
        norms = [home[name] for home, name in zip(around, _NORMS, strict=True)]
        self.places = list(zip([*homes, *around], [*_MATRICES, *_NORMS], [*linears, *norms], strict=True))
        self.tensors = [norm.weight for norm in norms if isinstance(norm, RMSNorm)]
        for linear in linears:
            if not isinstance(linear, DecodingLinear):
                self.tensors += [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
        pointers = [norm.weight.data_ptr() if isinstance(norm, RMSNorm) else None for norm in norms]
        self.layer = _Layer(*pointers, *(struct_of(matrix) for matrix in self.matrices))


class _End:
    """The same of the final norm and the head; `pointer` is the norm's weight."""

    def __init__(self, decoder: Any):
        norm, head = decoder.norm, decoder.head
        self.matrix, self.softcap, self.pointer = head.matrix, head.softcap, norm.weight.data_ptr()
        self.places = [(decoder._modules, "norm", norm), (decoder._modules, "head", head)]
        self.tensors = [norm.weight, *([head.weight] if isinstance(head, QuickHead) else [])]


class _Held:
    """Where all parts stood, and how to see, for every pass, that they stand there still."""

    def __init__(self, parts: list[Any]):
        places = [place for part in parts for place in part.places]
        self._homes, self._names, self._modules = (list(some) for some in zip(*places, strict=True))
        self._tensors = [tensor for part in parts for tensor in part.tensors]
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self._dtypes = [torch.float32] * len(self._tensors)

    def as_it_was(self) -> bool:
        # Lists of modules and of dtypes are equal where each is the same object, which is seen in no time.
        found = list(map(dict.__getitem__, self._homes, self._names))
        if found != self._modules and not all(map(_is_or_rests, found, self._modules)):
            return False
        same_type = list(map(_DTYPE, self._tensors)) == self._dtypes
        return same_type and list(map(Tensor.data_ptr, self._tensors)) == self._pointers


def _is_or_rests(found: Any, module: Any) -> bool:
    """Whether it is this module, or an adapter that is not at work around it."""
    resting = type(found) is LoRALinear and found.active is None and found.base is module
    return found is module or resting


def native_stack(decoder: Any) -> NativeStack | None:
    """For a decoder of plain blocks where there is a compiler, None for another. It belongs into `decoder._stack`.
    What takes part in it is to be in place, the head among it."""
    stack, blocks = decoder._stack, list(decoder.blocks)
    if type(stack) is not SequentialStack or not all(_is_plain(block, blocks[0]) for block in blocks):
        return None
    kernels = decode_kernels()
    if kernels is None:
        return None
    return NativeStack(stack, blocks, kernels, _End(decoder) if _ends_plainly(decoder, blocks[0]) else None)


def _ends_plainly(decoder: Any, first: Any) -> bool:
    norm, head = decoder.norm, decoder.head
    if type(norm) is not RMSNorm or type(head) not in (DecodingHead, QuickHead):
        return False
    fits = head.matrix.depth == norm.weight.shape[0] and norm.epsilon == first.attention_norm.epsilon
    return fits and _is_float32(norm)


def _is_plain(block: Any, first: Any) -> bool:
    if type(block) is not SequentialBlock:
        return False
    attention, feed_forward = block.attention, block.feed_forward
    if type(attention) is not GroupedQueryAttention or type(feed_forward) is not SwiGLU:
        return False
    linears = [attention.query, attention.key, attention.value, attention.output]
    linears += [feed_forward.gate, feed_forward.up, feed_forward.down]
    norms = [block.attention_norm, block.feed_forward_norm, attention.query_norm, attention.key_norm]
    given = [norm for norm in norms if isinstance(norm, RMSNorm)]
    return (
        all(map(_is_readable, linears)) and attention.over_keys is attend_all and attention.head_width % 2 == 0
        and all(isinstance(norm, RMSNorm) for norm in norms[:2])
        and all(isinstance(norm, RMSNorm | nn.Identity) for norm in norms[2:])
        and all(map(_is_float32, norms)) and all(norm.epsilon == first.attention_norm.epsilon for norm in given)
        and all(isinstance(one, nn.Identity) for one in (block.attention_bottleneck, block.feed_forward_bottleneck))
    )  # fmt: skip


def _is_readable(linear: nn.Module) -> bool:
    if type(linear) is DecodingLinear:
        return linear.in_features == linear.matrix.depth
    if type(linear) not in (Linear, nn.Linear):
        return False
    return _is_float32(linear)


def _is_float32(module: nn.Module) -> bool:
    return all(one.is_cpu and one.dtype == torch.float32 and one.is_contiguous() for one in module.parameters())


def _matrix_of(linear: Any) -> Matrix:
    if isinstance(linear, DecodingLinear):
        return linear.matrix
    return FloatMatrix(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())


def _places(rows: CacheRows, length: int) -> tuple[list[int], list[int], list[int]]:
    """Slot and place of each new token, and where it stands among the pass's tokens."""
    slots, places, kept = [], [], []
    for new in rows.new:
        held = rows.cache.lengths[new.slot]
        start = new.row * length + new.start
        slots += [new.slot] * new.count
        places += range(held, held + new.count)
        kept += range(start, start + new.count)
    return slots, places, kept


def _table(table_B1TC: Tensor, shape: Any, part: Tensor | None) -> Tensor:
    """Of a pass [B, T] -> [N, C / 2] of the tokens that take part."""
    flat = table_B1TC[:, 0].expand(shape[0], shape[1], -1).reshape(-1, table_B1TC.shape[-1])
    return (flat if part is None else flat[part]).contiguous()
