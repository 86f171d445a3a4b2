"""`shoestring chat MODEL`: talk with an instruct model in the terminal, or ask it one question."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.decoding import ANYWHERE, AS_ADVISED, Model, PlaceFlags, SamplingFlags, as_json
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.generate.config import sampling_config

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
    sampling: SamplingFlags = AS_ADVISED,
    place: PlaceFlags = ANYWHERE,
    json: Json = False,
) -> None:
    options = sampling.options(json)
    if json and prompt is None:
        raise ConfigError("--json needs --prompt: a conversation is not one result")

    if not json:
        sampling_config({}, options).check_streams("a conversation")

    from shoestring.generate.language_model import as_messages
    from shoestring.serve.terminal.chat import TerminalChat

    language_model = place.load(model)
    if json and prompt is not None:
        messages = as_messages(prompt, system)
        completions = language_model.complete_ids([language_model.encode_chat(messages)], **options)
        console.print_json(as_json(language_model, [prompt], completions, options))
        return
    interactive = sys.stdin.isatty() and prompt is None
    session = TerminalChat(
        language_model, language_model.sampling(**options), system, interactive=interactive, name=model
    )
    if prompt is None:
        session.run()
    else:
        session.answer(prompt)
