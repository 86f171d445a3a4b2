"""Packed documents in one kernel on a GPU: torch's FlexAttention, which skips the blocks that no query sees.

q: [B, H, T, C], k, v: [B, K, T, C]. A query sees the keys from its document's first token, or from the beginning of its
window, up to itself, so all that is needed is that first key of each query: `first_BT`. From it follow, for blocks of
128 queries by 128 keys, which are seen wholly, in part or not at all: without a mask of T² and without waiting for the
GPU. Made once for a forward pass; every layer uses it. What FlexAttention does not take (float64, narrow heads) goes
through a dense mask. Written without a GPU: see docs/gpu.md for what has run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # FlexAttention's own
_LEAST_WIDTH = 16  # of a head, that its kernel takes
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernel() -> Callable[..., Any]:
    """flex_attention, compiled at its first call: uncompiled it holds every score. Part of a graph that is made now."""
    if not torch.compiler.is_compiling():
        return _compiled()
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class Packed:
    """first_BT: int32, the first key that each token sees; tokens see all keys from there to themselves.

    It grows along a row, and is never beyond the token.
    """

    def __init__(self, first_BT: Tensor):
        self.first_BT = first_BT
        self._made: dict[str, Any] = {}

    @classmethod
    def of(cls, segments_BT: Tensor) -> Packed:
        """Of runs of equal segments, wherever they lie."""
        tokens_T = torch.arange(segments_BT.shape[1], dtype=torch.int32, device=segments_BT.device)
        opens_BT = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0))
        return cls(torch.where(opens_BT, tokens_T, 0).cummax(1).values)

    def within(self, window: int) -> Packed:
        """The same for a window of so many keys, the token itself among them."""
        tokens_T = torch.arange(self.first_BT.shape[1], dtype=torch.int32, device=self.first_BT.device)
        return Packed(torch.maximum(self.first_BT, tokens_T - (window - 1)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """-> [B, H, T, C]. The twin is `core.attend_plain` with `mask_B1TS()`."""
        grouped = q.shape[1] != k.shape[1]
        if q.dtype in _DTYPES and q.shape[-1] >= _LEAST_WIDTH:
            if torch.is_autocast_enabled(q.device.type):  # as torch's own attention does
                q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
            return kernel()(q, k, v, block_mask=self.block_mask(), scale=scale, enable_gqa=grouped)
        if grouped:  # a GPU's kernels take a mask or grouped heads; given both, torch falls back on holding every score
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask_B1TS(), scale=scale)

    def mask_B1TS(self) -> Tensor:
        """[B, 1, T, T], True where seen: the definition."""
        if "dense" not in self._made:
            tokens_T = torch.arange(self.first_BT.shape[1], dtype=torch.int32, device=self.first_BT.device)
            self._made["dense"] = ((tokens_T >= self.first_BT.unsqueeze(-1)) & (tokens_T <= tokens_T[:, None]))[:, None]
        return self._made["dense"]

    def block_mask(self) -> Any:
        """The `BlockMask` of FlexAttention."""
        if "blocks" not in self._made:
            self._made["blocks"] = _block_mask(self.first_BT)
        return self._made["blocks"]


def _block_mask(first_BT: Tensor) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k >= first_BT[b, q])

    tokens, device = first_BT.shape[1], first_BT.device
    count = -(-tokens // BLOCK)
    block_N = torch.arange(count, dtype=torch.int32, device=device)
    begin_N, end_N = block_N * BLOCK, ((block_N + 1) * BLOCK).clamp(max=tokens)
    # As `first` grows along a row, a block's first query sees the farthest back and its last query the least far.
    farthest_BN = first_BT[:, ::BLOCK]
    nearest_BN = F.pad(first_BT, (0, count * BLOCK - tokens), value=tokens)[:, BLOCK - 1 :: BLOCK]
    if tokens % BLOCK:
        nearest_BN = torch.cat([nearest_BN[:, :-1], first_BT[:, -1:]], dim=1)
    seen_BNM = (block_N <= block_N[:, None]) & (end_N > farthest_BN.unsqueeze(-1))
    whole_BNM = (block_N < block_N[:, None]) & (begin_N >= nearest_BN.unsqueeze(-1))
    partial = _in_order((seen_BNM & ~whole_BNM).unsqueeze(1))
    whole = _in_order(whole_BNM.unsqueeze(1))
    return BlockMask.from_kv_blocks(
        *partial, *whole, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens)
    )  # fmt: skip


def _in_order(blocks_B1NM: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each has, and their numbers first in its list."""
    numbers = blocks_B1NM.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return blocks_B1NM.sum(-1, dtype=torch.int32), numbers.to(torch.int32).contiguous()
