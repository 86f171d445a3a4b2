"""Attention under MTLA's stride-aware mask: row m sees the ends of the chunks before its own, and its own column.

q, k: [B, H, T, C], v: [B, H, T, C'], k and v of every row's partial merge. A document's row m (counted from its
start) sees column n iff n = m, or n ≤ m and (n+1) % s = 0 (arXiv 2505.13544). Rows of one phase m % s see whole
chunks in a causal pattern, so each phase is one causal attention over the T/s chunk ends; the own column joins by its
log-sum-exp. Nothing of size T² is ever held. `attend_chunks_plain` is the twin that defines the result.

On CPUs a phase of bfloat16 is computed in float32: for bfloat16 torch's kernel asks oneDNN for one small product after
another, twice to three times as slow for phases of up to 128 queries and a fifth faster from 512 on, and oneDNN keeps
5 MB for every new length until the process ends, so that packed documents filled the memory (docs/experiments.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shoestring.nn.attention.core import attend_plain
from shoestring.nn.norm import row_dot, wide

Span = tuple[slice, int, int]  # rows, first token, end

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_BLOCK = 512  # queries of one block where the CPU's kernel is not there


def attend_chunks(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], stride: int, scale: float) -> Tensor:
    """-> [B, H, T, C'], laid out so that [B, T, H·C'] is a view. spans: documents, which cover all tokens."""
    if torch.is_autocast_enabled(q.device.type):  # as torch's own attention does
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    if q.device.type == "cpu":
        return _ChunkAttention.apply(q, k, v, spans, stride, scale)
    return attend_chunks_in_blocks(q, k, v, spans, stride, scale)


def attend_chunks_plain(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], stride: int, scale: float) -> Tensor:
    """The definition, with every score of [B, H, T, T] held."""
    mask = torch.zeros((q.shape[0], 1, q.shape[2], q.shape[2]), dtype=torch.bool, device=q.device)
    for rows, start, end in spans:
        mask[rows, :, start:end, start:end] = stride_mask(end - start, stride, q.device)
    return attend_plain(q, k, v, mask, scale)


def stride_mask(tokens: int, stride: int, device: torch.device | str = "cpu") -> Tensor:
    """[T, T], True where row m sees column n."""
    m, n = torch.meshgrid(*[torch.arange(tokens, device=device)] * 2, indexing="ij")
    return (n == m) | ((n <= m) & ((n + 1) % stride == 0))


def attend_chunks_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, spans: list[Span], stride: int, scale: float, block: int = _BLOCK
) -> Tensor:
    """The same for any device: blocks of queries, each over its columns, and made again in the backward pass."""
    pieces: dict[int, list[Tensor]] = {}
    for rows, start, end in spans:
        for first in range(start, end, block):
            last = min(first + block, end)
            piece = checkpoint(
                _one_block, q[rows], k[rows], v[rows], start, first, last, stride, scale, use_reentrant=False
            )
            pieces.setdefault(rows.start or 0, []).append(piece)
    out_BHTC = torch.cat([torch.cat(pieces[row], dim=2) for row in sorted(pieces)])
    return out_BHTC.transpose(1, 2).contiguous().transpose(1, 2)


def _one_block(q, k, v, start: int, first: int, last: int, stride: int, scale: float) -> Tensor:
    count = len(range(start + stride - 1, last, stride))  # torch's own arange takes no empty range
    ends = torch.arange(count, device=q.device) * stride + (start + stride - 1)
    columns = torch.cat([ends, torch.arange(first, last, device=q.device)])
    row = torch.arange(first, last, device=q.device).unsqueeze(1)
    ahead = (ends - start) // stride < (row - start) // stride
    own = torch.eye(last - first, dtype=torch.bool, device=q.device)
    mask = torch.cat([ahead, own], dim=1)
    return F.scaled_dot_product_attention(
        q[:, :, first:last], k[:, :, columns], v[:, :, columns], attn_mask=mask, scale=scale
    )


class _ChunkAttention(torch.autograd.Function):
    """Phases through the CPU's flash kernel. Its backward takes the softmax's output and log-sum-exp: given those of
    the whole row, own column included, it returns the exact gradients of the columns that it sees."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, spans: list[Span], stride: int, scale: float) -> Tensor:
        batch, heads, tokens, _ = q.shape
        own = _dot(q, k).mul_(scale)
        out = q.new_zeros((batch, tokens, heads, v.shape[-1])).transpose(1, 2)
        columns = torch.full_like(own, float("-inf"))
        for (q_part, k_part, v_part), rows, _ in _phases(q, k, v, spans, stride):
            part, part_sum = _flash(q_part, k_part, v_part, 0.0, True, scale=scale)
            out[rows] = part[..., : v.shape[-1]]
            columns[rows] = part_sum
        total = torch.logaddexp(columns, own)
        out.mul_(columns.sub_(total).exp_().to(out.dtype).unsqueeze(-1))
        out.addcmul_(v, (own - total).exp_().to(out.dtype).unsqueeze(-1))
        ctx.save_for_backward(q, k, v, out, own, total)
        ctx.spans, ctx.stride, ctx.scale = spans, stride, scale
        return out

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        q, k, v, out, own, total = ctx.saved_tensors
        gradient = gradients[0]
        width = max(q.shape[-1], v.shape[-1])
        share = (own - total).exp_()
        slope = (share * (_dot(gradient, v) - _dot(gradient, out)) * ctx.scale).to(q.dtype).unsqueeze(-1)
        q_gradient, k_gradient = slope * k, slope * q
        v_gradient = share.to(v.dtype).unsqueeze(-1) * gradient
        for parts, rows, ends in _phases(q, k, v, ctx.spans, ctx.stride):
            widened = (_widen(wide(tensor[rows]), width) for tensor in (gradient, out))
            dq, dk, dv = _flash_backward(
                next(widened), *parts, next(widened), total[rows], 0.0, True, scale=ctx.scale
            )  # fmt: skip
            q_gradient[rows] += dq[..., : q.shape[-1]].to(q.dtype)
            k_gradient[ends] += dk[..., : k.shape[-1]].to(k.dtype)
            v_gradient[ends] += dv[..., : v.shape[-1]].to(v.dtype)
        return q_gradient, k_gradient, v_gradient, None, None, None


def _phases(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], stride: int):
    """For each document and phase: (queries of the chunks after the first, keys and values at chunk ends), and the two
    index tuples they came from. All of one width, which the kernel wants, and in at least float32."""
    width = max(q.shape[-1], v.shape[-1])
    every = slice(None)
    for batch, start, end in spans:
        k_ends, v_ends = (
            _widen(wide(x[batch, :, start + stride - 1 : end : stride]), width) for x in (k, v)
        )
        for phase in range(stride):
            rows = (batch, every, slice(start + stride + phase, end, stride))
            queries = _widen(wide(q[rows]), width)
            count = queries.shape[2]
            if count:
                ends = (batch, every, slice(start + stride - 1, start + count * stride, stride))
                yield (queries, k_ends[:, :, :count], v_ends[:, :, :count]), rows, ends


def _widen(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the last dimension, in at least float32."""
    return row_dot(wide(a), wide(b))
