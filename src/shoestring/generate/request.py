"""What a scheduler is asked for, and what it answers: requests in, tokens and reasons out, figures beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shoestring.core.errors import ConfigError
from shoestring.data.external import External
from shoestring.generate.config import SamplingConfig
from shoestring.generate.constraint import Guide, GuideReason
from shoestring.generate.sampling import Chances

StopReason = Literal["stop_token", "stop_string", "max_tokens", "context", "interrupted"] | GuideReason


@dataclass(frozen=True)
class Request:
    """One text to continue.

    prompt: token ids, at least one. stop_tokens: end the text, besides those of `sampling`. row: its row in the stream
    of the sampling seed. external: makes the vectors that the decoder's input adapter takes. guide: of its constraint.
    """

    prompt: list[int]
    sampling: SamplingConfig
    stop_tokens: frozenset[int] = frozenset()
    row: int = 0
    external: External | None = None
    guide: Guide | None = None

    @property
    def ends(self) -> frozenset[int]:
        """All tokens that end the text."""
        return self.stop_tokens | frozenset(self.sampling.stop_tokens)


@dataclass(frozen=True)
class TokenEvent:
    """A request got `token`. reason: why this is its last token, None while it goes on. chances: if asked for. held:
    tokens of its prompt that its slot held already, and that were not read for it."""

    request: int
    token: int
    reason: StopReason | None = None
    chances: Chances | None = None
    held: int = field(default=0, compare=False)


@dataclass
class Speed:
    """Tokens and seconds of reading prompts and of writing; the first new token of a text belongs to reading.

    The seconds of a pass that does both are divided as its tokens are.
    guessed, right: tokens that were guessed ahead, and those of them that stand.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0
    guessed: int = 0
    right: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of all texts per second, None when each got but one."""
        return self.new_tokens / self.new_seconds if self.new_seconds and self.new_tokens else None

    def count(self, read: int, written: int, seconds: float) -> None:
        """Add a pass that read so many tokens of prompts, and so many of what was written before."""
        share = read / (read + written)
        self.prompt_tokens += read
        self.new_tokens += written
        self.prompt_seconds += seconds * share
        self.new_seconds += seconds * (1 - share)


def check_prompt(prompt: list[int], context: int, vocabulary: int) -> None:
    """Raises ConfigError for a prompt that leaves nothing to do, or no place to do it, or holds ids that are none."""
    if not prompt:
        raise ConfigError("the prompt is empty", hint="give at least one token to continue from")
    if len(prompt) >= context:
        raise ConfigError(
            f"the prompt has {len(prompt):,} tokens, and the model's context is {context:,}",
            hint=f"shorten it to fewer than {context:,} tokens, so that there is room for an answer",
        )
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < vocabulary:
            raise ConfigError(f"the prompt holds token {token:,}, and the model has ids from 0 to {vocabulary - 1:,}")
