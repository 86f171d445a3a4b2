"""`shoestring generate MODEL --prompt TEXT`: continue one text, streamed, or several in a batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.decoding import ANYWHERE, AS_ADVISED, Model, PlaceFlags, SamplingFlags, as_json, each
from shoestring.cli.over import Listen, OverMachines, Token, Wait, run_over
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from shoestring.generate.config import SamplingConfig
    from shoestring.generate.language_model import LanguageModel, SpecialTokens
    from shoestring.generate.request import StopReason
    from shoestring.generate.texts import Completion

app = verb(
    "generate",
    "Continue a text. One prompt is streamed to stdout behind its text; several are decoded together.",
    (
        'shoestring generate smollm2-135m --prompt "The capital of France is" --max-tokens 20',
        'shoestring generate smollm2-135m --prompt "1, 2, 3," --prompt "a, b, c," --temperature 0 --json',
    ),
)


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
    file: Annotated[
        Path | None, Parameter(help="a file with one prompt a line, or with --out rows of JSON: prompt or messages, id")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="write an answer to each prompt of --file as a line of this .jsonl; resumed")
    ] = None,
    special_tokens: Annotated[
        Literal["read", "text"], Parameter(help="their names in the prompt: read as the tokens, or text like any other")
    ] = "read",
    sampling: SamplingFlags = AS_ADVISED,
    place: PlaceFlags = ANYWHERE,
    over: OverMachines = None,
    listen: Listen = None,
    wait: Wait = None,
    token: Token = None,
    json: Json = False,
) -> None:
    options = sampling.options(json or out is not None)
    if place.speculate is not None and (options["num_beams"] or 1) > 1:
        raise ConfigError("beam search guesses nothing ahead, so it has no use for --speculate (command line)")
    if out is not None and over is not None:
        raise ConfigError("--out writes with one machine, and --over takes several (command line)")
    if out is not None:
        _to_file(model, prompt, file, out, special_tokens, options, place, json)
        return
    prompts = read_prompts(prompt, file)
    if over is not None or (listen, wait, token) != (None, None, None):
        if place != ANYWHERE:
            raise ConfigError("over several machines, each keeps its layers as the files have them (command line)")
        from shoestring.laptops.asking import generate_over

        given, more = (over, listen, wait, token), {"special_tokens": special_tokens, **options}
        run_over(generate_over, given, json, model, prompts, **more)
        return

    language_model = place.load(model)
    if json:
        completions = language_model.complete(prompts, special_tokens, **options)
        console.print_json(as_json(language_model, prompts, completions, options))
        _receipt(language_model, completions)
    elif len(prompts) == 1 and (options["num_beams"] or 1) == (options["num_return_sequences"] or 1) == 1:
        _stream(language_model, prompts[0], special_tokens, options)
    else:
        completions = language_model.complete(prompts, special_tokens, **options)
        _print_batch(each(prompts, completions), completions)
        _told_cut([completion.reason for completion in completions], language_model.sampling(**options))
        _report(language_model)
        _receipt(language_model, completions)


def _to_file(
    model: str, prompt: list[str] | None, file: Path | None, out: Path, special_tokens: SpecialTokens,
    options: dict[str, Any], place: PlaceFlags, json: bool,
) -> None:  # fmt: skip
    from shoestring.core.files import check_place
    from shoestring.core.units import counted, format_seconds
    from shoestring.generate.prompt_rows import prompt_rows

    if file is None or prompt:
        raise ConfigError("--out goes with --file, and with no --prompt (command line)", hint="put all into --file")
    if out.exists() and file.exists() and out.samefile(file):
        raise ConfigError(f"--out is the file of prompts itself: {out} (command line)")
    check_place(out)
    for row in prompt_rows(file):  # a bad row is told before a model is loaded
        if row.sampling:
            row.settings(options)

    from shoestring.generate.answer_file import answer_file

    done = answer_file(place.load(model), file, out, special_tokens, console.say, **options)
    if json:
        console.print_json(done.to_json())
        return
    before = f" ({done.found:,} of them before)" if done.found else ""
    speed = f"; {done.new_tokens / done.seconds:.1f} tokens/s in {format_seconds(done.seconds)}" if done.seconds else ""
    console.show(f"answers  {out}: {counted(done.rows, 'prompt')}{before}{speed}")


def read_prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    """The prompts of the flags, in order, then the lines of the file. Raises ConfigError, DataError."""
    from shoestring.data.reading.kinds import has_rows

    texts = [_read_stdin() if text == "-" else text for text in prompts or ()]
    if file is not None and has_rows(file):
        raise ConfigError(
            f"{file} holds rows, whose answers go into a file (command line)", hint="name it: --out answers.jsonl"
        )
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


def _stream(model: LanguageModel, prompt: str, special_tokens: SpecialTokens, options: dict[str, Any]) -> None:
    from shoestring.generate.text import TextOutput

    sampling = model.sampling(**options)
    ids = model.encode_prompt(prompt, special_tokens)
    output, reason, started = TextOutput(sys.stdout), None, False
    try:
        for event in model.events([ids], sampling):
            if not started:  # only now is it certain that the prompt fits
                output.add(prompt)
                started = True
            output.add(event.text)
            reason = event.reason or reason
    finally:
        if started:
            output.end()
    if reason == "context":
        console.say(
            f"the text ends here: the model's context of {model.decoder.config.context:,} tokens is full"
        )
    _told_cut([reason], sampling)
    _report(model)
    _receipt(model, [len(ids)])


def _told_cut(reasons: Sequence[StopReason | None], sampling: SamplingConfig) -> None:
    """Say so where a text that should obey a constraint ended before it does."""
    if sampling.constraint is None:
        return
    name, _ = sampling.constraint
    for reason, why in (
        ("max_tokens", "--max-tokens allows more"),
        ("context", "the model's context is full"),
        ("stop_string", "at a stop string"),
        ("dead_end", "no token of this model leads on"),
    ):
        if count := sum(found == reason for found in reasons):
            one = "a text was" if count == 1 else f"{count} texts were"
            console.say(f"{one} cut before obeying --{name.replace('_', '-')}: {why}")


def _print_batch(prompts: list[str], completions: list[Completion]) -> None:
    from shoestring.generate.text import TextOutput

    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1):
        output = TextOutput(sys.stdout)
        output.add(f"[{number}] {prompt}{completion.text}")
        output.end()
        if number < len(prompts):
            sys.stdout.write("\n")


def _report(model: LanguageModel) -> None:
    speed = model.speed
    if console.err.is_terminal and speed.tokens_per_second:
        guessed = f", {speed.right:,} of {speed.guessed:,} guesses right" if speed.guessed else ""
        console.say(f"{speed.tokens_per_second:.1f} tokens/s{guessed}", style="dim")


def _receipt(model: LanguageModel, texts: Sequence[Completion] | list[int]) -> None:
    """For the log by which plans are corrected. texts: that were written together, or their prompts' tokens."""
    from shoestring.generate.language_model import SLOTS
    from shoestring.generate.receipts import of_texts

    lengths = [text if isinstance(text, int) else text.prompt_tokens for text in texts]
    of_texts(model, sum(lengths), len(lengths), SLOTS)


def _read_stdin() -> str:
    if sys.stdin.isatty():
        console.say("reading the prompt from the keyboard; Ctrl-D ends it", style="dim")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise DataError("the prompt is not UTF-8", where="(standard input)") from None
