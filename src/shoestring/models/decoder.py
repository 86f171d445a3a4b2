"""The decoder: embed, then every block, then the final norm. The head is separate.

`blocks` are the unique ones; how they run (order, sharing, what is recomputed) is `nn.stack`'s or
`nn.reversible`'s. tokens_BT -> (hidden_BTD, aux). Callers that want logits call `decoder.head(hidden)`;
training goes through the chunked head-and-loss function instead, which never holds [B, T, V]. No `forward`
here tests a kind: `models.builder` has decided what the parts are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from shoestring.data.batch import Layout
from shoestring.models.config import ModelConfig
from shoestring.nn.cache import Cache, CacheRows
from shoestring.nn.config import Recompute
from shoestring.nn.context import make_context
from shoestring.nn.head import OutputHead
from shoestring.nn.memory.bank import MemoryBank
from shoestring.nn.rope import RotaryEmbedding
from shoestring.nn.stack import Stack


class Parts(Protocol):
    """What of a decoder lies in this process, where it is divided among several (`train.fsdp`)."""

    def own(self, weight: Tensor) -> tuple[Tensor, int]:
        """The part of a parameter that lies here, and the number of its first row."""
        ...

    def whole(self, weight: Tensor) -> Tensor:
        """A parameter gathered from all processes, by the first one while the others stand by."""
        ...

    def computing(self) -> contextlib.AbstractContextManager[object]:
        """Around passes that no objective makes: weights are gathered in the dtype that training computes in."""
        ...


class Decoder(nn.Module):
    """Made by `models.builder.build` or `models.folder.load_model`. is_part: whether other processes have the rest."""

    is_part = False

    parts: Parts | None = None  # None: all of it is here

    def __init__(
        self,
        config: ModelConfig,
        embedding: nn.Embedding,
        mix: nn.Module,
        inputs: dict[str, nn.Module],
        blocks: list[nn.Module],
        stack: Stack,
        norm: nn.Module,
        head: OutputHead,
        rotary: RotaryEmbedding | None,
        make_cache: Callable[..., Cache],
        make_memory: Callable[..., MemoryBank] | None = None,
    ):
        super().__init__()
        self.config = config
        self.embedding = embedding
        self.mix = mix  # of the embeddings of neighbours: (x_BTD, context, cache) -> x_BTD
        self.inputs = nn.ModuleDict(inputs)  # what is added to the embedding: (x_BTD, context) -> x_BTD
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = head
        self.rotary = rotary
        self._stack = stack
        self._window = getattr(config.attention, "window", None)
        self._make_cache = make_cache
        self._make_memory = make_memory
        # What going backward computes again instead of having kept it.
        self.activation_checkpointing: Recompute = "selective"

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: Cache | CacheRows | None = None,
        external_BTE: Tensor | None = None,
        memory: MemoryBank | None = None,
        seed: int | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-> hidden_BTD after the final norm, and the extra losses summed over the layers.

        positions_BT defaults to 0, 1, ... (after what the cache holds). segments_BT separates packed
        documents; −1 marks padding on the right. With a cache, all tokens that are not padding are appended
        to it, row b to slot b, or as its `rows` say. memory: entries of earlier passes; this pass's are
        staged in it, for its `commit`. seed: of the layers' dropout. layout: of the batch, see `data.batch`; without
        it a pass of several documents waits for a GPU.
        """
        context = make_context(
            tokens_BT, self.rotary, positions_BT, segments_BT, cache, external_BTE, memory, seed, layout,
            self._window,
        )  # fmt: skip
        x_BTD = self.mix(self.embedding(tokens_BT), context, cache)
        for add in self.inputs.values():
            x_BTD = add(x_BTD, context)
        x_BTD, aux = self._stack(self.blocks, x_BTD, context, cache, self.activation_checkpointing)
        if cache is not None:
            cache.advance(context.counts)
        return self.norm(x_BTD), aux

    def next_logits(
        self, tokens_BT: Tensor, places: list[int], cache: Cache | CacheRows, external_BTE: Tensor | None = None
    ) -> Tensor:
        """Logits [n, V] behind n tokens of a pass [1, N] with a cache, given by their numbers in it. No graph."""
        native = getattr(self._stack, "logits", None)
        if native is not None:
            context = make_context(tokens_BT, self.rotary, None, None, cache, external_BTE, window=self._window)
            x_BTD = self.mix(self.embedding(tokens_BT), context, cache)
            for add in self.inputs.values():
                x_BTD = add(x_BTD, context)
            logits_NV = native(self.blocks, x_BTD, context, cache, places)
            if logits_NV is not None:
                cache.advance(context.counts)
                return logits_NV
        hidden_BTD, _ = self(tokens_BT, cache=cache, external_BTE=external_BTE)
        # Indexed, which copies: a view would keep the whole pass.
        return self.head(hidden_BTD[0, torch.tensor(places, device=hidden_BTD.device)])

    def agreed(self, tokens: list[int]) -> list[int]:
        """Tokens that were chosen after `next_logits`, as all processes take them that have a part of the model."""
        return tokens

    @contextlib.contextmanager
    def present(self, index: int) -> Iterator[nn.Module]:
        """Inside, block `index` has its weights, wherever they are kept otherwise."""
        yield self.blocks[index]

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache of `batch` slots of at most `capacity` tokens, in the weights' dtype and on their device."""
        weight = self.embedding.weight
        return self._make_cache(batch=batch, capacity=capacity, device=weight.device, dtype=weight.dtype)

    def new_memory(self, rows: int, folder: str | Path | None = None) -> MemoryBank | None:
        """An empty bank for batches of `rows` rows; None when no block searches one. folder: of a bank in files."""
        if self._make_memory is None:
            return None
        weight = self.embedding.weight
        return self._make_memory(rows=rows, device=weight.device, dtype=weight.dtype, folder=folder)

    def parameter_count(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())
