"""How to choose the next token, and when to stop. Torch-free.

The defaults suit small models: mild sampling, because greedy text of a small model soon repeats itself, and a
fixed seed, so that the same command gives the same text.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import Field, ValidationError

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError


class SamplingConfig(Config):
    """Applied in this order, which is transformers': repetition penalty, what may not come next (repeated n-grams, bad
    words, an early end), temperature, top-k, top-p, min-p."""

    max_tokens: int = Field(default=256, gt=0, description="new tokens at most")
    temperature: float = Field(default=0.7, ge=0, description="0: always the likeliest token")
    top_k: int = Field(default=0, ge=0, description="choose among this many likeliest tokens; 0: all")
    top_p: float = Field(
        default=0.95, gt=0, le=1, description="choose among the likeliest with this total probability; 1: all"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="choose among those at least this share as likely as the likeliest; 0: all"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="above 1: tokens seen before become less likely (arXiv 1909.05858)"
    )
    no_repeat_ngram_size: int = Field(
        default=0, ge=0, description="so many tokens in a row never come twice, the prompt's counted; 0: they may"
    )
    bad_words_ids: tuple[Annotated[tuple[int, ...], Field(min_length=1)], ...] = Field(
        default=(), description="sequences of token ids that never come"
    )
    min_tokens: int = Field(default=0, ge=0, description="new tokens before the text may end by itself")
    min_length: int = Field(default=0, ge=0, description="tokens of prompt and text together before it may end")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="strings that end the text"
    )
    stop_tokens: tuple[int, ...] = Field(
        default=(), description="token ids that end the text, besides the model's own"
    )
    seed: int = Field(default=0, description="same seed, same text")


def sampling_config(defaults: dict[str, Any], options: dict[str, Any]) -> SamplingConfig:
    """A `SamplingConfig` of `defaults` overridden by the `options` of a call. An option that is None is left
    out.

    `stop` may be one string. Raises ConfigError that names the option.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in SamplingConfig.model_fields:
            near = difflib.get_close_matches(name, SamplingConfig.model_fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SamplingConfig.model_fields)}"
            raise ConfigError(f"unknown generation option {name}", hint=hint)
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    try:
        return SamplingConfig(**{**defaults, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        meaning = SamplingConfig.model_fields[name].description
        raise ConfigError(
            f"{name} {first['input']!r} cannot be used: {first['msg'].lower()}", hint=meaning
        ) from None
