"""A scheduler with the texts that it writes, of one model with one adapter or none. Everything here is on one thread.

Adapters of one base share its weights and have a scheduler, and so a cache, each: what a cache holds was computed with
its adapter, and a step of one scheduler needs one adapter for all its texts. So texts of one adapter are decoded
together, those of different ones take turns, a step each, and an adapter is switched only when the turn passes on. (One
batch over several adapters would read the base once for all of them, and multiply each row by its own adapter: kernels
that there are for GPUs, arXiv 2310.18547, and not here.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request, Speed
from shoestring.generate.sampling import Chances
from shoestring.generate.scheduler import Scheduler
from shoestring.generate.text import TextStream
from shoestring.generate.texts import as_text
from shoestring.models.adapters import active_adapter, switch

PREFILL_TOKENS = 256  # of one step: texts that are being written wait for a long prompt no longer than that takes


@dataclass(frozen=True)
class Piece:
    """What a token brought to a text. token: None where the text was ended without one. reason: why it is the last: a
    `StopReason`, "time" or "shutdown". held: tokens of the prompt that were not read again."""

    text: str = ""
    token: int | None = None
    reason: str | None = None
    chances: Chances | None = None
    held: int = 0


@dataclass(eq=False)
class Text:
    """One text that is asked for. owner, index: whose, and which of the owner's."""

    request: Request
    owner: Any
    index: int = 0
    id: int = -1
    stream: TextStream | None = field(default=None, repr=False)


class Base:
    """A model in memory; `active` is the adapter at work in it, by its name there."""

    def __init__(self, language: LanguageModel):
        self.language = language
        self.active = active_adapter(language.decoder)

    def activate(self, adapter: str | None) -> None:
        if adapter != self.active:
            switch(self.language.decoder, adapter)
            self.active = adapter


class Lane:
    """slots: texts at once. capacity: tokens of each, prompt and answer. adapter: its name in the base."""

    def __init__(self, base: Base, slots: int, capacity: int, adapter: str | None = None):
        self.base, self.adapter, self.capacity = base, adapter, capacity
        language = base.language
        cache = language.decoder.new_cache(slots, capacity)
        self.scheduler = Scheduler(
            language.decoder, cache, language.tokenizer.vocabulary_size, PREFILL_TOKENS, language.speculation
        )
        self._texts: dict[int, Text] = {}

    @property
    def slots(self) -> int:
        return self.scheduler.slots

    @property
    def speed(self) -> Speed:
        return self.scheduler.speed

    @property
    def busy(self) -> bool:
        return not self.scheduler.idle

    def begin(self, text: Text) -> None:
        """Raises ConfigError for a prompt that has no room."""
        text.id = self.scheduler.add(text.request)
        text.stream = TextStream(self.base.language.tokenizer, text.request.sampling.stop)
        self._texts[text.id] = text

    def cancel(self, text: Text) -> None:
        """End a text; one that has ended may be cancelled too."""
        if self._texts.pop(text.id, None) is not None:
            self.scheduler.cancel(text.id)

    def step(self) -> list[tuple[Text, Piece]]:
        """One pass over the model."""
        self.base.activate(self.adapter)
        pieces = []
        for event in self.scheduler.step():
            text = self._texts.get(event.request)
            if text is None or text.stream is None:  # of the same step, behind a stop string
                continue
            told = as_text(event, text.index, text.stream)
            if told.reason is not None:
                del self._texts[text.id]
            if told.reason == "stop_string":
                self.scheduler.cancel(text.id)
            pieces.append((text, Piece(told.text, told.token, told.reason, told.chances, told.held)))
        return pieces

    def give_up(self) -> list[Text]:
        """End all texts -> them."""
        texts, self._texts = list(self._texts.values()), {}
        for text in texts:
            self.scheduler.cancel(text.id)
        return texts
