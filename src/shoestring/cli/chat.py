"""`shoestring chat MODEL`: talk with an instruct model in the terminal, or ask it one question."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.generate import (
    Device,
    Dtype,
    MaxTokens,
    Model,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    as_json,
)
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError

app = verb(
    "chat",
    "Talk with a model. Lines are read from the keyboard or a pipe; /help inside lists the commands.",
    (
        "shoestring chat smollm2-135m",
        'shoestring chat smollm2-135m --prompt "What is the capital of France?" --temperature 0',
    ),
)


@app.default
def chat(
    model: Model,
    /,
    *,
    system: Annotated[str | None, Parameter(help="what the model is told to be")] = None,
    prompt: Annotated[
        str | None, Parameter(help="one question; the answer is printed and that is all")
    ] = None,
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
    if json and prompt is None:
        raise ConfigError("--json needs --prompt: a conversation is not one result")

    from shoestring.generate.language_model import LanguageModel, as_messages
    from shoestring.serve.terminal import TerminalChat

    language_model = LanguageModel.load(model, device, dtype, say=console.err.print)
    if json and prompt is not None:
        messages = as_messages(prompt, system)
        completion = language_model.complete_ids([language_model.encode_chat(messages)], **options)[0]
        console.print_json(as_json(language_model, [prompt], [completion], options))
        return
    interactive = sys.stdin.isatty() and prompt is None
    session = TerminalChat(
        language_model, language_model.sampling(**options), system, interactive=interactive
    )
    if prompt is None:
        session.run()
    else:
        session.answer(prompt)
