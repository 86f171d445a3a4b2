"""How to choose the next token, and when to stop. Torch-free.

The defaults suit small models: mild sampling, because greedy text of a small model soon repeats itself, and a
fixed seed, so that the same command gives the same text.
"""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError

CONSTRAINTS = ("regex", "json_schema", "grammar")
_SHOWN = 200  # characters of a value that is refused
_RANDOM = ("temperature", "top_k", "top_p", "min_p", "typical_p")  # what beams have no use for
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (0, 1), "top_k": (0,), "top_p": (1,), "min_p": (0,), "typical_p": (1,),
}  # fmt: skip


def _pairs(value: Any) -> Any:
    """A dictionary of biases, whose ids JSON writes as text, as the pairs that the config keeps."""
    if not isinstance(value, dict):
        return value
    pairs = {int(id) if isinstance(id, str) and id.isdecimal() else id: bias for id, bias in value.items()}
    return tuple(sorted(pairs.items())) if all(type(id) is int for id in pairs) else value


def _text_of_schema(value: Any) -> Any:
    """A schema given as an object, as JSON text."""
    return json.dumps(value) if isinstance(value, dict) else value


TokenId = Annotated[int, Field(ge=0)]


class SamplingConfig(Config):
    """Applied in this order, which is transformers': logit bias, penalties (repetition, presence, frequency), what may
    not come next (repeated n-grams, bad words, an early end, what breaks a constraint), temperature, top-k, top-p,
    min-p, typical."""

    max_tokens: int = Field(default=256, gt=0, description="new tokens at most")
    temperature: float = Field(default=0.7, ge=0, description="0: always the likeliest token")
    top_k: int = Field(default=0, ge=0, description="choose among this many likeliest tokens; 0: all")
    top_p: float = Field(
        default=0.95, gt=0, le=1, description="choose among the likeliest with this total probability; 1: all"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="choose among those at least this share as likely as the likeliest; 0: all"
    )
    typical_p: float = Field(
        default=1.0, gt=0, le=1,
        description="choose among those whose surprise is nearest to the expected, with this total probability; 1: all "
        "(arXiv 2202.00666)",
    )  # fmt: skip
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="above 1: tokens seen before become less likely (arXiv 1909.05858)"
    )
    presence_penalty: float = Field(
        default=0.0, description="taken from the logit of each token that the new text has, once"
    )
    frequency_penalty: float = Field(
        default=0.0, description="taken from the logit of each token, as often as the new text has it"
    )
    logit_bias: Annotated[tuple[tuple[TokenId, float], ...], BeforeValidator(_pairs)] = Field(
        default=(), description="{token id: what is added to its logit}"
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
    regex: str | None = Field(default=None, description="a regular expression that the whole text matches")
    json_schema: Annotated[str | None, BeforeValidator(_text_of_schema)] = Field(
        default=None, description="a JSON schema that the text obeys, as an object or as text"
    )
    grammar: str | None = Field(default=None, description="a grammar that the text obeys, in llguidance's form of Lark")
    logprobs: int | None = Field(
        default=None, ge=0, le=1000,
        description="log-probabilities of the tokens that came, and of so many of the likeliest in their place",
    )  # fmt: skip
    num_return_sequences: int = Field(default=1, gt=0, le=10_000, description="texts for each prompt")
    num_beams: int = Field(
        default=1, gt=0, le=1000, description="above 1: beam search, so many beams; nothing is left to chance"
    )
    length_penalty: float = Field(
        default=1.0, description="of beam search: a text's log-probability is divided by its length to this power"
    )
    seed: int = Field(default=0, description="same seed, same text")

    @model_validator(mode="after")
    def _combinations(self) -> SamplingConfig:
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined: a text obeys one of them")
        several = self.num_return_sequences
        if self.num_beams > 1:
            unused = [n for n in _RANDOM if n in self.model_fields_set and getattr(self, n) not in _NEUTRAL[n]]
            if unused:
                raise ValueError(f"beam search leaves nothing to chance, so it has no use for {' and '.join(unused)}")
            if several > self.num_beams:
                raise ValueError(f"{self.num_beams} beams cannot become num_return_sequences {several}")
        elif "length_penalty" in self.model_fields_set and self.length_penalty != 1:
            raise ValueError("length_penalty is of beam search, and num_beams is 1")
        elif several > 1 and self.temperature == 0:
            raise ValueError(f"at temperature 0 all of num_return_sequences {several} would be the same text")
        return self

    @property
    def constraint(self) -> tuple[str, str] | None:
        """Which one, and its text."""
        return next(((name, text) for name in CONSTRAINTS if (text := getattr(self, name)) is not None), None)

    def differing(self, other: SamplingConfig) -> list[str]:
        """Names of the settings in which two differ."""
        return [name for name in SamplingConfig.model_fields if getattr(self, name) != getattr(other, name)]

    def check_streams(self, what: str = "a stream", chances: bool = False) -> None:
        """Raises ConfigError where there is more, or less, to show than one text while it is written. chances: whether
        log-probabilities are given beside it."""
        if self.num_beams > 1:
            raise ConfigError(f"beam search cannot be combined with {what}: its text is known only at the end")
        if self.num_return_sequences > 1:
            raise ConfigError(f"num_return_sequences {self.num_return_sequences} cannot be combined with {what}")
        if not chances:
            text_alone(self.logprobs, what)


def text_alone(logprobs: int | None, what: str) -> None:
    """Raises ConfigError where log-probabilities are asked for, of what gives nothing but text."""
    if logprobs is not None:
        raise ConfigError(
            f"logprobs cannot be combined with {what}, which is text alone",
            hint="LanguageModel.complete gives them, and so does generate with --json",
        )


def sampling_config(defaults: dict[str, Any], options: dict[str, Any]) -> SamplingConfig:
    """A `SamplingConfig` of `defaults` overridden by the `options` of a call. An option that is None is left
    out.

    `stop` may be one string. With beams, defaults of sampling give way. Raises ConfigError that names the option.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in SamplingConfig.model_fields:
            near = difflib.get_close_matches(name, SamplingConfig.model_fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SamplingConfig.model_fields)}"
            raise ConfigError(f"unknown generation option {name if name.isidentifier() else repr(name)}", hint=hint)
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    settings = {**defaults, **given}
    if _above_one(settings.get("num_beams")):
        settings |= {name: _NEUTRAL[name][0] for name in _RANDOM if name not in given}
    try:
        return SamplingConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ConfigError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        meaning = SamplingConfig.model_fields[name].description
        raise ConfigError(
            f"{name} {_short(first['input'])} cannot be used: {first['msg'].lower()}", hint=meaning
        ) from None


def _short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _above_one(value: Any) -> bool:
    return isinstance(value, int) and value > 1
