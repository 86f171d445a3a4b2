"""Cached decoding of a batch of prompts, one token a row and step.

Prompts may differ in length: they are padded on the right, and segment −1 keeps padding out of the cache.
They are read in chunks, so a long prompt needs the memory of a chunk and its keys and values, and the head
sees last positions only. Rows that end leave the batch. Plain twin: run the whole sequence without a cache
at every step and take the last logits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shoestring.core.errors import ConfigError
from shoestring.data.external import External
from shoestring.generate.config import SamplingConfig
from shoestring.generate.sampling import Sampler
from shoestring.models.decoder import Decoder
from shoestring.nn.cache import Cache
from shoestring.nn.context import PADDING

StopReason = Literal["stop_token", "stop_string", "max_tokens", "context", "interrupted"]

PREFILL_TOKENS = 1024  # tokens of one prefill pass over all rows, padding included


@dataclass(frozen=True)
class TokenEvent:
    """Row `row` got `token`. reason: why this is the row's last token, None while it goes on."""

    row: int
    token: int
    reason: StopReason | None = None


@dataclass
class Speed:
    """Tokens and seconds of reading the prompts and of writing; the first new token belongs to reading."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of all rows per second, None when there was but one step."""
        return self.new_tokens / self.new_seconds if self.new_seconds and self.new_tokens else None


class Decoding:
    """One batch being decoded: iterate over its `TokenEvent`s, rows in order within a step.

    prompts: token ids of each row, at least one each. cache: may already hold the first `cache.lengths[b]`
    tokens of prompt b, fewer than all. rows: numbers of the rows in the sampling seed's stream, by default
    0, 1, ... vocabulary: ids from here on are never chosen (rows of the embedding that the tokenizer has no
    token for). external: the vectors that the decoder's input adapter takes. Raises ConfigError for a prompt
    that is empty or fills the model's context.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: list[list[int]],
        sampling: SamplingConfig,
        stop_tokens: frozenset[int] = frozenset(),
        *,
        rows: list[int] | None = None,
        cache: Cache | None = None,
        vocabulary: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        external: External | None = None,
    ):
        context = decoder.config.context
        for prompt in prompts:
            check_prompt(prompt, context)
        self.decoder = decoder
        self.prompts = prompts
        self.limits = [min(sampling.max_tokens, context - len(prompt)) for prompt in prompts]
        self.max_tokens = sampling.max_tokens
        self.stop_tokens = stop_tokens | frozenset(sampling.stop_tokens)
        self.speed = Speed()
        self.cache = cache
        self.vocabulary = vocabulary
        self.prefill_tokens = prefill_tokens
        self.external = external
        self._ids = [list(prompt) for prompt in prompts] if external is not None else []
        self._active = list(range(len(prompts)))
        self._stopped: set[int] = set()
        self._counts = [0] * len(prompts)
        self._sampler = Sampler(sampling, rows if rows is not None else self._active, prompts)

    def stop(self, row: int) -> None:
        """Let a row end after the token that it just got."""
        self._stopped.add(row)

    def __iter__(self) -> Iterator[TokenEvent]:
        if not self._active:
            return
        started = time.perf_counter()
        hidden_BD = self._prefill()
        tokens = self._choose(hidden_BD)
        self.speed.prompt_seconds = time.perf_counter() - started
        while True:
            for row, token in zip(list(self._active), tokens, strict=True):
                self._counts[row] += 1
                reason = self._reason(row, token)
                if reason is not None:
                    self._stopped.add(row)
                yield TokenEvent(row, token, reason)
            started = time.perf_counter()
            tokens = self._drop_stopped(tokens)
            if not tokens:
                return
            tokens = self._choose(self._advance(tokens))
            self.speed.new_seconds += time.perf_counter() - started
            self.speed.new_tokens += len(tokens)

    def _reason(self, row: int, token: int) -> StopReason | None:
        if token in self.stop_tokens:
            return "stop_token"
        if self._counts[row] >= self.limits[row]:
            return "max_tokens" if self._counts[row] == self.max_tokens else "context"
        return None

    @torch.inference_mode()
    def _prefill(self) -> Tensor:
        """Read the prompts; the hidden state [B, D] of each row's last token."""
        capacity = max(len(prompt) + limit for prompt, limit in zip(self.prompts, self.limits, strict=True))
        if self.cache is None:
            self.cache = self.decoder.new_cache(len(self.prompts), capacity)
        rest = [prompt[held:] for prompt, held in zip(self.prompts, self.cache.lengths, strict=True)]
        if not all(rest):
            raise ValueError("the cache holds a whole prompt: nothing is left to compute the next token from")
        self.speed.prompt_tokens = sum(map(len, rest))
        device = self.decoder.embedding.weight.device
        chunk = max(1, self.prefill_tokens // len(rest))
        last: list[Tensor | None] = [None] * len(rest)
        for start in range(0, max(map(len, rest)), chunk):
            parts = [row[start : start + chunk] for row in rest]
            width = max(map(len, parts))
            padded = [part + [0] * (width - len(part)) for part in parts]
            segments_BT = None
            if any(len(part) < width for part in parts):
                marks = [[0] * len(part) + [PADDING] * (width - len(part)) for part in parts]
                segments_BT = torch.tensor(marks, device=device)
            tokens_BT = torch.tensor(padded, device=device)
            external_BTE = self._vectors(self.cache.lengths, parts, width)
            hidden_BTD, _ = self.decoder(
                tokens_BT, segments_BT=segments_BT, cache=self.cache, external_BTE=external_BTE
            )
            for row, part in enumerate(parts):
                if part:  # copied: a view would keep the whole chunk
                    last[row] = hidden_BTD[row, len(part) - 1].clone()
        return torch.stack([hidden for hidden in last if hidden is not None])

    @torch.inference_mode()
    def _advance(self, tokens: list[int]) -> Tensor:
        tokens_BT = torch.tensor(tokens, device=self.decoder.embedding.weight.device).unsqueeze(1)
        external_BTE = None
        if self.external is not None:
            for row, token in zip(self._active, tokens, strict=True):
                self._ids[row].append(token)
            assert self.cache is not None
            external_BTE = self._vectors(self.cache.lengths, [[token] for token in tokens], 1)
        hidden_BTD, _ = self.decoder(tokens_BT, cache=self.cache, external_BTE=external_BTE)
        return hidden_BTD[:, -1]

    def _vectors(self, starts: list[int], parts: list[list[int]], width: int) -> Tensor | None:
        """External vectors [B, width, E] of the tokens `parts` that follow the first starts[b] of each row."""
        if self.external is None:
            return None
        out = torch.zeros(len(parts), width, self.external.width)
        for index, (row, start, part) in enumerate(zip(self._active, starts, parts, strict=True)):
            if part:
                found = self.external.vectors(self._ids[row], start, start + len(part))
                out[index, : len(part)] = torch.from_numpy(found)
        return out.to(self.decoder.embedding.weight.device)

    @torch.inference_mode()
    def _choose(self, hidden_BD: Tensor) -> list[int]:
        return self._sampler.choose(self.decoder.head(hidden_BD)[:, : self.vocabulary])

    @torch.inference_mode()
    def _drop_stopped(self, tokens: list[int]) -> list[int]:
        """Take ended rows out of the batch; the tokens of the others. The last leave the cache as it is."""
        going = [index for index, row in enumerate(self._active) if row not in self._stopped]
        if going and len(going) < len(self._active):
            assert self.cache is not None
            self.cache.reorder(going)
            self._sampler.keep(going)
        self._active = [self._active[index] for index in going]
        return [tokens[index] for index in going]


def check_prompt(prompt: list[int], context: int) -> None:
    """Raises ConfigError for a prompt that leaves nothing to do, or no place to do it."""
    if not prompt:
        raise ConfigError("the prompt is empty", hint="give at least one token to continue from")
    if len(prompt) >= context:
        raise ConfigError(
            f"the prompt has {len(prompt):,} tokens, and the model's context is {context:,}",
            hint=f"shorten it to fewer than {context:,} tokens, so that there is room for an answer",
        )
