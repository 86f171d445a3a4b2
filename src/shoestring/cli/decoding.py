"""What `generate` and `chat` share: the model that speaks, the flags of sampling, and how a result is printed.

A dataclass is one parameter of a verb and several flags: cyclopts takes its fields for them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import parse_bytes

if TYPE_CHECKING:
    from shoestring.generate.language_model import LanguageModel
    from shoestring.generate.texts import Completion

WEIGHTS_HELP = (
    "how they are kept: file (a GGUF file's own blocks), float32, bf16, int8 or int4; with --memory: how layers on disk"
    " are kept [as dtype says]"
)
Model = Annotated[str, Parameter(help="a model folder, a run, a .gguf file, or a name that get knows")]


@Parameter(name="*")
@dataclass(frozen=True)
class SamplingFlags:
    """None: the model's own advice, else what stands in brackets."""

    max_tokens: Annotated[int | None, Parameter(help="new tokens at most [256]")] = None
    temperature: Annotated[
        float | None, Parameter(help="0: always the likeliest token [the model's own advice, else 0.7]")
    ] = None
    top_k: Annotated[int | None, Parameter(help="choose among this many likeliest tokens; 0: all [0]")] = None
    top_p: Annotated[float | None, Parameter(help="choose among the likeliest with this total probability [0.95]")] = (
        None
    )
    min_p: Annotated[
        float | None, Parameter(help="choose among those at least this share as likely as the likeliest [0]")
    ] = None
    typical_p: Annotated[
        float | None, Parameter(help="choose among those of about the expected surprise, with this probability [1]")
    ] = None
    repetition_penalty: Annotated[
        float | None, Parameter(help="above 1: tokens seen before become less likely [1]")
    ] = None
    presence_penalty: Annotated[
        float | None, Parameter(help="taken from the logit of each token written so far [0]")
    ] = None
    frequency_penalty: Annotated[
        float | None, Parameter(help="taken from a token's logit for each time that it was written [0]")
    ] = None
    no_repeat_ngram_size: Annotated[
        int | None, Parameter(help="so many tokens in a row never come twice; 0: they may [0]")
    ] = None
    logit_bias: Annotated[
        list[str] | None, Parameter(help="ID=VALUE, added to the logit of token ID; may be given several times")
    ] = None
    bad_words_ids: Annotated[
        list[str] | None, Parameter(help="ID,ID,... that never come in this order; may be given several times")
    ] = None
    min_tokens: Annotated[int | None, Parameter(help="new tokens before the text may end by itself [0]")] = None
    min_length: Annotated[int | None, Parameter(help="the same, the prompt's tokens counted [0]")] = None
    stop: Annotated[
        list[str] | None,
        Parameter(help="a string that ends the text; may be given several times", allow_leading_hyphen=True),
    ] = None
    stop_tokens: Annotated[
        list[int] | None, Parameter(help="the id of a token that ends the text; may be given several times")
    ] = None
    regex: Annotated[
        str | None, Parameter(help="a regular expression that the whole text matches", allow_leading_hyphen=True)
    ] = None
    json_schema: Annotated[
        str | None, Parameter(help="a JSON schema that the text obeys, or a file that holds one")
    ] = None
    grammar: Annotated[
        str | None, Parameter(help="a Lark grammar that the text obeys, or a file that holds one")
    ] = None
    logprobs: Annotated[
        int | None, Parameter(help="with --json: log-probabilities of the tokens, and of so many of the likeliest")
    ] = None
    num_return_sequences: Annotated[int | None, Parameter(help="texts for each prompt [1]")] = None
    num_beams: Annotated[int | None, Parameter(help="above 1: beam search, so many beams [1]")] = None
    length_penalty: Annotated[
        float | None, Parameter(help="of beam search: log-probability over length to this power [1]")
    ] = None
    seed: Annotated[int | None, Parameter(help="same seed, same text [0]")] = None

    def options(self, json: bool = True) -> dict[str, Any]:
        """As `LanguageModel` takes them. json: whether a result is printed as one. Raises ConfigError for a wrong one,
        before torch is imported."""
        from shoestring.generate.config import sampling_config
        from shoestring.generate.constraint import check_constraint, text_or_file

        options = asdict(self)
        for name in ("stop", "stop_tokens"):
            options[name] = tuple(options[name]) if options[name] else None
        if self.logit_bias:
            options["logit_bias"] = dict(_bias(text) for text in self.logit_bias)
        if self.bad_words_ids:
            options["bad_words_ids"] = tuple(_ids(text) for text in self.bad_words_ids)
        for name in ("json_schema", "grammar"):
            if options[name] is not None:
                options[name] = text_or_file(options[name], name)
        if self.logprobs is not None and not json:
            raise ConfigError("--logprobs needs --json: the figures are part of the result")
        check_constraint(sampling_config({}, options))
        return options


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise ConfigError(f"--logit-bias {text} is not ID=VALUE", hint="as --logit-bias 42=-5") from None


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(token) for token in text.split(","))
    except ValueError:
        hint = "as --bad-words-ids 42,7"
        raise ConfigError(f"--bad-words-ids {text} is not a list of token ids", hint=hint) from None


@Parameter(name="*")
@dataclass(frozen=True)
class PlaceFlags:
    """Where the model computes, in what numbers, in how much memory, and what guesses ahead."""

    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps")] = "auto"
    dtype: Annotated[str, Parameter(help="auto (float32), float32, bfloat16 or float16")] = "auto"
    weights: Annotated[str | None, Parameter(help=WEIGHTS_HELP)] = None
    cache: Annotated[
        str | None, Parameter(help="what keys and values are kept in: int8 [as the model computes]")
    ] = None
    memory: Annotated[
        str | None, Parameter(help="the whole process at most, as 2GB; layers stream from disk if they must")
    ] = None
    speculate: Annotated[
        str | None,
        Parameter(help="for speed: lookup, or a smaller MODEL of the same tokens, that guesses tokens ahead"),
    ] = None

    def load(self, model: str, beside: int = 0) -> LanguageModel:
        """beside: bytes of --memory that are for other things."""
        from shoestring.models.decoding_formats import check_cache

        guesser, cache = self.speculate, self.cache or "source"
        if guesser not in (None, "lookup") and self.memory is not None:
            raise ConfigError(
                f"--speculate {guesser} cannot be combined with --memory, which plans for one model",
                hint="--speculate lookup can",
            )
        weights = checked_weights(self.weights, self.device, self.dtype, self.memory)
        check_cache(cache, self.memory)

        from shoestring.offload.load import load

        place: Any = {"weights": weights, "cache": cache, "say": console.say}
        memory = None if self.memory is None else max(parse_bytes(self.memory) - beside, 1)
        language = load(model, self.device, self.dtype, memory, **place)
        if guesser == "lookup":
            language.speculate("lookup")
        elif guesser is not None:
            language.speculate(load(guesser, self.device, self.dtype, **place))
        return language


def checked_weights(weights: str | None, device: str, dtype: str, memory: str | None) -> Any:
    """The flag --weights as `offload.load.load` takes it. Raises ConfigError, before torch is imported."""
    from shoestring.models.decoding_formats import check_format
    from shoestring.offload.config import store_format

    asked = weights or "source"
    if memory is None:
        check_format(asked, device, dtype)
    else:
        store_format(asked)
    return asked


AS_ADVISED, ANYWHERE = SamplingFlags(), PlaceFlags()  # when no flag is given


def as_json(
    model: LanguageModel, prompts: list[str], completions: list[Completion], options: dict[str, Any]
) -> dict[str, Any]:
    """The result of `--json`: one object; a single text stands at its top."""
    from shoestring.generate.texts import as_result

    results = [
        {"prompt": prompt} | as_result(model.tokenizer, completion)
        for prompt, completion in zip(each(prompts, completions), completions, strict=True)
    ]
    speed = model.speed
    figures: dict[str, Any] = {
        "prompt_seconds": round(speed.prompt_seconds, 4),
        "tokens_per_second": round(speed.tokens_per_second, 2) if speed.tokens_per_second else None,
    }
    if speed.guessed:
        figures |= {"guessed_tokens": speed.guessed, "guessed_right": speed.right}
    settings = model.sampling(**options).model_dump(mode="json")
    return (results[0] if len(results) == 1 else {"results": results}) | figures | {"sampling": settings}


def each(prompts: list[str], completions: list[Completion]) -> list[str]:
    """The prompt of each completion."""
    times = len(completions) // max(len(prompts), 1)
    return [prompt for prompt in prompts for _ in range(times)]
