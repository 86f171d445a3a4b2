"""Multi-head temporal latent attention (arXiv 2505.13544): MLA whose latents are also merged in time.

s neighbouring tokens of a document share one column. Token n, of chunk ⌊n/s⌋, weighs its latent by
w_n = sigmoid(⟨fc_c(PE[⌊n/s⌋]), fc_p(c_n)⟩); row m's own column is ĉ_m = Σ w_n c_n over its chunk up to m, and it
sees the finished chunks before (`temporal.py`). That is exactly what the cache (`nn.temporal_cache`) holds after
m + 1 tokens, so training and decoding are one function. Cache: (R + Cr)/s numbers per token.
EfficientLM's options: a learned factor on the rotary scores, RMSNorms over the content and the rotary part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.core.device import numbers_on, to_device
from shoestring.nn.attention.config import MTLAConfig
from shoestring.nn.attention.mla import LatentAttention
from shoestring.nn.attention.temporal import Span, attend_chunks
from shoestring.nn.context import Context, Visibility
from shoestring.nn.linear import Linear
from shoestring.nn.norm import RMSNorm
from shoestring.nn.slots import SlotRange, by_slots
from shoestring.nn.temporal_cache import TemporalLayerCache


@dataclass(frozen=True)
class Chunks:
    """Where a pass's tokens stand in the chunks of their documents.

    sines_PR: PE of P chunks; chunk_BT: which of them each token is in, B or 1 rows. places_BT: each token's place when
    every document is padded to whole chunks, None when rows are one document each; `padded` is that layout's length.
    """

    sines_PR: Tensor
    chunk_BT: Tensor
    spans: list[Span]
    places_BT: Tensor | None = None
    padded: int = 0


class TemporalLatentAttention(LatentAttention):
    """MTLA. x_BTD -> y_BTD."""

    def __init__(self, config: MTLAConfig, width: int, epsilon: float, make_linear: Callable[..., nn.Module] = Linear):
        super().__init__(config, width, epsilon, make_linear)
        self.stride = config.stride
        self.chunk_gate = Linear(self.rank, self.rank // 4)
        self.latent_gate = Linear(self.rank, self.rank // 4)
        if config.part_norms:
            self.content_norm = RMSNorm(self.content, epsilon)
            self.rotary_norm = RMSNorm(self.rotary, epsilon)
            self.rotary_key_norm = RMSNorm(self.rotary, epsilon)
        if config.rotary_scale:
            self.rotary_scale = RotaryScale()

    def forward(self, x_BTD: Tensor, context: Context, cache: TemporalLayerCache | None = None) -> Tensor:
        content, rotary = self.queries(x_BTD, context)
        latent_BTR, key_BTC = self.latents(x_BTD, context)
        if cache is not None:
            attend = partial(self.attend_slots, cache)
            return self.output(by_slots(context, attend, content, rotary, latent_BTR, key_BTC))
        chunks = self.chunks(latent_BTR, context)
        own_BTR = merge_chunks(latent_BTR * self.weights(latent_BTR, chunks), chunks, self.stride)
        return self.output(self.parallel(content, rotary, own_BTR, key_BTC, chunks.spans))

    def attend_slots(
        self,
        cache: TemporalLayerCache,
        slots: SlotRange,
        content: Tensor,
        rotary: Tensor,
        latent_BTR: Tensor,
        key_BTC: Tensor,
    ) -> Tensor:
        """Merge into these slots of the cache, attend over all that they hold -> [B, T, H·Cv]."""
        context, tokens = slots.context, slots.count
        chunks = self.chunks(latent_BTR, context, slots)
        own_BTW = cache.append(slots, latent_BTR * self.weights(latent_BTR, chunks), key_BTC)
        if tokens > 1 and not any(slots.lengths):
            return self.parallel(content, rotary, own_BTW[..., : self.rank], key_BTC, chunks.spans)
        columns_BSW = cache.columns(slots)
        seen = context.once(
            ("seen chunks", self.stride),
            lambda: _seen_chunks(slots.lengths, tokens, columns_BSW.shape[1], self.stride, latent_BTR.device),
        )
        if tokens > 1:
            columns_BSW = torch.cat([columns_BSW, own_BTW], dim=1)
        return self.cached(content, rotary, columns_BSW, seen)

    def weights(self, latent_BTR: Tensor, chunks: Chunks) -> Tensor:
        """The hypernetwork's w_n, [B, T, 1]."""
        by_chunk = F.embedding(chunks.chunk_BT, self.chunk_gate(chunks.sines_PR.to(latent_BTR.dtype)))
        return torch.sigmoid((by_chunk * self.latent_gate(latent_BTR)).sum(-1, keepdim=True))

    def parallel(self, content: Tensor, rotary: Tensor, own_BTR: Tensor, key_BTC: Tensor, spans: list[Span]) -> Tensor:
        """Training and prefill: every row of these tokens at once -> [B, T, H·Cv]."""
        k_BHTC, v_BHTC = self.keys_and_values(own_BTR, key_BTC)
        q_BHTC = torch.cat([content, rotary], dim=-1)
        y_BHTC = attend_chunks(q_BHTC, k_BHTC, v_BHTC, spans, self.stride, self.scale)
        return y_BHTC.transpose(1, 2).flatten(2)

    def chunks(self, latent_BTR: Tensor, context: Context, slots: SlotRange | None = None) -> Chunks:
        """Made once for all layers."""
        batch, tokens, _ = latent_BTR.shape

        def make() -> Chunks:
            if slots is not None:
                made = _chunks_after(slots.lengths, tokens, self.stride, self.rank)
            else:
                made = _chunks_of(context.visibility.documents, batch, tokens, self.stride, self.rank)
            # Made on the CPU, where float64 is: late chunks of long documents need it.
            places_BT = None if made.places_BT is None else to_device(made.places_BT, latent_BTR.device)
            return replace(
                made,
                sines_PR=to_device(made.sines_PR.to(latent_BTR.dtype), latent_BTR.device),
                chunk_BT=to_device(made.chunk_BT, latent_BTR.device),
                places_BT=places_BT,
            )

        return context.once(("chunks", self.stride, self.rank), make)


class RotaryScale(nn.Module):
    """One learned factor, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def initialize(self, random: torch.Generator, std: float) -> None:
        self.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def merge_chunks(weighted_BTR: Tensor, chunks: Chunks, stride: int) -> Tensor:
    """ĉ: running sums of w·c that start again with each chunk, in O(T). `merge_chunks_plain` is the twin."""
    if stride == 1:
        return weighted_BTR
    tokens = weighted_BTR.shape[1]
    if chunks.places_BT is None:
        missing = -tokens % stride
        whole = F.pad(weighted_BTR, (0, 0, 0, missing)) if missing else weighted_BTR
        return whole.unflatten(1, (-1, stride)).cumsum(2).flatten(1, 2)[:, :tokens]
    places = chunks.places_BT.unsqueeze(-1).expand_as(weighted_BTR)
    whole = weighted_BTR.new_zeros((weighted_BTR.shape[0], chunks.padded, weighted_BTR.shape[2]))
    whole = whole.scatter(1, places, weighted_BTR)
    return whole.unflatten(1, (-1, stride)).cumsum(2).flatten(1, 2).gather(1, places)


def merge_chunks_plain(weighted_BTR: Tensor, spans: list[Span], stride: int) -> Tensor:
    """The definition: a [T, T] matrix per row, one where n ≤ m stand in one chunk of one document."""
    batch, tokens, _ = weighted_BTR.shape
    same = weighted_BTR.new_zeros((batch, tokens, tokens))
    for rows, start, end in spans:
        chunk = torch.arange(end - start, device=weighted_BTR.device) // stride
        same[rows, start:end, start:end] = (chunk.unsqueeze(1) == chunk).tril().to(weighted_BTR.dtype)
    return same @ weighted_BTR


def sinusoids(chunk_P: Tensor, width: int) -> Tensor:
    """PE of chunk numbers (arXiv 1706.03762, section 3.5), [P, width] float64: sine and cosine in turn."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = chunk_P.double().unsqueeze(1) * torch.exp(exponents * -math.log(10_000.0))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _chunks_of(documents, batch: int, tokens: int, stride: int, rank: int) -> Chunks:
    """Of a pass without a cache; documents: (row, start, end), or None for one per row."""
    if documents is None:
        chunk_BT = (torch.arange(tokens) // stride).unsqueeze(0)
        return Chunks(sinusoids(torch.arange(-(-tokens // stride)), rank), chunk_BT, [(slice(0, batch), 0, tokens)])
    chunk_BT = torch.empty((batch, tokens), dtype=torch.int64)
    places_BT = torch.empty((batch, tokens), dtype=torch.int64)
    filled = [0] * batch
    for row, start, end in documents:
        index = torch.arange(end - start)
        chunk_BT[row, start:end] = index // stride
        places_BT[row, start:end] = filled[row] + index
        filled[row] += -(-(end - start) // stride) * stride
    spans = [(slice(row, row + 1), start, end) for row, start, end in documents]
    longest = max(end - start for _, start, end in documents)
    return Chunks(sinusoids(torch.arange(-(-longest // stride)), rank), chunk_BT, spans, places_BT, max(filled))


def _chunks_after(lengths: list[int], tokens: int, stride: int, rank: int) -> Chunks:
    """Of tokens that follow what slots of these lengths hold."""
    starts = torch.tensor(lengths[:1] if len(set(lengths)) == 1 else lengths)
    chunk_BT = (starts.unsqueeze(1) + torch.arange(tokens)) // stride
    index_BT = torch.arange(chunk_BT.numel()).view_as(chunk_BT)
    return Chunks(sinusoids(chunk_BT.flatten(), rank), index_BT, [(slice(0, len(lengths)), 0, tokens)])


def _seen_chunks(lengths: list[int], tokens: int, columns: int, stride: int, device: torch.device) -> Visibility:
    """One token sees every column of its slot, the last being its own. Several see the columns of earlier chunks, and
    each its own of the T columns that follow them."""
    uniform = len(set(lengths)) == 1
    if tokens == 1 and uniform:
        return Visibility(causal=False)
    starts = numbers_on(lengths[:1] if uniform else lengths, device)
    chunk_BT1 = ((starts.unsqueeze(1) + torch.arange(tokens, device=device)) // stride).unsqueeze(-1)
    column_S = torch.arange(columns, device=device)
    if tokens == 1:
        return Visibility(causal=False, mask_B1TS=(column_S <= chunk_BT1).unsqueeze(1))
    own = torch.eye(tokens, dtype=torch.bool, device=device).expand(len(starts), -1, -1)
    return Visibility(causal=False, mask_B1TS=torch.cat([column_S < chunk_BT1, own], dim=-1).unsqueeze(1))
