"""Causal softmax attention of training and of reading a prompt, and its gradients, on CPUs.

q: [B, H, T, C], k: [B, K, T, C], v: [B, K, T, C'], H a multiple of K: queries of a group of heads share keys and values.
Documents are (row, start, end) spans, each causal within itself; a token sees itself and the `window` − 1 before it.
The result is laid out [B, T, H, C'] and the gradients as well, so that projections need no copies.

torch's kernel spends its time on small products through memory; this one (attention.cpp, FlashAttention's way, arXiv
2205.14135) keeps blocks in a core's caches and skips what is not seen. Kept for the way back: inputs, result and the
logarithm of each query's sum. `attention_plain` is the twin.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.kernels.compiled import kernel

WIDEST = 256  # of a head; widths are multiples of 8
KEYS = 96  # of a block: see attention_tiles.h
EVERYTHING = 1 << 40  # a window that hides nothing
Spans = Sequence[tuple[int, int, int]]


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes these."""
    widths = (q.shape[-1], v.shape[-1])
    return (
        q.device.type == k.device.type == v.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype
        and q.dtype in (torch.float32, torch.bfloat16)
        and q.shape[2] == k.shape[2]
        and all(width % 8 == 0 and 16 <= width <= WIDEST for width in widths)
        and _typed_kernel() is not None
    )


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Spans | None = None, window: int | None = None
) -> Tensor:
    """-> [B, H, T, C']. documents: they cover all tokens; None: one in each row. Only for what `fits`."""
    spans = [number for span in documents or () for number in span]
    return _attention(q, k, v, scale, spans, EVERYTHING if window is None else window)[0]


def attention_plain(
    q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Spans | None = None, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, with every score held -> the result and the logarithm of each query's sum [B, H, T]."""
    batch, heads, tokens, _ = q.shape
    document = torch.zeros(batch, tokens, dtype=torch.int64)
    for number, (row, start, end) in enumerate(documents or ()):
        document[row, start:end] = number
    distance = torch.arange(tokens).unsqueeze(1) - torch.arange(tokens)
    seen = (distance >= 0) & (distance < (window or tokens)) & (document.unsqueeze(2) == document.unsqueeze(1))
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen.unsqueeze(1), float("-inf"))
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


# As operators of torch, so that compiled graphs hold them as they are.


@torch.library.custom_op("shoestring::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, spans: list[int], window: int
) -> tuple[Tensor, Tensor]:
    q, k, v = _rows(q), _rows(k), _rows(v)
    y, log_sums = _results(q, k, v, scale, spans, window)
    of, held = _arguments(q, k, v, scale, spans, window)
    of.y = _Place.of(y)
    run = _function("attention", q.dtype)
    run(ctypes.byref(of), *(x.data_ptr() for x in (q, k, v, y, log_sums)))
    del held
    return y, log_sums


@_attention.register_fake
def _results(q: Tensor, k: Tensor, v: Tensor, scale: float, spans: list[int], window: int) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, _ = q.shape
    y = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
    return y, q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("shoestring::attention_backward", mutates_args=())
def _attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sums: Tensor, scale: float, spans: list[int], window: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, y, dy = _rows(q), _rows(k), _rows(v), _rows(y), _rows(dy)
    of, held = _arguments(q, k, v, scale, spans, window)
    of.parts = parts_of(len(held) // 3 * k.shape[1], q.shape[2], of.threads)
    dq = torch.zeros(of.parts, q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(2, 3)
    dk, dv = _by_tokens(k), _by_tokens(v)
    of.y, of.dy, of.dq, of.dk, of.dv = (_Place.of(x) for x in (y, dy, dq[0], dk, dv))
    run = _function("attention_backward", q.dtype)
    run(
        ctypes.byref(of), *(x.data_ptr() for x in (q, k, v, y, dy, log_sums, dq)), dq.stride(0),
        dk.data_ptr(), dv.data_ptr(),
    )  # fmt: skip
    total = dq[0]
    for part in dq[1:]:
        total.add_(part)
    del held
    return total.to(q.dtype), dk, dv


@_attention_backward.register_fake
def _gradients(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sums: Tensor, scale: float, spans: list[int], window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _by_tokens(q), _by_tokens(k), _by_tokens(v)


def _keep(ctx, inputs, output) -> None:
    q, k, v, ctx.scale, ctx.spans, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx, dy: Tensor, _) -> tuple[Tensor | None, ...]:
    gradients = _attention_backward(dy, *ctx.saved_tensors, ctx.scale, ctx.spans, ctx.window)
    return (*gradients, None, None, None)


_attention.register_autograd(_backward, setup_context=_keep)


def parts_of(tasks: int, tokens: int, threads: int) -> int:
    """Into how many parts a document's keys are cut going backward, so that every thread has work.

    Each part has a gradient of the queries of its own, added up in the end.
    """
    return max(1, min(-(-threads // tasks), -(-tokens // KEYS)))


def _by_tokens(x: Tensor) -> Tensor:
    """Room of x's shape, laid out [B, T, H, C]."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Place(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("row", "head", "token")]

    @staticmethod
    def of(x: Tensor) -> _Place:
        return _Place(*x.stride()[:3])


_Numbers = ["heads", "groups", "width", "value_width", "window", "spans"]


class _Arguments(ctypes.Structure):
    """`Attention` of attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _Numbers),
        ("span", ctypes.c_void_p),
        ("parts", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
        *((name, _Place) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")),
    ]


def _arguments(q: Tensor, k: Tensor, v: Tensor, scale: float, spans: list[int], window: int):
    """-> the arguments, and the spans that they point at."""
    batch, heads, tokens, width = q.shape
    spans = spans or [number for row in range(batch) for number in (row, 0, tokens)]
    held = (ctypes.c_int64 * len(spans))(*spans)
    of = _Arguments(
        heads=heads, groups=k.shape[1], width=width, value_width=v.shape[-1], window=window, spans=len(spans) // 3,
        span=ctypes.addressof(held), parts=1, tokens=tokens, scale=scale, threads=torch.get_num_threads(),
        q=_Place.of(q), k=_Place.of(k), v=_Place.of(v),
    )  # fmt: skip
    return of, held


def _function(name: str, dtype: torch.dtype):
    found = _typed_kernel()
    assert found is not None
    return getattr(found, f"{name}_{'float' if dtype == torch.float32 else 'bfloat'}")


@functools.cache
def _typed_kernel(*macros: str) -> ctypes.CDLL | None:
    found = kernel("attention", *macros)
    if found is not None:
        at, size = ctypes.c_void_p, ctypes.c_int64
        for kind in ("float", "bfloat"):
            getattr(found, f"attention_{kind}").argtypes = [at] * 6
            getattr(found, f"attention_backward_{kind}").argtypes = [*[at] * 8, size, at, at]
    return found
