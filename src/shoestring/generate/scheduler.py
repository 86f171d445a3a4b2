"""Requests decoded together on one model, joining and leaving between any two tokens (continuous batching).

Each running request has a slot of the cache; more requests than slots wait in order. A step is one pass over the model
(Orca, OSDI 2022) whose tokens are packed, [1, N]: the newest token of every running text, and beside them prompts, in
chunks within a budget (Sarathi, arXiv 2308.16369), so that long prompts need bounded memory. To the scheduler both are
one thing: a text's tokens that its slot does not hold yet. A slot keeps what it holds, and a request whose prompt
begins alike goes on from there, or from a copy; while that is being read for another one, it waits. Where tokens are
guessed ahead (`speculation`), a pass reads them too, and what was guessed wrongly is cut off again. Plain twin: run
each whole text without a cache at every step.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoestring.core.errors import ConfigError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.lookup import common
from shoestring.generate.request import Request, Speed, StopReason, TokenEvent, check_prompt
from shoestring.generate.sampling import Draw, chances, choose
from shoestring.generate.speculation import Speculation, Wanted
from shoestring.models.decoder import Decoder
from shoestring.nn.cache import Cache

PREFILL_TOKENS = 1024  # of one pass, at most: beyond the newest tokens of running texts it reads no more of prompts
WORTH_COPYING = 32  # tokens of a common beginning, at least: fewer are as soon read


@dataclass(eq=False)
class _Text:
    """A request with its tokens, prompt and new. slot: -1 while it waits. limit: of new tokens. held: tokens that the
    slot held when the request got it."""

    id: int
    request: Request
    limit: int
    slot: int = -1
    held: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def new(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


@dataclass
class _Part:
    """What a pass reads of a text: the next `count` of its tokens, and the guess of those behind."""

    text: _Text
    count: int
    guess: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.count + len(self.guess)

    @property
    def rows(self) -> int:
        """Of the logits that are needed: behind the text, and behind each token of the guess."""
        return 1 + len(self.guess)

    def draws(self) -> list[Draw]:
        """For the token of each row."""
        request, tokens, new = self.text.request, self.text.tokens, self.text.new
        behind = range(self.rows)
        wholes = [[*tokens, *self.guess[:i]] if i else tokens for i in behind]
        return [
            Draw(request.sampling, request.row, new + i, wholes[i], request.ends, request.guide) for i in behind
        ]


class Scheduler:
    """cache: from `decoder.new_cache(slots, capacity)`; what it holds is forgotten. speed: figures so far.

    vocabulary: ids from here on are never chosen (rows of the embedding that the tokenizer has no token for).
    speculation: how tokens are guessed ahead, if at all.
    A request's tokens do not depend on what runs beside it, but for the last bits in which a batch computes otherwise.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        vocabulary: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        speculation: Speculation | None = None,
    ):
        self.decoder = decoder
        self.cache = cache
        self.vocabulary = vocabulary
        self.prefill_tokens = prefill_tokens
        self.speed = Speed()
        self.speculate(speculation)
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

    def speculate(self, speculation: Speculation | None) -> None:
        """Guess ahead in this way from the next step on; None: no more."""
        self.speculation = speculation
        self._guesser = None if speculation is None else speculation.guesser(self.slots, self.vocabulary)

    def reserve(self, tokens: int) -> None:
        """Let slots hold texts of so many tokens, if the model's context does: the only time that contents move."""
        context = self.decoder.config.context
        if self.cache.capacity < min(tokens, context):
            self.cache.grow(min(max(tokens, 2 * self.cache.capacity), context))

    def add(self, request: Request) -> int:
        """-> the request's id. Raises ConfigError for a prompt that is empty, or fills the context or a slot."""
        room = min(self.decoder.config.context, self.cache.capacity)
        check_prompt(request.prompt, room, self.decoder.config.vocabulary)
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
        """One pass over the model: an event for each token that a text got, texts in the order in which they came.

        When it is interrupted, every text is as it was before, and may be stepped again.
        """
        started = time.perf_counter()
        self._admit()
        parts = self._parts()
        if not parts:
            return []
        texts = [part.text for part in parts]
        before = [(text, self.cache.lengths[text.slot], len(text.tokens)) for text in texts]
        read = sum(part.count for part in parts if part.text.new == 0)
        writing = [(text, tokens) for text, _, tokens in before if text.new > 0]
        try:
            self._guess(parts)
            events = self._take(parts)
        except BaseException:
            for text, length, tokens in before:
                del text.tokens[tokens:]
                self.cache.abandon(text.slot, length)
            raise
        for event in events:
            if event.reason is not None:
                del self._running[event.request]
        written = sum(max(len(text.tokens) - tokens, 1) for text, tokens in writing)
        self.speed.count(read, written, time.perf_counter() - started)
        return events

    def held(self, tokens: list[int]) -> tuple[int, int]:
        """The slot that holds most of a text's beginning, and how many of its tokens can be taken from there."""
        counts = []
        for slot, latest in enumerate(self._latest):
            plain = latest is not None and latest.request.external is None
            shared = common(latest.tokens[: self.cache.lengths[slot]], tokens) if latest is not None and plain else 0
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
        self._latest[slot] = _Text(-1, Request(list(tokens), SamplingConfig()), 0, slot, tokens=list(tokens))

    def _admit(self) -> None:
        """Give waiting requests the free slots, those that came first before others."""
        taken = {text.slot for text in self._running.values()}
        free = [slot for slot in range(self.cache.batch) if slot not in taken]
        for text in list(self._waiting):
            if not free:
                return
            shared = [self._shared(slot, text) for slot in range(self.cache.batch)]
            kept, slot = max(((self.cache.cuttable(slot, shared[slot]), slot) for slot in free), key=self._worth)
            copied, source = max((self.cache.apart(slot, count), -slot) for slot, count in enumerate(shared))
            if self._awaits(text, shared):
                free.remove(max(free))  # is kept for it
                continue
            if copied >= kept + WORTH_COPYING:
                slot = min(free, key=self.cache.lengths.__getitem__)
                self._copy(-source, slot, copied)
                text.held = copied
            else:
                self.cache.cut(slot, kept)
                text.held = kept
            free.remove(slot)
            self._waiting.remove(text)
            text.slot = slot
            self._latest[slot] = self._running[text.id] = text

    def _awaits(self, text: _Text, shared: list[int]) -> bool:
        """Whether much more of a prompt's start than any slot holds is being read for another request."""
        for other in self._running.values():
            read = self.cache.lengths[other.slot]
            if other.request.external is text.request.external and read < len(other.tokens) - 1:
                coming = common(other.tokens, text.tokens[:-1])
                elsewhere = max((count for slot, count in enumerate(shared) if slot != other.slot), default=0)
                if read < coming >= elsewhere + WORTH_COPYING:
                    return True
        return False

    def _copy(self, source: int, slot: int, count: int) -> None:
        """Let a free slot hold what another one does of its first tokens."""
        self.cache.cut(slot, 0)
        self._latest[slot] = None
        views = self.cache.slot_tensors(slot, count)
        for name, tensor in self.cache.slot_tensors(source, count).items():
            views[name].copy_(tensor)
        self.cache.hold(slot, count)

    def _shared(self, slot: int, text: _Text) -> int:
        """Tokens that a slot holds of a prompt's start, never all of it: the last one gives the next token."""
        latest = self._latest[slot]
        if latest is None or latest.request.external is not text.request.external:
            return 0
        return common(latest.tokens[: self.cache.lengths[slot]], text.tokens[:-1])

    def _worth(self, choice: tuple[int, int]) -> tuple[int, int]:
        """What a slot saves, less what is lost with it; then the lowest, so that running slots stand together."""
        kept, slot = choice
        return 2 * kept - self.cache.lengths[slot], -slot

    def _parts(self) -> list[_Part]:
        """What the next pass reads: single tokens first, by slot, then prompts as they came."""
        texts = [_Part(text, len(text.tokens) - self.cache.lengths[text.slot]) for text in self._running.values()]
        parts = sorted((part for part in texts if part.count == 1), key=lambda part: part.text.slot)
        budget = max(self.prefill_tokens - len(parts), 1)
        for part in texts:
            if part.count > 1 and budget > 0:
                parts.append(_Part(part.text, min(part.count, budget)))
                budget -= part.count
        return parts

    def _guess(self, parts: list[_Part]) -> None:
        """Guess ahead for all texts, where none is being read."""
        if self.speculation is None or self._guesser is None or any(part.count > 1 for part in parts):
            return
        spare = self.prefill_tokens // len(parts) - 1
        rooms = [min(part.text.limit - part.text.new - 1, spare) for part in parts]
        texts = [Wanted(part.text.id, part.text.slot, part.draws()[0]) for part in parts]
        for part, guess in zip(parts, self.speculation.guess(self._guesser, texts, rooms), strict=True):
            part.guess = guess

    def _take(self, parts: list[_Part]) -> list[TokenEvent]:
        """Read the parts, and give each text that is read to its end its next tokens."""
        started = self.speculation.clock() if self.speculation is not None else 0.0
        ends = list(itertools.accumulate(part.size for part in parts))
        ready = [i for i, part in enumerate(parts) if self._ends_text(part)]
        ready.sort(key=lambda i: parts[i].text.id)
        places = [place for i in ready for place in range(ends[i] - parts[i].rows, ends[i])]
        if (found := self._read(parts, places)) is None:
            return []
        logits_BV = found[:, : self.vocabulary]
        chosen = self.decoder.agreed(choose(logits_BV, [draw for i in ready for draw in parts[i].draws()]))
        kept, asked, at = list[tuple[_Text, int, StopReason | None]](), list[int | None](), 0
        for part in (parts[i] for i in ready):
            reasons = self._keep(part, chosen[at : at + part.rows])
            kept += [(part.text, at + i, reason) for i, reason in enumerate(reasons)]
            asked += [part.text.request.sampling.logprobs if i < len(reasons) else None for i in range(part.rows)]
            at += part.rows
        seen = chances(logits_BV, chosen, asked)
        if self.speculation is not None and all(part.count == 1 for part in parts):
            self.speculation.passed(sum(part.size for part in parts), started)
        return [TokenEvent(text.id, chosen[row], reason, seen[row], text.held) for text, row, reason in kept]

    def _ends_text(self, part: _Part) -> bool:
        """Whether a text is read to its end by this part."""
        return self.cache.lengths[part.text.slot] + part.count == len(part.text.tokens)

    def _keep(self, part: _Part, chosen: list[int]) -> list[StopReason | None]:
        """Give a text those of the tokens chosen for it that stand: the first, and each behind a guess that was right,
        up to the text's end -> the reasons of ending. Its slot then holds nothing else."""
        text, reasons = part.text, list[StopReason | None]()
        for token, guessed in zip(chosen, [*part.guess, None], strict=True):
            text.tokens.append(token)
            reasons.append(self._reason(text, token))
            if reasons[-1] is not None or token != guessed:
                break
        if part.guess and self.speculation is not None:
            right = common(part.guess, chosen[: len(reasons)])
            self.speculation.judged(right, min(len(reasons), len(part.guess)) - right)
            self.speed.guessed += len(part.guess)
            self.speed.right += right
            held = len(text.tokens) - 1
            if self.cache.lengths[text.slot] > held:
                self.cache.cut(text.slot, self.cache.cuttable(text.slot, held))
        return reasons

    def _read(self, parts: list[_Part], places: list[int]) -> Tensor | None:
        """One pass over the parts' tokens, which their slots then hold -> logits [n, V] behind those at n places, None
        where there is none."""
        starts = [self.cache.lengths[part.text.slot] for part in parts]
        wholes = [[*part.text.tokens, *part.guess] if part.guess else part.text.tokens for part in parts]
        pieces = [whole[start : start + part.size] for part, whole, start in zip(parts, wholes, starts, strict=True)]
        rows = self.cache.rows([part.text.slot for part in parts], [part.size for part in parts])
        tokens = [token for piece in pieces for token in piece]
        tokens_BT = torch.tensor([tokens], device=self.decoder.embedding.weight.device)
        vectors = self._vectors(parts, wholes, starts)
        if places:
            return self.decoder.next_logits(tokens_BT, places, rows, vectors)
        self.decoder(tokens_BT, cache=rows, external_BTE=vectors)
        return None

    def _vectors(self, parts: list[_Part], wholes: list[list[int]], starts: list[int]) -> Tensor | None:
        """External vectors [1, N, E] of a pass's tokens, zeros for texts that have none."""
        sources = [part.text.request.external for part in parts]
        width = next((source.width for source in sources if source is not None), None)
        if width is None:
            return None
        found = [torch.zeros(part.size, width) for part in parts]
        for i, (part, whole, start, source) in enumerate(zip(parts, wholes, starts, sources, strict=True)):
            if source is not None:
                found[i] = torch.from_numpy(source.vectors(whole, start, start + part.size))
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
