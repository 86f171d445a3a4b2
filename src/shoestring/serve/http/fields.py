"""Fields that requests share: whom they ask, how the text is chosen, what is streamed. Nothing else is taken.

Names and meanings are OpenAI's; below them stand those of `SamplingConfig` that its API does not have. A field that
would change nothing (`user`, `store: false`) is taken, one that would change the answer and is not done is refused by
name, and so is one that nobody knows. null means not given.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config

MOST_TEXTS = 128  # of one request, as OpenAI has it for n
MOST_STOPS = 16
_LONGEST = 1000  # characters of a name or a stop string

Name = Annotated[str, Field(min_length=1, max_length=_LONGEST)]


class Body(Config):
    """What was sent, as an object."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else value


class StreamOptions(Body):
    include_usage: bool = Field(default=False, description="whether a last chunk counts tokens")
    include_obfuscation: Literal[False] = False


class Asking(Body):
    """What a request for text has in common with any other."""

    model: Name = Field(description="a name that /v1/models lists")
    n: int = Field(default=1, ge=1, le=MOST_TEXTS, description="texts")
    seed: int | None = Field(default=None, description="same seed, same text; none: each time another one")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0: always the likeliest token")
    top_p: float | None = Field(default=None, gt=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="{token id: what is added to its logit}"
    )
    stop: str | Annotated[tuple[Name, ...], Field(max_length=MOST_STOPS)] | None = Field(
        default=None, description="strings that end the text, and are not part of it"
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=_LONGEST)] | None = None

    top_k: int | None = Field(default=None, ge=0, description="choose among this many likeliest tokens; 0: all")
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    min_length: int | None = Field(default=None, ge=0)
    stop_tokens: tuple[int, ...] | None = None
    regex: str | None = Field(default=None, description="a regular expression that the whole text matches")
    grammar: str | None = Field(default=None, description="a grammar that the text obeys, in llguidance's form of Lark")

    @model_validator(mode="after")
    def _streams(self) -> Asking:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are of a stream, and stream is false")
        if self.stop == "":
            raise ValueError("stop is empty")
        return self

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def options(self) -> dict[str, Any]:
        """As `LanguageModel.sampling` takes them, without limit of length and log-probabilities."""
        named = {name: getattr(self, name) for name in _OURS}
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        return {**named, "seed": seed}


_OURS = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "top_k", "min_p",
    "typical_p", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_tokens", "min_length",
    "stop_tokens", "regex", "grammar",
)  # fmt: skip
