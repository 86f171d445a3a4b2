"""A decoder of which this process holds a part: a range of layers, with the embedding before or the head behind them.

It has the whole model's config and names, and parameters for what is here; elsewhere stand modules without any. All
processes run the same program on the same tokens: a pass without gradients (held-out loss, decoding) is the ordinary
`forward`, in which hidden states go from machine to machine, and the logits that a head gives are told to all, so that
every process writes the same text. Steps with gradients are `offload.pipeline.engine`'s.

A tied matrix that is trained lies on the last machine alone, which lends the first the rows of its tokens and gets
their gradients back: there is no second one that could differ. A frozen one both have from the model's files.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.core.errors import ConfigError
from shoestring.data.batch import Layout
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.nn.cache import Cache, CacheRows
from shoestring.nn.context import Context, make_context
from shoestring.nn.convolution import Unmixed
from shoestring.nn.head import Head, OutputHead
from shoestring.nn.memory.bank import MemoryBank
from shoestring.offload.pipeline.parts import Part, Stream, part_of
from shoestring.offload.pipeline.place import Place
from shoestring.offload.pipeline.wire import FORWARD, LENT, RETURNED, Like, Wire
from shoestring.offload.stream import LayerStream, placeholder
from shoestring.train.parallel import exchange_device, telling_of_losses


class SplitDecoder(Decoder):
    """Made by `split_off`. stream: of layers that are read from disk."""

    is_part = True
    place: Place
    wire: Wire
    part: Part
    lends = False  # whether this process has the tied matrix that the first one trains with
    stream: LayerStream | None = None

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
        """As `Decoder.forward`, called by all processes with the same tokens, without gradients. Only the last one's
        hidden states are numbers, the others' have their shape; extra losses are those of the layers here."""
        assert not torch.is_grad_enabled(), "gradients pass between processes in steps of the engine alone"
        context = self.context(tokens_BT, positions_BT, segments_BT, cache, external_BTE, memory, seed, layout)
        self.wire.begin()
        self.lend([tokens_BT])
        if self.place.is_first:
            stream = self.enter(tokens_BT, context, cache)
        else:
            stream = tuple(self.wire.receive(self.passing(tokens_BT), self.place.rank - 1, FORWARD))
        stream, aux = self.part(self.blocks, stream, context, cache, self.activation_checkpointing)
        if cache is not None:
            cache.advance(context.counts)
        if self.place.is_last:
            return self.leave(stream), aux
        self.wire.send(stream, self.place.rank + 1, FORWARD)
        return stream[0].new_zeros(()).expand(*tokens_BT.shape, self.config.width), aux

    def agreed(self, tokens: list[int]) -> list[int]:
        """The last one's: processors may round a probability otherwise, and all must go on with one text."""
        told = torch.tensor(tokens, dtype=torch.int64, device=exchange_device())
        self.wire.timed(lambda: dist.broadcast(told, self.place.last), waiting=True)
        return told.tolist()

    # What the engine does one after another

    def context(
        self, tokens_BT: Tensor, positions_BT: Tensor | None, segments_BT: Tensor | None,
        cache: Cache | CacheRows | None, external_BTE: Tensor | None, memory: MemoryBank | None, seed: int | None,
        layout: Layout | None,
    ) -> Context:  # fmt: skip
        """As `nn.context.make_context` has it."""
        return make_context(
            tokens_BT, self.rotary, positions_BT, segments_BT, cache, external_BTE, memory, seed, layout, self._window
        )

    def enter(self, tokens_BT: Tensor, context: Context, cache: Cache | CacheRows | None = None) -> Stream:
        """What goes into the first layer, on the first machine."""
        x_BTD = self.mix(self.embedding(tokens_BT), context, cache)
        for add in self.inputs.values():
            x_BTD = add(x_BTD, context)
        return self.part.enter(x_BTD)

    def leave(self, stream: Stream) -> Tensor:
        """Hidden states for the head, on the last machine."""
        return self.norm(self.part.leave(stream))

    def passing(self, tokens_BT: Tensor) -> list[Like]:
        """What comes from the machine before, and goes to the next one, for these tokens."""
        rows, tokens = tokens_BT.shape
        return self.part.passing(rows, tokens, self.embedding.weight.dtype)

    def lend(self, tokens: Sequence[Tensor]) -> None:
        """Bring the rows of a tied matrix that these tokens take to the first machine."""
        if isinstance(self.embedding, BorrowedEmbedding):
            self.embedding.borrow(tokens, self.wire, self.place.last)
        elif self.lends:
            ids = _ids(tokens)
            self.wire.send([self.embedding.weight.detach()[ids]], 0, LENT)

    def return_gradients(self, tokens: Sequence[Tensor]) -> None:
        """And their gradients to the last one."""
        if isinstance(self.embedding, BorrowedEmbedding):
            self.embedding.give_back(self.wire, self.place.last)
        elif self.lends:
            ids, weight = _ids(tokens), self.embedding.weight
            (gradient,) = self.wire.receive([Like((len(ids), self.config.width), weight.dtype)], 0, RETURNED)
            assert weight.grad is not None
            weight.grad.index_add_(0, ids, gradient)

    @property
    def waited(self) -> float:
        """Seconds that computing has waited for the disk so far."""
        return 0.0 if self.stream is None else self.stream.waited + getattr(self.head, "source", self.stream).waited

    def close(self) -> None:
        """End the reading threads and close the files."""
        self.wire.settle()
        parts: list[Any] = [self.stream, getattr(self.head, "source", None), self.embedding]
        for part in parts:
            if hasattr(part, "close"):
                part.close()


def unsplit(config: ModelConfig) -> list[str]:
    """In words, what keeps a model from being split over machines; empty where nothing does."""
    refused = {"a persistent memory": config.memory is not None and config.memory.scope == "persistent"}
    return [kind for kind, is_there in refused.items() if is_there]


def split_off(
    whole: Decoder, place: Place, wire: Wire, trained: bool, part: Part | None = None, embedded: bool = True,
    headed: bool = True,
) -> SplitDecoder:  # fmt: skip
    """The part of a decoder that lies here; what is not needed of it has no memory yet. trained: whether a tied matrix
    is. part: of layers that come from disk. embedded, headed: whether embedding and head are those of `whole`, where
    they lie here; else the caller puts them in. Raises ConfigError for a model that cannot be split."""
    config = whole.config
    if refused := unsplit(config):
        raise ConfigError(f"a model with {refused[0]} cannot be split over machines")
    shape, weight = (config.vocabulary, config.width), whole.embedding.weight
    made = part_of(config, place) if part is None else part
    own = place.blocks(made.order)
    embedding: Any = whole.embedding
    lent = config.tied_head and trained and place.stages > 1
    if place.is_first and lent:
        embedding = BorrowedEmbedding(shape, weight.dtype, wire.device)
    elif not (place.is_first and embedded) and not (place.is_last and headed and config.tied_head):
        embedding = EmbeddingElsewhere(shape, weight.dtype, wire.device)
    decoder = SplitDecoder(
        config,
        embedding=embedding,
        mix=whole.mix if place.is_first else Unmixed(),
        inputs=dict(whole.inputs.items()) if place.is_first else {},
        blocks=[block if index in own else Elsewhere() for index, block in enumerate(whole.blocks)],
        stack=made,  # type: ignore[arg-type]
        norm=whole.norm if place.is_last else Elsewhere(),
        head=whole.head if place.is_last and headed else HeadElsewhere(shape, wire, place.last),
        rotary=whole.rotary,
        make_cache=functools.partial(whole._make_cache, **_of_cache(config, place)),
    )
    decoder.place, decoder.wire, decoder.part, decoder.lends = place, wire, made, lent and place.is_last
    return decoder


def _of_cache(config: ModelConfig, place: Place) -> dict[str, Any]:
    """What the cache of the layers here has otherwise than the whole model's."""
    settings: dict[str, Any] = {"layers": place.end - place.first}
    if config.memory is not None:
        here = range(place.first, place.end)
        settings["searching"] = [position - place.first for position in config.searching_layers if position in here]
    return settings


def settle_head(decoder: SplitDecoder) -> SplitDecoder:
    """Once the head is as it stays: its logits are told to all, and a tied matrix that it has no use for is dropped."""
    if decoder.place.is_last and decoder.place.stages > 1:
        decoder.head.register_forward_hook(_tell)
        if isinstance(decoder.embedding, nn.Embedding) and not isinstance(decoder.head, Head):
            weight = decoder.embedding.weight
            shape = (decoder.config.vocabulary, decoder.config.width)
            decoder.embedding = EmbeddingElsewhere(shape, weight.dtype, decoder.wire.device)  # type: ignore[assignment]
    return decoder


class Elsewhere(nn.Module):
    """What another machine has."""

    weight = None


class EmbeddingElsewhere(nn.Module):
    """Its weight tells shape, number format and device."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str = "cpu"):
        super().__init__()
        self.num_embeddings, self.embedding_dim = shape
        self.weight = placeholder(shape, dtype, device)


class BorrowedEmbedding(EmbeddingElsewhere):
    """Rows of a matrix on the last machine, those of the tokens at hand."""

    def borrow(self, tokens: Sequence[Tensor], wire: Wire, lender: int) -> None:
        self.ids = _ids(tokens)
        like = Like((len(self.ids), self.embedding_dim), self.weight.dtype)
        (rows,) = wire.receive([like], lender, LENT)
        self.rows = rows.requires_grad_(torch.is_grad_enabled())

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(torch.searchsorted(self.ids, tokens), self.rows)

    def give_back(self, wire: Wire, lender: int) -> None:
        gradient = torch.zeros_like(self.rows) if self.rows.grad is None else self.rows.grad
        wire.send([gradient], lender, RETURNED)
        del self.rows


class HeadElsewhere(OutputHead):
    """Its logits are told by the last machine."""

    here = False

    def __init__(self, shape: tuple[int, int], wire: Wire, source: int):
        super().__init__()
        self.vocabulary, self.width = shape
        self._wire, self._source = wire, source

    def forward(self, hidden: Tensor) -> Tensor:
        logits = torch.empty(*hidden.shape[:-1], self.vocabulary, dtype=hidden.dtype, device=exchange_device())
        self._wire.timed(lambda: dist.broadcast(logits, self._source), waiting=True)
        return logits.to(hidden.device)


def _tell(head: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """Logits to all who have no head. Its losses do not come by here."""
    logits = logits.to(inputs[0].dtype).contiguous()
    told = logits.to(exchange_device())
    with telling_of_losses():
        dist.broadcast(told, dist.get_rank())
    return logits


def _ids(tokens: Sequence[Tensor]) -> Tensor:
    """Each token once, in ascending order."""
    return torch.unique(torch.cat([each.flatten() for each in tokens]))
