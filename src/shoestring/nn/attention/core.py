"""Softmax attention of queries over keys and values, shared by the attention kinds.

q: [B, H, T, C], k: [B, K, S, C], v: [B, K, S, C'], H a multiple of K. Causal attention on a CPU, documents and windows
included, goes through our kernel (`kernels.attention`); what that does not take, through torch's
`scaled_dot_product_attention`, which never holds the [T, S] scores on a CPU either. There, packed documents are
attended one by one: exact, and cheaper than a mask, which would compute every pair and throw most away; a GPU takes
them all in one kernel (`packed`).
`attend_plain` is the twin that defines the result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring.kernels import attention as causal
from shoestring.nn.context import Visibility


def attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, seen: Visibility, scale: float) -> Tensor:
    """-> [B, H, T, C'], laid out so that [B, T, H·C'] is a view where C' = C."""
    fused = attend_fused(q_BHTC, k_BKSC, v_BKSC, seen, scale)
    if fused is not None:
        return fused
    width = v_BKSC.shape[-1]
    if q_BHTC.shape[-1] != width:
        # The kernels that never hold the scores want one width; the definition's way would be slower than the padding.
        common = max(q_BHTC.shape[-1], width)
        q, k, v = (F.pad(x, (0, common - x.shape[-1])) for x in (q_BHTC, k_BKSC, v_BKSC))
        return attend(q, k, v, seen, scale)[..., :width]
    if seen.packed is not None:
        return seen.packed.attend(q_BHTC, k_BKSC, v_BKSC, scale)
    if seen.documents is not None and seen.mask_B1TS is None:
        return by_document(q_BHTC, k_BKSC, v_BKSC, seen.documents, lambda q, k, v: _sdpa(q, k, v, None, True, scale))
    return _sdpa(q_BHTC, k_BKSC, v_BKSC, seen.mask_B1TS, seen.causal, scale)


def attend_fused(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scale: float, window: int | None = None
) -> Tensor | None:
    """Causal attention through our kernel, None where that does not take it."""
    if seen.mask_B1TS is not None or not seen.causal:
        return None
    # Under autocast, as torch's own attention does.
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    if not causal.fits(q, k, v, dtype):
        return None
    if dtype is not None:
        q, k, v = (x.to(dtype) for x in (q, k, v))
    return causal.attention(q, k, v, scale, seen.documents, window)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.shape[2] == 1:
        # One query a row: the heads of a group read the same keys, so let them be the queries of one head.
        batch, heads, _, width = q.shape
        folded = q.view(batch, k.shape[1], heads // k.shape[1], width)
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
        return out.reshape(batch, heads, 1, v.shape[-1])
    if grouped and mask is not None and not q.is_cpu:
        # A GPU's kernels take a mask or grouped heads; given both, torch falls back on one that holds every score.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
    )


def by_document(q: Tensor, k: Tensor, v: Tensor, documents, attend_one: Callable[..., Tensor]) -> Tensor:
    """attend_one(q, k, v) of each document alone -> [B, H, T, C']. documents: see `Visibility`; None: one per row."""
    if documents is None:
        return attend_one(q, k, v)
    sizes = [[end - start for row, start, end in documents if row == b] for b in range(q.shape[0])]
    # Split, not sliced: the gradient of a slice is as large as the whole tensor, once for every row and document.
    rows = zip(*(x.split(1) for x in (q, k, v)), strict=True)
    parts = (zip(*(x.split(sizes[b], dim=2) for x in row), strict=True) for b, row in enumerate(rows))
    outputs = [attend_one(*part).transpose(1, 2) for row in parts for part in row]
    batch, heads, tokens, _ = q.shape
    return torch.cat(outputs, dim=1).view(batch, tokens, heads, v.shape[-1]).transpose(1, 2)


def attend_plain(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask_B1TS: Tensor, scale: float) -> Tensor:
    """The definition: softmax(q·kᵀ · scale + mask) · v with every score held. mask: True where seen."""
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    k = k_BKSC.repeat_interleave(groups, dim=1)
    v = v_BKSC.repeat_interleave(groups, dim=1)
    scores = (q_BHTC @ k.transpose(-1, -2)) * scale
    return scores.masked_fill(~mask_B1TS, float("-inf")).softmax(-1) @ v
