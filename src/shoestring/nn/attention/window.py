"""Sliding-window attention (Mistral, arXiv 2310.06825): a token sees itself and the window − 1 tokens before it.

q: [B, H, T, C], k, v: [B, K, S, C]. Training goes through our kernel, or else block by block over the keys that a
block can see, so time and memory are linear in T; documents of at most the window's length are plainly causal.
Decoding reads the last window of the cache, which keeps all tokens: it can then be truncated to any length.
`attend_window_plain` is the twin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.nn.attention.core import attend, attend_fused, attend_plain, by_document
from shoestring.nn.context import Context, Visibility

_BLOCK = 256  # least queries of a block: smaller ones cost more in calls than they save in work


def attend_window(q: Tensor, k: Tensor, v: Tensor, context: Context, scale: float, window: int) -> Tensor:
    """-> [B, H, T, C]. k and v reach from each row's first token to its newest."""
    seen = context.visibility
    fused = attend_fused(q, k, v, seen, scale, window)
    if fused is not None:
        return fused
    if seen.documents is not None and not q.is_cpu:
        narrow = context.once(("window", window), lambda: _packed_window(seen, window))
        return attend(q, k, v, narrow, scale)
    if seen.mask_B1TS is None and seen.causal:
        return by_document(q, k, v, seen.documents, lambda q, k, v: _in_blocks(q, k, v, scale, window))
    first, seen = context.once(("window", window), lambda: _last_window(seen, k.shape[2], window))
    return attend(q, k[:, :, first:], v[:, :, first:], seen, scale)


def attend_window_plain(q: Tensor, k: Tensor, v: Tensor, mask_B1TS: Tensor, scale: float, window: int) -> Tensor:
    """The definition, with every score held. mask: True where seen if there were no window."""
    return attend_plain(q, k, v, _within(mask_B1TS, window), scale)


def _within(mask_B1TS: Tensor, window: int) -> Tensor:
    """Of what each query sees, the last `window` keys up to its newest."""
    key_S = torch.arange(mask_B1TS.shape[-1], device=mask_B1TS.device)
    newest_B1T1 = torch.where(mask_B1TS, key_S, -1).amax(-1, keepdim=True)
    return mask_B1TS & (key_S > newest_B1T1 - window)


def _last_window(seen: Visibility, keys: int, window: int) -> tuple[int, Visibility]:
    """The first key that any query sees, and who sees which of the keys from there on."""
    if seen.mask_B1TS is None:  # one query a row, after all keys
        return max(0, keys - window), seen
    mask_B1TS = _within(seen.mask_B1TS, window)
    if seen.oldest is None:
        first = int(mask_B1TS.any(dim=2).flatten(0, 1).any(dim=0).int().argmax())
    else:  # asking a GPU would wait for it
        first = max(0, seen.oldest - window + 1)
    return first, Visibility(causal=False, mask_B1TS=mask_B1TS[..., first:].contiguous())


def _packed_window(seen: Visibility, window: int) -> Visibility:
    """The window on packed documents, as a GPU takes them."""
    if seen.packed is not None:
        return seen.packed_within(window)
    assert seen.mask_B1TS is not None
    return Visibility(causal=False, mask_B1TS=_within(seen.mask_B1TS, window))


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """One causal sequence."""
    tokens = q.shape[2]
    if tokens <= window:
        return attend(q, k, v, Visibility(causal=True), scale)
    block = max(window, _BLOCK)
    # Split, not sliced: the gradient of a slice is as large as the whole tensor, once for every block.
    parts = list(zip(*(x.split(block, dim=2) for x in (q, k, v)), strict=True))
    before = window - 1
    row = torch.arange(min(block, tokens), device=q.device).unsqueeze(1)
    key = torch.arange(-before, min(block, tokens), device=q.device)
    mask = (key <= row) & (key > row - window)
    outputs = []
    for i, (q_part, k_part, v_part) in enumerate(parts):
        rows = q_part.shape[2]
        visible = mask[:rows, before : before + rows]
        if i and before:
            k_part, v_part = (
                torch.cat([old[:, :, -before:], new], dim=2)
                for old, new in ((parts[i - 1][1], k_part), (parts[i - 1][2], v_part))
            )
            visible = mask[:rows, : before + rows]
        outputs.append(attend(q_part, k_part, v_part, Visibility(causal=False, mask_B1TS=visible), scale))
    return torch.cat([out.transpose(1, 2) for out in outputs], dim=1).transpose(1, 2)
