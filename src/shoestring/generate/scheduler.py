"""Requests decoded together on one model, joining and leaving between any two tokens (continuous batching).

Each running request has a slot of the cache; more requests than slots wait in order. A step is one pass over the model
(Orca, OSDI 2022) whose tokens are packed, [1, N]: the newest token of every running text, and beside them prompts, in
chunks within a budget (Sarathi, arXiv 2308.16369), so that long prompts need bounded memory. To the scheduler both are
one thing: a text's tokens that its slot does not hold yet. A freed slot keeps what it holds, and a request whose prompt
begins alike goes on from there. Plain twin: run each whole text without a cache at every step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoestring.core.errors import ConfigError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.request import Request, Speed, StopReason, TokenEvent, check_prompt
from shoestring.generate.sampling import Draw, chances, choose
from shoestring.models.decoder import Decoder
from shoestring.nn.cache import Cache

PREFILL_TOKENS = 1024  # of one pass, at most: beyond the newest tokens of running texts it reads no more of prompts


@dataclass(eq=False)
class _Text:
    """A request with its tokens, prompt and new. slot: -1 while it waits. limit: of new tokens."""

    id: int
    request: Request
    limit: int
    slot: int = -1
    tokens: list[int] = field(default_factory=list)

    @property
    def new(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


class Scheduler:
    """cache: from `decoder.new_cache(slots, capacity)`; what it holds is forgotten. speed: figures so far.

    vocabulary: ids from here on are never chosen (rows of the embedding that the tokenizer has no token for).
    A request's tokens do not depend on what runs beside it, but for the last bits in which a batch computes otherwise.
    """

    def __init__(
        self, decoder: Decoder, cache: Cache, vocabulary: int | None = None, prefill_tokens: int = PREFILL_TOKENS
    ):
        self.decoder = decoder
        self.cache = cache
        self.vocabulary = vocabulary
        self.prefill_tokens = prefill_tokens
        self.speed = Speed()
        self._waiting: deque[_Text] = deque()
        self._running: dict[int, _Text] = {}
        self._latest: list[_Text | None] = [None] * cache.batch  # of each slot, running or ended
        self._ids = 0

    @property
    def slots(self) -> int:
        """How many requests run at once."""
        return self.cache.batch

    @property
    def running(self) -> list[int]:
        """Requests that have a slot, in the order in which they came."""
        return list(self._running)

    @property
    def waiting(self) -> list[int]:
        """Requests that wait for one."""
        return [text.id for text in self._waiting]

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._running and not self._waiting

    def reserve(self, tokens: int) -> None:
        """Let slots hold texts of so many tokens, if the model's context does: the only time that contents move."""
        context = self.decoder.config.context
        if self.cache.capacity < min(tokens, context):
            self.cache.grow(min(max(tokens, 2 * self.cache.capacity), context))

    def add(self, request: Request) -> int:
        """-> the request's id. Raises ConfigError for a prompt that is empty, or fills the context or a slot."""
        room = min(self.decoder.config.context, self.cache.capacity)
        check_prompt(request.prompt, room)
        limit = min(request.sampling.max_tokens, room - len(request.prompt))
        text = _Text(self._ids, request, limit, tokens=list(request.prompt))
        self._ids += 1
        self._waiting.append(text)
        return text.id

    def cancel(self, id: int) -> None:
        """End a request now, and free its slot. One that has ended may be cancelled too."""
        self._running.pop(id, None)
        self._waiting = deque(text for text in self._waiting if text.id != id)

    def run(self) -> Iterator[TokenEvent]:
        """Step until there is nothing to do."""
        while not self.idle:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[TokenEvent]:
        """One pass over the model: an event for each text that got a token, in the order in which they came.

        When it is interrupted, every text is as it was before, and may be stepped again.
        """
        started = time.perf_counter()
        self._admit()
        parts = self._parts()
        if not parts:
            return []
        before = [(text, self.cache.lengths[text.slot], len(text.tokens)) for text, _ in parts]
        read = sum(count for text, count in parts if text.new == 0)
        written = sum(text.new > 0 for text, _ in parts)
        try:
            events = self._take(parts)
        except BaseException:
            for text, length, tokens in before:
                del text.tokens[tokens:]
                self.cache.abandon(text.slot, length)
            raise
        for event in events:
            if event.reason is not None:
                del self._running[event.request]
        self.speed.count(read, written, time.perf_counter() - started)
        return events

    def held(self, tokens: list[int]) -> tuple[int, int]:
        """The slot that holds most of a text's beginning, and how many of its tokens can be taken from there."""
        counts = []
        for slot, latest in enumerate(self._latest):
            plain = latest is not None and latest.request.external is None
            shared = _common(latest.tokens[: self.cache.lengths[slot]], tokens) if latest is not None and plain else 0
            counts.append(self.cache.apart(slot, shared))
        slot = max(range(len(counts)), key=counts.__getitem__)
        return slot, counts[slot]

    def give(self, tokens: list[int], fill: Callable[[dict[str, Tensor]], object]) -> None:
        """Let a free slot hold `tokens` as if they had been read. fill: writes what the cache keeps of them.

        Where it raises, the slot holds nothing. Raises ConfigError where no slot is free.
        """
        taken = {text.slot for text in self._running.values()}
        free = [slot for slot in range(self.cache.batch) if slot not in taken]
        if not free:
            raise ConfigError("every slot is in use", hint="give the scheduler another one, or wait for a text to end")
        slot = min(free, key=self.cache.lengths.__getitem__)
        self.reserve(len(tokens) + 1)
        self.cache.cut(slot, 0)
        self._latest[slot] = None
        fill(self.cache.slot_tensors(slot, len(tokens)))
        self.cache.hold(slot, len(tokens))
        self._latest[slot] = _Text(-1, Request(list(tokens), SamplingConfig()), 0, slot, list(tokens))

    def _admit(self) -> None:
        """Give waiting requests the free slots."""
        taken = {text.slot for text in self._running.values()}
        free = [slot for slot in range(self.cache.batch) if slot not in taken]
        while self._waiting and free:
            text = self._waiting.popleft()
            kept, slot = max(((self._shared(slot, text), slot) for slot in free), key=self._worth)
            self.cache.cut(slot, kept)
            free.remove(slot)
            text.slot = slot
            self._latest[slot] = self._running[text.id] = text

    def _shared(self, slot: int, text: _Text) -> int:
        """Tokens that a free slot holds of a prompt's start, never all of it: the last one gives the next token."""
        latest = self._latest[slot]
        if latest is None or latest.request.external is not text.request.external:
            return 0
        shared = _common(latest.tokens[: self.cache.lengths[slot]], text.tokens[:-1])
        return self.cache.cuttable(slot, shared)

    def _worth(self, choice: tuple[int, int]) -> tuple[int, int]:
        """What a slot saves, less what is lost with it; then the lowest, so that running slots stand together."""
        kept, slot = choice
        return 2 * kept - self.cache.lengths[slot], -slot

    def _parts(self) -> list[tuple[_Text, int]]:
        """Whose tokens the next pass reads, and how many: single ones first, by slot, then prompts as they came."""
        texts = [(text, len(text.tokens) - self.cache.lengths[text.slot]) for text in self._running.values()]
        parts = sorted((part for part in texts if part[1] == 1), key=lambda part: part[0].slot)
        budget = max(self.prefill_tokens - len(parts), 1)
        for text, pending in texts:
            if pending > 1 and budget > 0:
                parts.append((text, min(pending, budget)))
                budget -= pending
        return parts

    def _take(self, parts: list[tuple[_Text, int]]) -> list[TokenEvent]:
        """Read the parts, and give each text that is read to its end its next token."""
        hidden_BTD = self._read(parts)
        ends = torch.tensor([count for _, count in parts]).cumsum(0) - 1
        ready = [i for i, (text, _) in enumerate(parts) if self.cache.lengths[text.slot] == len(text.tokens)]
        if not ready:
            return []
        ready.sort(key=lambda i: parts[i][0].id)
        # Indexed, which copies: a view would keep the whole pass.
        hidden_BD = hidden_BTD[0, ends[ready].to(hidden_BTD.device)]
        texts = [parts[i][0] for i in ready]
        logits_BV = self.decoder.head(hidden_BD)[:, : self.vocabulary]
        draws = [_draw(text) for text in texts]
        events, tokens = [], choose(logits_BV, draws)
        found = chances(logits_BV, tokens, [text.request.sampling.logprobs for text in texts])
        for text, token, chance in zip(texts, tokens, found, strict=True):
            text.tokens.append(token)
            events.append(TokenEvent(text.id, token, self._reason(text, token), chance))
        return events

    def _read(self, parts: list[tuple[_Text, int]]) -> Tensor:
        """One pass over the parts' tokens, which their slots then hold -> hidden states [1, N, D]."""
        starts = [self.cache.lengths[text.slot] for text, _ in parts]
        pieces = [text.tokens[start : start + count] for (text, count), start in zip(parts, starts, strict=True)]
        rows = self.cache.rows([text.slot for text, _ in parts], [count for _, count in parts])
        tokens = [token for piece in pieces for token in piece]
        tokens_BT = torch.tensor([tokens], device=self.decoder.embedding.weight.device)
        hidden_BTD, _ = self.decoder(tokens_BT, cache=rows, external_BTE=self._vectors(parts, starts))
        return hidden_BTD

    def _vectors(self, parts: list[tuple[_Text, int]], starts: list[int]) -> Tensor | None:
        """External vectors [1, N, E] of a pass's tokens, zeros for texts that have none."""
        sources = [text.request.external for text, _ in parts]
        width = next((source.width for source in sources if source is not None), None)
        if width is None:
            return None
        found = [torch.zeros(count, width) for _, count in parts]
        for i, ((text, count), start, source) in enumerate(zip(parts, starts, sources, strict=True)):
            if source is not None:
                found[i] = torch.from_numpy(source.vectors(text.tokens, start, start + count))
        return torch.cat(found).unsqueeze(0).to(self.decoder.embedding.weight.device)

    def _reason(self, text: _Text, token: int) -> StopReason | None:
        request = text.request
        if token in request.ends:
            return "stop_token"
        if request.guide is not None:
            reason = request.guide.reason(text.tokens[len(request.prompt) :], request.ends)
            if reason is not None:
                return reason
        if text.new >= text.limit:
            return "max_tokens" if text.new == request.sampling.max_tokens else "context"
        return None


def _common(held: list[int], wanted: list[int]) -> int:
    """How many tokens two texts have in common from their beginning on."""
    for shared, (one, other) in enumerate(zip(held, wanted, strict=False)):
        if one != other:
            return shared
    return min(len(held), len(wanted))


def _draw(text: _Text) -> Draw:
    request = text.request
    return Draw(request.sampling, request.row, text.new, text.tokens, request.ends, request.guide)
