"""`shoestring generate MODEL --prompt TEXT`: continue one text, streamed, or several in a batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from shoestring.generate.language_model import Completion, LanguageModel

app = verb(
    "generate",
    "Continue a text. One prompt is streamed to stdout behind its text; several are decoded together.",
    (
        'shoestring generate smollm2-135m --prompt "The capital of France is" --max-tokens 20',
        'shoestring generate smollm2-135m --prompt "1, 2, 3," --prompt "a, b, c," --temperature 0 --json',
    ),
)

Model = Annotated[str, Parameter(help="a model folder, a run, a .gguf file, or a name that get knows")]
MaxTokens = Annotated[int | None, Parameter(help="new tokens at most (256)")]
Temperature = Annotated[
    float | None, Parameter(help="0: always the likeliest token (the model's own advice, else 0.7)")
]
TopK = Annotated[int | None, Parameter(help="choose among this many likeliest tokens; 0: all")]
TopP = Annotated[
    float | None, Parameter(help="choose among the likeliest with this total probability (0.95)")
]
RepetitionPenalty = Annotated[float | None, Parameter(help="above 1: tokens seen before become less likely")]
Stop = Annotated[
    list[str] | None,
    Parameter(help="a string that ends the text; may be given several times", allow_leading_hyphen=True),
]
Seed = Annotated[int | None, Parameter(help="same seed, same text (0)")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps")]
Dtype = Annotated[str, Parameter(help="auto (float32), float32, bfloat16 or float16")]


@app.default
def generate(
    model: Model,
    /,
    *,
    prompt: Annotated[
        list[str] | None,
        Parameter(
            help="text to continue, - for stdin; may be given several times", allow_leading_hyphen=True
        ),
    ] = None,
    file: Annotated[Path | None, Parameter(help="a file with one prompt a line")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    from shoestring.generate.config import sampling_config

    options = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "repetition_penalty": repetition_penalty, "stop": tuple(stop) if stop else None, "seed": seed,
    }  # fmt: skip
    sampling_config({}, options)  # a wrong flag is told before torch is imported
    prompts = read_prompts(prompt, file)

    from shoestring.generate.language_model import LanguageModel

    language_model = LanguageModel.load(model, device, dtype, say=console.err.print)
    if json:
        completions = language_model.complete(prompts, **options)
        console.print_json(as_json(language_model, prompts, completions, options))
    elif len(prompts) == 1:
        _stream(language_model, prompts[0], options)
    else:
        _print_batch(prompts, language_model.complete(prompts, **options))
        _report(language_model)


def read_prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    """The prompts of the flags, in order, then the lines of the file. Raises ConfigError, DataError."""
    texts = [_read_stdin() if text == "-" else text for text in prompts or ()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise DataError(f"prompts cannot be read: {reason}", where=str(file)) from None
        texts += [line for line in lines if line.strip()]
        if not texts:
            raise DataError("no prompts in this file", where=str(file), hint="write one prompt a line")
    if not texts:
        raise ConfigError(
            "there is nothing to continue", hint='give --prompt "TEXT", --prompt - or --file FILE'
        )
    return texts


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


def write(text: str) -> None:
    """A piece of a model's text to stdout at once; control characters do not reach a terminal."""
    from shoestring.generate.text import without_controls

    sys.stdout.write(without_controls(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _stream(model: LanguageModel, prompt: str, options: dict[str, Any]) -> None:
    sampling = model.sampling(**options)
    ids = model.encode_prompt(prompt)
    reason, started = None, False
    for event in model.events([ids], sampling):
        if not started:  # only now is it certain that the prompt fits
            write(prompt)
            started = True
        write(event.text)
        reason = event.reason or reason
    write("\n")
    if reason == "context":
        console.err.print(
            f"the text ends here: the model's context of {model.decoder.config.context:,} tokens is full"
        )
    _report(model)


def _print_batch(prompts: list[str], completions: list[Completion]) -> None:
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1):
        write(f"[{number}] {prompt}{completion.text}\n" + ("\n" if number < len(prompts) else ""))


def _report(model: LanguageModel) -> None:
    speed = model.speed
    if console.err.is_terminal and speed.tokens_per_second:
        console.err.print(f"{speed.tokens_per_second:.1f} tokens/s", style="dim")


def _read_stdin() -> str:
    if sys.stdin.isatty():
        console.err.print("reading the prompt from the keyboard; Ctrl-D ends it", style="dim")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise DataError("the prompt is not UTF-8", where="(standard input)") from None
