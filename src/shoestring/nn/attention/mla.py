"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads from one latent per token.

q: [B, T, H, Cn+Cr]; latent c: [B, T, R], normed; one rotary key k_r: [B, T, Cr] for all heads.
score = (q_n·(W_UK c) + q_r·k_r)·scale, out = W_o [softmax(score)·(W_UV c)]. Cache: R + Cr numbers per token.
Training and long prefills expand c to each head's keys and values; decoding absorbs W_UK into the query and
W_UV into the output, and reads the cache as it is. Both are the same function: tests hold each to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.nn.attention.config import MLAConfig, MTLAConfig
from shoestring.nn.attention.core import attend
from shoestring.nn.context import Context, Visibility
from shoestring.nn.latent_cache import LatentLayerCache
from shoestring.nn.linear import Linear
from shoestring.nn.norm import RMSNorm
from shoestring.nn.rope import rotate
from shoestring.nn.slots import SlotRange, by_slots

MakeLinear = Callable[..., nn.Module]


class LatentAttention(nn.Module):
    """x_BTD -> y_BTD. The projections, and attention over latents in both forms; shared by MLA and MTLA."""

    def __init__(self, config: MLAConfig | MTLAConfig, width: int, epsilon: float, make_linear: MakeLinear = Linear):
        super().__init__()
        self.heads, self.rank = config.heads, config.latent_rank
        self.content, self.rotary, self.value = config.content_width, config.rotary_width, config.value_width
        self.scale = (self.content + self.rotary) ** -0.5 * config.mscale**2
        queries = self.heads * (self.content + self.rotary)
        if config.query_rank is None:
            self.query = make_linear(width, queries, bias=False)
        else:
            self.query = nn.Sequential()
            self.query.add_module("down", make_linear(width, config.query_rank, bias=config.bias))
            self.query.add_module("norm", RMSNorm(config.query_rank, config.latent_epsilon))
            self.query.add_module("up", make_linear(config.query_rank, queries, bias=False))
        self.latent = make_linear(width, self.rank + self.rotary, bias=config.bias)
        self.latent_norm = RMSNorm(self.rank, config.latent_epsilon)
        self.expand = Linear(self.rank, self.heads * (self.content + self.value), bias=False)
        self.output = make_linear(self.heads * self.value, width, bias=config.bias)
        self.pairs = neighbours_to_halves if config.rope_interleave else _as_it_is
        # MTLA's options: nothing here.
        self.content_norm = self.rotary_norm = self.rotary_key_norm = self.rotary_scale = _as_it_is

    def turn(self, x_BHTC: Tensor, context: Context) -> Tensor:
        """Rotary positions on queries or keys."""
        return x_BHTC if context.rotary is None else rotate(self.pairs(x_BHTC), context.rotary)

    def queries(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """-> content part [B, H, T, Cn], rotary part [B, H, T, Cr], turned."""
        q_BHTC = self.query(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        content, rotary = q_BHTC.split([self.content, self.rotary], dim=-1)
        rotary = self.rotary_scale(self.turn(self.rotary_norm(rotary), context))
        return self.content_norm(content), rotary

    def latents(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """-> latent [B, T, R], normed; rotary key [B, T, Cr], turned."""
        latent, rotary = self.latent(x_BTD).split([self.rank, self.rotary], dim=-1)
        rotary = self.turn(self.rotary_key_norm(rotary).unsqueeze(1), context).squeeze(1)
        return self.latent_norm(latent), rotary

    def keys_and_values(self, latents_BSR: Tensor, rotary_BSC: Tensor) -> tuple[Tensor, Tensor]:
        """-> k [B, H, S, Cn+Cr], v [B, H, S, Cv] of each head."""
        expanded = self.expand(latents_BSR).unflatten(-1, (self.heads, -1))
        content, v_BSHC = expanded.split([self.content, self.value], dim=-1)
        rotary = rotary_BSC.unsqueeze(2).expand(-1, -1, self.heads, -1)
        return torch.cat([content, rotary], dim=-1).transpose(1, 2), v_BSHC.transpose(1, 2)

    def naive(self, content: Tensor, rotary: Tensor, columns_BSW: Tensor, seen: Visibility) -> Tensor:
        """Attention with expanded keys and values -> [B, T, H·Cv]. columns: latents and rotary keys, R + Cr wide."""
        latents_BSR, keys_BSC = columns_BSW.split([self.rank, self.rotary], dim=-1)
        return self.expanded(content, rotary, latents_BSR, keys_BSC, seen)

    def expanded(
        self, content: Tensor, rotary: Tensor, latents_BSR: Tensor, keys_BSC: Tensor, seen: Visibility
    ) -> Tensor:
        """The same with latents and rotary keys apart."""
        k_BHSC, v_BHSC = self.keys_and_values(latents_BSR, keys_BSC)
        # Heads beside each other in memory, as keys have them: the result then is a view for the projection.
        q_BTHC = torch.cat([content.transpose(1, 2), rotary.transpose(1, 2)], dim=-1)
        y_BHTC = attend(q_BTHC.transpose(1, 2), k_BHSC, v_BHSC, seen, self.scale)
        return y_BHTC.transpose(1, 2).flatten(2)

    def absorbed(self, content: Tensor, rotary: Tensor, columns_BSW: Tensor, seen: Visibility) -> Tensor:
        """The same with W_UK applied to the queries and W_UV to what they read -> [B, T, H·Cv]."""
        up_HCR = self.expand_weight(content).view(self.heads, self.content + self.value, self.rank)
        up_keys, up_values = up_HCR.split([self.content, self.value], dim=1)
        batch, _, tokens, _ = content.shape
        # [B, H, T, Cn] · [H, Cn, R] as a product of H matrices: a broadcast one would copy W_UK for every row.
        folded = content.transpose(0, 1).reshape(self.heads, batch * tokens, self.content)
        absorbed = (folded @ up_keys).view(self.heads, batch, tokens, self.rank).transpose(0, 1)
        read = self.read_columns(torch.cat([absorbed, rotary], dim=-1), columns_BSW, seen)
        folded = read.transpose(0, 1).reshape(self.heads, batch * tokens, self.rank)
        y_HBTC = (folded @ up_values.transpose(1, 2)).view(self.heads, batch, tokens, self.value)
        return y_HBTC.permute(1, 2, 0, 3).flatten(2)

    def read_columns(self, q_BHTW: Tensor, columns_BSW: Tensor, seen: Visibility) -> Tensor:
        """Queries of the columns' own width over the columns -> [B, H, T, R]."""
        keys = columns_BSW.unsqueeze(1)
        if q_BHTW.shape[2] == 1:
            # Heads become the queries of one head, which reads each column once; of a few, where threads would idle.
            groups = self.groups_for(q_BHTW.shape[0])
            q = q_BHTW.reshape(q_BHTW.shape[0], groups, self.heads // groups, -1)
            keys = keys.expand(-1, groups, -1, -1)
            y = F.scaled_dot_product_attention(q, keys, keys, attn_mask=seen.mask_B1TS, scale=self.scale)
            return y.reshape(q_BHTW.shape)[..., : self.rank]
        keys = keys.expand(-1, self.heads, -1, -1)
        return attend(q_BHTW, keys, keys, seen, self.scale)[..., : self.rank]

    def groups_for(self, batch: int) -> int:
        """The least divisor of the heads that gives each thread a row or a group, the kernel's units of work."""
        threads = torch.get_num_threads()
        return next(
            n for n in range(1, self.heads + 1) if self.heads % n == 0 and (n * batch >= threads or n == self.heads)
        )

    def expand_weight(self, like: Tensor) -> Tensor:
        """W_kvb [H·(Cn+Cv), R], from whatever linear stands there; a made one in the dtype of `like`."""
        if type(self.expand) is Linear:
            return self.expand.weight
        return self.expand(torch.eye(self.rank, dtype=like.dtype, device=like.device)).t()

    def cached(self, content: Tensor, rotary: Tensor, columns_BSW: Tensor, seen: Visibility) -> Tensor:
        """The cheaper form -> [B, T, H·Cv].

        Per head and column, absorbing costs each of the T queries 2R − Cn − Cv multiply-adds more, and expanding
        costs R·(Cn+Cv) once.
        """
        surplus = 2 * self.rank - self.content - self.value
        absorb = content.shape[2] * surplus <= self.rank * (self.content + self.value)
        return (self.absorbed if absorb else self.naive)(content, rotary, columns_BSW, seen)


class MultiHeadLatentAttention(LatentAttention):
    """MLA. x_BTD -> y_BTD."""

    def forward(self, x_BTD: Tensor, context: Context, cache: LatentLayerCache | None = None) -> Tensor:
        content, rotary = self.queries(x_BTD, context)
        latent_BTR, key_BTC = self.latents(x_BTD, context)
        if cache is None:
            return self.output(self.expanded(content, rotary, latent_BTR, key_BTC, context.visibility))
        latents_BTW = torch.cat([latent_BTR, key_BTC], dim=-1)
        return self.output(by_slots(context, partial(self.attend_slots, cache), content, rotary, latents_BTW))

    def attend_slots(
        self, cache: LatentLayerCache, slots: SlotRange, content: Tensor, rotary: Tensor, latents_BTW: Tensor
    ) -> Tensor:
        """Append to these slots of the cache, attend over all that they hold -> [B, T, H·Cv]."""
        return self.cached(content, rotary, cache.append(slots, latents_BTW), slots.context.visibility)


def neighbours_to_halves(x: Tensor) -> Tensor:
    """Rotary components stored as neighbouring pairs, in the order that `rotate` pairs them: evens, then odds."""
    return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)


def _as_it_is(x: Tensor) -> Tensor:
    return x
