"""A smaller model with the same tokenizer that guesses what a larger one will choose.

It chooses as the larger one does, with the same settings and the same random number for each place: where both would
choose from about the same distribution, they choose the same token. Its cache has a slot for each of the scheduler's;
what it guessed wrongly is cut off, and what it has not read yet is read when it is asked next, the prompt too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoestring.generate.lookup import common
from shoestring.generate.sampling import Draw, choose
from shoestring.models.decoder import Decoder

if TYPE_CHECKING:
    from shoestring.generate.speculation import Wanted

_FIRST_CAPACITY = 256
_READ = 1024  # tokens of one pass at most
_STEADY = 4  # tokens of a text that it has not read, at most, where its time is that of every guess


class Draft:
    """A `Guesser` with a model. vocabulary: ids from here on are never guessed."""

    def __init__(self, decoder: Decoder, slots: int, vocabulary: int | None, clock: Callable[[], float]):
        self.decoder = decoder
        self.seconds: float | None = None
        self._vocabulary, self._clock = vocabulary, clock
        self._cache = decoder.new_cache(slots, min(_FIRST_CAPACITY, decoder.config.context))
        self._held: list[list[int]] = [[] for _ in range(slots)]  # tokens that each slot has read

    def guess(self, texts: Sequence[Wanted], most: int) -> list[list[int]]:
        """`most` tokens for each text, fewer where its end was guessed; none where the text is longer than this model's
        context."""
        self.seconds = None
        context = self.decoder.config.context
        found: dict[int, list[int]] = {text.slot: [] for text in texts}
        fitting = sorted((text for text in texts if len(text.draw.tokens) + most <= context), key=lambda one: one.slot)
        if fitting:
            try:
                self._guess(fitting, found, most)
            except BaseException:  # what the slots hold is not known
                for slot in range(len(self._held)):
                    self._cache.cut(slot, 0)
                    self._held[slot] = []
                raise
        return [found[text.slot] for text in texts]

    @torch.inference_mode()
    def _guess(self, texts: list[Wanted], found: dict[int, list[int]], most: int) -> None:
        longest = max(len(text.draw.tokens) for text in texts) + most
        if longest > self._cache.capacity:
            self._cache.grow(min(max(longest, 2 * self._cache.capacity), self.decoder.config.context))
        unread = [self._cut(text.slot, list(text.draw.tokens)) for text in texts]
        started = self._clock()
        logits_BV = self._read([text.slot for text in texts], unread)
        for count in range(most):
            tokens = choose(logits_BV, [_later(text.draw, found[text.slot]) for text in texts])
            going_on = []
            for text, token in zip(texts, tokens, strict=True):
                found[text.slot].append(token)
                if token not in text.draw.ends and not _ended(text.draw, found[text.slot]):
                    going_on.append(text)
            texts = going_on
            if not texts or count == most - 1:
                break
            slots = [text.slot for text in texts]
            logits_BV = self._read(slots, [found[slot][-1:] for slot in slots])
        if max(map(len, unread)) <= _STEADY:
            self.seconds = (self._clock() - started) / max(map(len, found.values()))

    def _cut(self, slot: int, tokens: list[int]) -> list[int]:
        """Let a slot hold a beginning of these tokens, not all -> the others."""
        kept = self._cache.cuttable(slot, common(self._held[slot], tokens[:-1]))
        self._cache.cut(slot, kept)
        self._held[slot] = tokens[:kept]
        return tokens[kept:]

    def _read(self, slots: list[int], unread: list[list[int]]) -> Tensor:
        """Logits [B, V] behind what each of these slots, in their order, reads now; long texts in chunks."""
        share, parts = max(_READ // len(slots), 1), []
        for slot, tokens in zip(slots, unread, strict=True):
            start = 0
            while len(tokens) - start > share:
                end = min(start + _READ, len(tokens) - 1)
                self._pass([slot], [tokens[start:end]])
                start = end
            parts.append(tokens[start:])
        return self._pass(slots, parts)

    def _pass(self, slots: list[int], parts: list[list[int]]) -> Tensor:
        device = self.decoder.embedding.weight.device
        rows = self._cache.rows(slots, [len(part) for part in parts])
        tokens_BT = torch.tensor([[token for part in parts for token in part]], device=device)
        hidden_BTD, _ = self.decoder(tokens_BT, cache=rows)
        for slot, part in zip(slots, parts, strict=True):
            self._held[slot] = self._held[slot] + part
        ends = torch.tensor([len(part) for part in parts]).cumsum(0) - 1
        return self.decoder.head(hidden_BTD[0, ends.to(device)])[:, : self._vocabulary]


def _later(draw: Draw, guess: list[int]) -> Draw:
    """The draw behind a guess."""
    return draw._replace(step=draw.step + len(guess), tokens=[*draw.tokens, *guess])


def _ended(draw: Draw, guess: list[int]) -> bool:
    return draw.guide is not None and draw.guide.reason([*draw.new, *guess], draw.ends) is not None
