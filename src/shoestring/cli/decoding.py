"""What `generate` and `chat` share: the model that speaks, the flags of sampling, and how a result is printed.

A dataclass is one parameter of a verb and several flags: cyclopts takes its fields for them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from shoestring.core import console

if TYPE_CHECKING:
    from shoestring.generate.language_model import Completion, LanguageModel

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
    repetition_penalty: Annotated[
        float | None, Parameter(help="above 1: tokens seen before become less likely [1]")
    ] = None
    stop: Annotated[
        list[str] | None,
        Parameter(help="a string that ends the text; may be given several times", allow_leading_hyphen=True),
    ] = None
    seed: Annotated[int | None, Parameter(help="same seed, same text [0]")] = None

    def options(self) -> dict[str, Any]:
        """As `LanguageModel` takes them. Raises ConfigError for a wrong one, before torch is imported."""
        from shoestring.generate.config import sampling_config

        options = {**asdict(self), "stop": tuple(self.stop) if self.stop else None}
        sampling_config({}, options)
        return options


@Parameter(name="*")
@dataclass(frozen=True)
class PlaceFlags:
    """Where the model computes, in what numbers, and in how much memory."""

    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps")] = "auto"
    dtype: Annotated[str, Parameter(help="auto (float32), float32, bfloat16 or float16")] = "auto"
    weights: Annotated[str | None, Parameter(help=WEIGHTS_HELP)] = None
    cache: Annotated[
        str | None, Parameter(help="what keys and values are kept in: int8 [as the model computes]")
    ] = None
    memory: Annotated[
        str | None, Parameter(help="the whole process at most, as 2GB; layers stream from disk if they must")
    ] = None

    def load(self, model: str) -> LanguageModel:
        from shoestring.models.decoding_formats import check_cache

        weights = checked_weights(self.weights, self.device, self.dtype, self.memory)
        check_cache(cache := self.cache or "source", self.memory)

        from shoestring.offload.load import load

        return load(model, self.device, self.dtype, self.memory, weights, say=console.say, cache=cast(Any, cache))


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
    """The result of `--json`: one object; a single prompt's text stands at its top."""
    results = [
        {
            "prompt": prompt,
            "text": completion.text,
            "prompt_tokens": completion.prompt_tokens,
            "new_tokens": len(completion.tokens),
            "stop_reason": completion.reason,
        }
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    speed = model.speed
    figures = {
        "prompt_seconds": round(speed.prompt_seconds, 4),
        "tokens_per_second": round(speed.tokens_per_second, 2) if speed.tokens_per_second else None,
    }
    settings = model.sampling(**options).model_dump(mode="json")
    return (results[0] if len(results) == 1 else {"results": results}) | figures | {"sampling": settings}
