"""Softmax attention of queries over keys and values, shared by the attention kinds.

q: [B, H, T, C], k: [B, K, S, C], v: [B, K, S, C'], H a multiple of K. Everything goes through torch's
`scaled_dot_product_attention`, which never holds the [T, S] scores on a CPU. Packed documents are attended one by
one: exact, and cheaper than a mask, which would compute every pair and throw most away.
`attend_plain` is the twin that defines the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.nn.context import Visibility


def attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, seen: Visibility, scale: float) -> Tensor:
    """-> [B, H, T, C'], laid out so that [B, T, H·C'] is a view."""
    if seen.documents is not None:
        return _attend_documents(q_BHTC, k_BKSC, v_BKSC, seen.documents, scale)
    return _sdpa(q_BHTC, k_BKSC, v_BKSC, seen.mask_B1TS, seen.causal, scale)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.shape[2] == 1 and mask is None:
        # One query a row: the heads of a group read the same keys, so let them be the queries of one head.
        batch, heads, _, width = q.shape
        folded = q.view(batch, k.shape[1], heads // k.shape[1], width)
        out = F.scaled_dot_product_attention(folded, k, v, scale=scale)
        return out.reshape(batch, heads, 1, v.shape[-1])
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
    )


def _attend_documents(q: Tensor, k: Tensor, v: Tensor, spans, scale: float) -> Tensor:
    outputs = [
        _sdpa(q[b : b + 1, :, i:j], k[b : b + 1, :, i:j], v[b : b + 1, :, i:j], None, True, scale).transpose(1, 2)
        for b, i, j in spans
    ]
    batch, heads, tokens, _ = q.shape
    return torch.cat(outputs, dim=1).view(batch, tokens, heads, v.shape[-1]).transpose(1, 2)


def attend_plain(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask_B1TS: Tensor, scale: float) -> Tensor:
    """The definition: softmax(q·kᵀ · scale + mask) · v with every score held. mask: True where seen."""
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    k = k_BKSC.repeat_interleave(groups, dim=1)
    v = v_BKSC.repeat_interleave(groups, dim=1)
    scores = (q_BHTC @ k.transpose(-1, -2)) * scale
    return scores.masked_fill(~mask_B1TS, float("-inf")).softmax(-1) @ v
