"""Causal softmax attention of training and of reading a prompt, and its gradients, on CPUs.

q: [B, H, T, C], k: [B, K, T, C], v: [B, K, T, C'], H a multiple of K: the heads of a group share keys and values.
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

from shoestring.kernels.attention_limits import SHORTEST, parts_of, takes_width
from shoestring.kernels.compiled import kernel

EVERYTHING = 1 << 40  # a window that hides nothing
Spans = Sequence[tuple[int, int, int]]


def fits(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernel takes these, as `dtype` if that is given, and gains."""
    return (
        q.device.type == k.device.type == v.device.type == "cpu"
        and (q.dtype if dtype is None else dtype) in (torch.float32, torch.bfloat16)
        and (dtype is not None or q.dtype == k.dtype == v.dtype)
        and SHORTEST <= q.shape[2] == k.shape[2]
        and takes_width(q.shape[-1])
        and takes_width(v.shape[-1])
        and _compiled()
    )


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Spans | None = None, window: int | None = None
) -> Tensor:
    """-> [B, H, T, C']. documents: they cover all tokens; None: one in each row. Only for what `fits`."""
    spans = [number for span in documents or () for number in span]
    window = EVERYTHING if window is None else window
    if torch.compiler.is_compiling():
        return _operator(q, k, v, scale, spans, window)[0]
    if not torch.is_grad_enabled():
        return _forward(q, k, v, scale, spans, window)[0]
    return _Attention.apply(q, k, v, scale, spans, window)


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


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, spans: list[int], window: int) -> tuple[Tensor, Tensor]:
    """-> the result and the logarithm of each query's sum."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    y, log_sums = _results(q, k, v, scale, spans, window)
    run = _function("attention", q.dtype)
    run(*_numbers(q, k, v, spans, window, y), scale, *(x.data_ptr() for x in (q, k, v, y, log_sums)))
    return y, log_sums


def _results(q: Tensor, k: Tensor, v: Tensor, scale: float, spans: list[int], window: int) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, _ = q.shape
    y = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
    return y, q.new_empty(batch, heads, tokens, dtype=torch.float32)


def _backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sums: Tensor, scale: float, spans: list[int],
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> the gradients of q, k and v."""
    q, k, v, y, dy = _rows(q), _rows(k), _rows(v), _rows(y), _rows(dy)
    parts = parts_of(len(q) * k.shape[1], q.shape[2], torch.get_num_threads())
    sums = _by_tokens(q, torch.float32).zero_()
    others = sums.new_zeros(parts - 1, *sums.transpose(1, 2).shape)
    dk, dv = _by_tokens(k), _by_tokens(v)
    run = _function("attention_backward", q.dtype)
    numbers = _numbers(q, k, v, spans, window, y, dy, sums, dk, dv, parts=parts)
    run(*numbers, scale, *(x.data_ptr() for x in (q, k, v, y, dy, log_sums, sums, others, dk, dv)))
    for other in others:
        sums.add_(other.transpose(1, 2))
    return sums.to(q.dtype), dk, dv


def _gradients(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sums: Tensor, scale: float, spans: list[int],
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _by_tokens(q), _by_tokens(k), _by_tokens(v)


def _keep(ctx, inputs, output) -> None:
    q, k, v, ctx.scale, ctx.spans, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        q, k, v, y, log_sums = ctx.saved_tensors
        made = _backward(gradients[0], q, k, v, y, log_sums, ctx.scale, ctx.spans, ctx.window)
        return (*made, None, None, None)


# The same as operators of torch, which compiled graphs hold as they are; each call of one takes 0.1 ms more.
_operator = torch.library.custom_op("shoestring::attention", _forward, mutates_args=())
_operator.register_fake(_results)
_operator_backward = torch.library.custom_op("shoestring::attention_backward", _backward, mutates_args=())
_operator_backward.register_fake(_gradients)


def _operator_gradients(ctx, dy: Tensor, _) -> tuple[Tensor | None, ...]:
    return (*_operator_backward(dy, *ctx.saved_tensors, ctx.scale, ctx.spans, ctx.window), None, None, None)


_operator.register_autograd(_operator_gradients, setup_context=_keep)


def _by_tokens(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Room of x's shape, laid out [B, T, H, C]."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width, dtype=dtype).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _numbers(q: Tensor, k: Tensor, v: Tensor, spans: list[int], window: int, *others: Tensor, parts: int = 1):
    """`Attention` of attention.cpp, and the spans. others: of y, dy, dq, dk and dv those that there are."""
    batch, heads, tokens, width = q.shape
    spans = spans or [number for row in range(batch) for number in (row, 0, tokens)]
    numbers = [
        heads, k.shape[1], width, v.shape[-1], window, len(spans) // 3, parts, batch, tokens, torch.get_num_threads()
    ]  # fmt: skip
    for x in (q, k, v, *others):
        numbers += x.stride()[:3]
    return (ctypes.c_int64 * 34)(*numbers), (ctypes.c_int64 * len(spans))(*spans)


def _function(name: str, dtype: torch.dtype):
    found = _typed_kernel()
    assert found is not None
    return getattr(found, f"{name}_{'float' if dtype == torch.float32 else 'bfloat'}")


def _compiled() -> bool:
    return _typed_kernel() is not None


# What torch.compiler.assume_constant_result does, which would first load the compiler: 1.3 s and 70 MB.
_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _typed_kernel(*macros: str) -> ctypes.CDLL | None:
    found = kernel("attention", *macros)
    if found is not None:
        at = ctypes.c_void_p
        for kind in ("float", "bfloat"):
            getattr(found, f"attention_{kind}").argtypes = [at, at, ctypes.c_float, *[at] * 5]
            getattr(found, f"attention_backward_{kind}").argtypes = [at, at, ctypes.c_float, *[at] * 10]
    return found
