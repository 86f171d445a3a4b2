"""Whom the student learns from: a model beside it in memory, or one that is read from disk layer by layer.

Both give hidden states at the labels that count; the loss makes logits of them in chunks, so that a batch's are never
held. A streamed teacher looks at all microbatches of a step at once and reads each layer once for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from shoestring.compression.distill.divergence import Divergence
from shoestring.compression.distill.lesson import Lesson, lesson
from shoestring.compression.distill.loss import Target, Whole
from shoestring.core.errors import ModelFileError
from shoestring.data.batch import IGNORED, Batch
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model
from shoestring.models.peft_folder import find_base, is_adapter, load_adapted, load_adapter
from shoestring.models.resolve import Say
from shoestring.nn.context import make_context
from shoestring.nn.stack import draw_at
from shoestring.offload.model import StreamedDecoder, open_streamed

SLOTS = 2  # layers of a streamed teacher in memory
_TOGETHER = 1 << 22  # numbers looked at at a time


class Teacher(Protocol):
    def look(self, batches: list[Batch]) -> list[Batch]:
        """The microbatches of a step, before the first of them is learned."""
        ...

    def target(self, batch: Batch) -> Target:
        """What it says at the labels of a batch that count, in their order."""
        ...

    def close(self) -> None: ...


def counted_rows(x_BTD: Tensor, batch: Batch) -> Tensor:
    """[N, D]: those of the labels that count."""
    flat_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    if batch.layout is not None:
        places = batch.layout.counted_N
        return flat_ND if places is None else flat_ND.index_select(0, places)
    return flat_ND[batch.labels_BT.reshape(-1) != IGNORED]


def open_teacher(
    folder: Path, streamed: bool, device: torch.device, compute: torch.dtype, say: Say | None = None
) -> ResidentModel | StreamedModel:
    """The frozen model of a folder, an adapter's too. compute: the dtype that products run in.

    Raises ModelFileError.
    """
    base = find_base(folder, say) if is_adapter(folder) else folder
    if streamed:
        streaming = open_streamed(base, "source", SLOTS, device, say=say)
        if base != folder:
            load_adapter(streaming, folder)
        return StreamedModel(_frozen(streaming), compute)
    if base != folder:
        decoder, _ = load_adapted(folder, device, torch.float32, say)
        return ResidentModel(_frozen(checked(decoder, folder)), compute)
    return ResidentModel(_frozen(load_checked(folder, device)), compute)


def load_checked(folder: Path, device: torch.device) -> Decoder:
    """The model of a folder in float32. Raises ModelFileError, also for weights that are no numbers."""
    return checked(load_model(folder, device, torch.float32), folder)


def checked(decoder: Decoder, folder: Path) -> Decoder:
    for name, parameter in decoder.named_parameters():
        if not all(bool(torch.isfinite(part).all()) for part in parameter.detach().reshape(-1).split(_TOGETHER)):
            raise ModelFileError(
                f"{name} holds NaN or infinity", str(folder),
                "the model is broken: fetch it again, or train it again",
            )  # fmt: skip
    return decoder


def _frozen(decoder: Decoder) -> Decoder:
    return decoder.requires_grad_(False).eval()


class ResidentModel:
    """decoder: frozen, in memory. `hidden` is asked for each batch alone."""

    streamed = False

    def __init__(self, decoder: Decoder, compute: torch.dtype = torch.float32):
        self.decoder, self.compute = decoder, compute

    def hidden(self, batches: Sequence[Batch]) -> list[Tensor]:
        """[N, D] of each batch, at its labels that count."""
        device = self.decoder.embedding.weight.device
        return [self._one(batch.to(device)) for batch in batches]

    @torch.no_grad()
    def _one(self, batch: Batch) -> Tensor:
        with self._products(batch):
            hidden_BTD, _ = self.decoder(batch.tokens_BT, batch.positions_BT, batch.segments_BT, layout=batch.layout)
        return counted_rows(hidden_BTD, batch)

    @contextmanager
    def _products(self, batch: Batch) -> Iterator[None]:
        kind = batch.tokens_BT.device.type
        with torch.autocast(kind, dtype=self.compute, enabled=self.compute != torch.float32):
            yield

    def close(self) -> None:
        """Nothing is open."""


class StreamedModel(ResidentModel):
    """decoder: a `StreamedDecoder`; a layer is read once for all batches that are asked about together."""

    streamed = True

    @torch.no_grad()
    def hidden(self, batches: Sequence[Batch]) -> list[Tensor]:
        decoder = self.decoder
        assert isinstance(decoder, StreamedDecoder)
        decoder.stream.store.source.check()
        device = decoder.embedding.weight.device
        moved = [batch.to(device) for batch in batches]
        contexts = [
            make_context(batch.tokens_BT, decoder.rotary, batch.positions_BT, batch.segments_BT, layout=batch.layout)
            for batch in moved
        ]
        with self._products(moved[0]):
            states = []
            for batch, context in zip(moved, contexts, strict=True):
                x_BTD = decoder.embedding(batch.tokens_BT)
                for add in decoder.inputs.values():
                    x_BTD = add(x_BTD, context)
                states.append(x_BTD)
            for position, index in enumerate(decoder.stack.order):
                decoder.stack.load(position)
                for number, context in enumerate(contexts):
                    draw_at(context, position)
                    states[number] = decoder.blocks[index](states[number], context, None)[0]
            for number, batch in enumerate(moved):
                states[number] = counted_rows(decoder.norm(states[number]), batch)
        return states

    def close(self) -> None:
        assert isinstance(self.decoder, StreamedDecoder)
        self.decoder.close()


class Following:
    """A `Teacher` whose whole distributions are followed. temperature: of both sides."""

    def __init__(self, model: ResidentModel, divergence: Divergence, temperature: float):
        self.model, self._divergence, self._temperature = model, divergence, temperature

    def look(self, batches: list[Batch]) -> list[Batch]:
        """Only where a layer read for one of them serves the others too."""
        if not self.model.streamed:
            return batches
        hidden = self.model.hidden(batches)
        return [lesson(batch, told) for batch, told in zip(batches, hidden, strict=True)]

    def target(self, batch: Batch) -> Target:
        told = batch.told if isinstance(batch, Lesson) else None
        hidden_ND = told if isinstance(told, Tensor) else self.model.hidden([batch])[0]
        return Whole(hidden_ND, self.model.decoder.head, self._divergence, self._temperature)

    def close(self) -> None:
        self.model.close()
