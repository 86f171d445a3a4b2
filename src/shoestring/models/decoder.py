"""The decoder: embed, then every block, then the final norm. The head is separate.

tokens_BT -> (hidden_BTD, aux). Callers that want logits call `decoder.head(hidden)`; training goes through the chunked
head-and-loss function instead, which never holds [B, T, V]. No `forward` here tests a kind: `models.builder` has
decided what the parts are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shoestring.models.config import ModelConfig
from shoestring.nn.cache import KVCache, LayerCache
from shoestring.nn.context import Context, make_context
from shoestring.nn.recompute import recomputing_nothing
from shoestring.nn.linear import linear
from shoestring.nn.rope import RotaryEmbedding


class Head(nn.Module):
    """hidden [..., D] -> logits [..., V]. Its weight [V, D] may be the embedding's."""

    def __init__(self, weight_VD: nn.Parameter):
        super().__init__()
        self.weight = weight_VD

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight)


def _run_whole(block: nn.Module, x_BTD: Tensor, context: Context, cache: LayerCache | None):
    """A block whose checkpoint drops everything that it would keep."""
    with recomputing_nothing():
        return block(x_BTD, context, cache)


class Decoder(nn.Module):
    """Made by `models.builder.build` or `models.folder.load_model`."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: nn.Embedding,
        blocks: list[nn.Module],
        norm: nn.Module,
        head: Head,
        rotary: RotaryEmbedding | None,
        make_cache: Callable[..., KVCache],
    ):
        super().__init__()
        self.config = config
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = head
        self.rotary = rotary
        self._make_cache = make_cache
        self.checkpoint_blocks = False  # keep only each block's input, and run it again going backward

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: KVCache | None = None,
        external_BTE: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-> hidden_BTD after the final norm, and the extra losses summed over the layers.

        positions_BT defaults to 0, 1, ... (after what the cache holds). segments_BT separates packed documents; −1
        marks padding on the right. With a cache, all tokens that are not padding are appended to it.
        """
        context = make_context(tokens_BT, self.rotary, positions_BT, segments_BT, cache, external_BTE)
        x_BTD = self.embedding(tokens_BT)
        aux: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            layer_cache = cache.layer(i) if cache is not None else None
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x_BTD, extra = checkpoint(_run_whole, block, x_BTD, context, layer_cache, use_reentrant=False)
            else:
                x_BTD, extra = block(x_BTD, context, layer_cache)
            for name, loss in extra.items():
                aux[name] = aux[name] + loss if name in aux else loss
        if cache is not None:
            cache.advance(context.counts)
        return self.norm(x_BTD), aux

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of at most `capacity` tokens, in the weights' dtype and on their device."""
        weight = self.embedding.weight
        return self._make_cache(batch=batch, capacity=capacity, device=weight.device, dtype=weight.dtype)

    def parameter_count(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())
