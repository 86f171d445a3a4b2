"""Top-k inner product search, and attention over what it found.

q: [B, H, T, C]; a source is (keys, values), each [B or 1, K, S, C], H a multiple of K: head h reads the entries of key
head h·K/H. Hits are int64 [B, H, T, k] into the sources one after another, −1 where there are fewer than k entries.
Search is exact, in blocks, so the [T, S] scores are never held. No gradient flows into the entries: `recall` gives
one for q alone. `recall_plain` is the twin of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.nn.memory.approximate import ApproximateIndex

Entries = tuple[Tensor, Tensor]
_SCORES = 1 << 22  # scores held at once
_FOUND = 1 << 22  # numbers of gathered keys held at once


@torch.no_grad()
def search(q_BHTC: Tensor, sources: Sequence[Entries], k: int, index: ApproximateIndex | None = None) -> Tensor:
    """-> hits [B, H, T, k], best first. index: searches the first source in place of the exact search."""
    batch, heads, tokens, width = q_BHTC.shape
    kv_heads = sources[0][0].shape[1] if sources else heads
    folded = q_BHTC.reshape(batch, kv_heads, -1, width)
    best = folded.new_full((*folded.shape[:3], k), float("-inf"))
    hits = torch.full(best.shape, -1, dtype=torch.int64, device=best.device)
    step = max(k, _SCORES // max(1, best.numel() // k))
    offset = 0
    if index is not None:
        best, hits = merge(best, hits, *index.search(folded, k))
    for number, (keys_BKSC, _) in enumerate(sources):
        indexed = index is not None and number == 0
        for start in range(0, 0 if indexed else keys_BKSC.shape[2], step):
            keys = keys_BKSC[:, :, start : start + step].to(folded.dtype)
            scores = folded @ keys.transpose(-1, -2)
            found, where = scores.topk(min(k, keys.shape[2]), dim=-1)
            best, hits = merge(best, hits, found, where + (offset + start))
        offset += keys_BKSC.shape[2]
    return hits.view(batch, heads, tokens, k)


def merge(best: Tensor, hits: Tensor, found: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """The k best of two lists of scores with their hits, [..., k] and [..., any]."""
    scores, order = torch.cat([best, found], -1).topk(best.shape[-1], dim=-1)
    return scores, torch.cat([hits, where], -1).gather(-1, order)


def take(parts: Sequence[Tensor], hits_BHTk: Tensor, dtype: torch.dtype) -> Tensor:
    """-> [B, H, T, k, C]: each head's entries at its hits; any entry where there is none."""
    batch, heads, tokens, k = hits_BHTk.shape
    kv_heads, _, width = parts[0].shape[1:]
    index = hits_BHTk.reshape(batch, kv_heads, -1, 1)
    out, offset = None, 0
    for part in parts:
        entries = part.shape[2]
        local = (index - offset).clamp(0, entries - 1).expand(-1, -1, -1, width)
        found = part.expand(batch, -1, -1, -1).gather(2, local).to(dtype)
        out = found if out is None else torch.where(index >= offset, found, out)
        offset += entries
    assert out is not None
    return out.view(batch, heads, tokens, k, width)


class _Recall(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, hits: Tensor, scale: float, *entries: Tensor) -> Tensor:
        keys, values = entries[::2], entries[1::2]
        out = torch.empty_like(q)
        for t in _pieces(q, hits):
            p, _ = _weights(q[:, :, t], keys, hits[:, :, t], scale)
            out[:, :, t] = (p.unsqueeze(-2) @ take(values, hits[:, :, t], q.dtype)).squeeze(-2)
        ctx.scale = scale
        # Saved like everything: writing into a store between here and the backward pass is then an error.
        ctx.save_for_backward(q, hits, out, *entries)
        return out

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        q, hits, out, *entries = ctx.saved_tensors
        keys, values = entries[::2], entries[1::2]
        q_gradient = torch.empty_like(q)
        for t in _pieces(q, hits):
            p, found = _weights(q[:, :, t], keys, hits[:, :, t], ctx.scale)
            g = gradients[0][:, :, t]
            inner = (take(values, hits[:, :, t], q.dtype) @ g.unsqueeze(-1)).squeeze(-1)
            inner = p * (inner - (g * out[:, :, t]).sum(-1, keepdim=True))
            q_gradient[:, :, t] = (inner.unsqueeze(-2) @ found).squeeze(-2) * ctx.scale
        return q_gradient, None, None, *(None for _ in entries)


def _pieces(q: Tensor, hits: Tensor) -> list[slice]:
    step = max(1, _FOUND // max(1, q.shape[0] * q.shape[1] * hits.shape[-1] * q.shape[-1]))
    return [slice(start, start + step) for start in range(0, q.shape[2], step)]


def _weights(q: Tensor, keys: Sequence[Tensor], hits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax over the hits [B, H, T, k], zeros where a query has none; and the keys found."""
    found = take(keys, hits, q.dtype)
    scores = (found @ q.unsqueeze(-1)).squeeze(-1) * scale
    return scores.masked_fill(hits < 0, float("-inf")).softmax(-1).nan_to_num(0.0), found


def recall(q_BHTC: Tensor, sources: Sequence[Entries], hits_BHTk: Tensor, scale: float) -> Tensor:
    """softmax(q·k · scale)·v over each query's hits -> [B, H, T, C]; zeros where a query has no hit."""
    if not sources:
        return torch.zeros_like(q_BHTC)
    return _Recall.apply(q_BHTC, hits_BHTk, scale, *(part.detach() for source in sources for part in source))


def recall_plain(q_BHTC: Tensor, sources: Sequence[Entries], k: int, scale: float) -> Tensor:
    """The definition of search and recall, with every score held: a softmax over the k largest."""
    groups = q_BHTC.shape[1] // sources[0][0].shape[1]
    keys, values = (
        torch.cat([source[n].detach().expand(len(q_BHTC), -1, -1, -1) for source in sources], 2)
        .to(q_BHTC.dtype)
        .repeat_interleave(groups, dim=1)
        for n in (0, 1)
    )
    scores = q_BHTC @ keys.transpose(-1, -2)
    kept = scores >= scores.topk(min(k, scores.shape[-1])).values[..., -1:]
    return (scores * scale).masked_fill(~kept, float("-inf")).softmax(-1) @ values
