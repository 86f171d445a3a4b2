"""Texts of many prompts on one model: `decoded` gives them piece by piece, `completed` and `searched` whole.

All that `LanguageModel` writes and all files of answers come from here. A text begins as soon as a slot is free for it.
Which random numbers it gets depends on its row alone: texts asked for in several goes are those of one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import ConfigError
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate.beams import search
from shoestring.generate.config import SamplingConfig
from shoestring.generate.request import StopReason, TokenEvent
from shoestring.generate.sampling import Chances
from shoestring.generate.scheduler import Scheduler
from shoestring.generate.text import TextStream

if TYPE_CHECKING:
    from shoestring.generate.language_model import LanguageModel


@dataclass(frozen=True)
class Asked:
    """A text to be written. row: by which it is known, and its row in the stream of the sampling seed."""

    row: int
    prompt: Sequence[int]
    sampling: SamplingConfig


@dataclass(frozen=True)
class TextEvent:
    """A piece of a row's text, perhaps empty, and the token that brought it. reason: on the last event. chances: of the
    token, if `logprobs` asks for them. held: see `TokenEvent`."""

    row: int
    text: str
    token: int
    reason: StopReason | None = None
    chances: Chances | None = None
    held: int = field(default=0, compare=False)


@dataclass
class Completion:
    """What one prompt became. tokens: new ids, a stop token included; text: without prompt and stop. chances: of each
    token, if `logprobs` asks for them. score: of a text that beam search found."""

    prompt_tokens: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    reason: StopReason = "interrupted"
    chances: list[Chances] = field(default_factory=list)
    score: float | None = None


def decoded(model: LanguageModel, asked: Iterable[Asked], scheduler: Scheduler) -> Generator[TextEvent, None, None]:
    """Every new token gives one event, also when it brings no text. Nothing runs before the first is asked for.

    scheduler: an idle one whose slots have the room. `model.speed` counts meanwhile. Raises ConfigError.
    """
    scheduler.speed = model.speed
    left = iter(asked)
    running: dict[int, tuple[int, TextStream]] = {}
    try:
        while True:
            while len(running) < scheduler.slots and (one := next(left, None)) is not None:
                id = scheduler.add(model.request(list(one.prompt), one.sampling, one.row))
                running[id] = one.row, TextStream(model.tokenizer, one.sampling.stop)
            if not running:
                return
            for event in scheduler.step():
                if event.request not in running:  # of the same step, behind a stop string
                    continue
                row, stream = running[event.request]
                brought = as_text(event, row, stream)
                if brought.reason == "stop_string":
                    scheduler.cancel(event.request)
                if brought.reason is not None:
                    del running[event.request]
                yield brought
    finally:  # also when the reader stops early or Ctrl-C arrives
        for id in running:
            scheduler.cancel(id)


def as_text(event: TokenEvent, row: int, stream: TextStream) -> TextEvent:
    """What a token brings to its row's text, of which `stream` has had the tokens before. At a stop string the text
    ends, and is to be cancelled in its scheduler, which knows nothing of it."""
    reason, piece = event.reason, ""
    if reason != "stop_token":
        piece = stream.add(event.token)
    if reason is not None and not stream.stopped:
        piece += stream.finish()
    if stream.stopped:
        reason = "stop_string"
    return TextEvent(row, piece, event.token, reason, event.chances, event.held)


def completed(model: LanguageModel, asked: Iterable[Asked], scheduler: Scheduler) -> Iterator[tuple[int, Completion]]:
    """(row, its text) of each, in the order in which they end."""
    running: dict[int, Completion] = {}

    def begun() -> Iterator[Asked]:
        for one in asked:
            running[one.row] = Completion(len(one.prompt))
            yield one

    with contextlib.closing(decoded(model, begun(), scheduler)) as events:
        for event in events:
            completion = running[event.row]
            completion.text += event.text
            completion.tokens.append(event.token)
            if event.chances is not None:
                completion.chances.append(event.chances)
            if event.reason is not None:
                completion.reason = event.reason
                yield event.row, running.pop(event.row)


def searched(model: LanguageModel, prompt: Sequence[int], sampling: SamplingConfig) -> list[Completion]:
    """`num_return_sequences` texts of one prompt by beam search, best first; `model.speed` counts.

    Raises ConfigError where a constraint left too few texts, or the beams need more than the memory that was given.
    """
    longest = min(len(prompt) + sampling.max_tokens, model.decoder.config.context)
    if model.at_once is not None and sampling.num_beams * longest > model.at_once:
        raise ConfigError(
            f"{sampling.num_beams} beams of {longest:,} tokens are more than the {model.at_once:,} tokens that the "
            "memory given has room for",
            hint="fewer beams, a smaller max_tokens, or no --memory",
        )
    latest = time.perf_counter()

    def advance(read: int, written: int) -> None:
        nonlocal latest
        now = time.perf_counter()
        model.speed.count(read, written, now - latest)
        latest = now

    def stops(tokens: list[int]) -> bool:
        return any(stop in model.tokenizer.decode(tokens) for stop in sampling.stop)

    request = model.request(list(prompt), sampling)
    size, stop = model.tokenizer.vocabulary_size, stops if sampling.stop else None
    found = search(model.decoder, request, size, stop, advance)
    if len(found) < sampling.num_return_sequences:
        raise ConfigError(
            f"{sampling.num_beams} beams found {len(found)} of {sampling.num_return_sequences} texts",
            hint="more beams or tokens may find more, if there are so many that may come",
        )
    completions = []
    for beam in found[: sampling.num_return_sequences]:
        stream = TextStream(model.tokenizer, sampling.stop)
        shown = beam.tokens[:-1] if beam.reason == "stop_token" else beam.tokens
        text = "".join(stream.add(token) for token in shown) + stream.finish()
        reason = beam.reason or "interrupted"
        completions.append(Completion(len(prompt), text, list(beam.tokens), reason, list(beam.chances), beam.score))
    return completions


def places(model: LanguageModel, most: int, longest: int) -> int:
    """How many texts of `longest` tokens to decode at once: `most`, or fewer where memory is limited."""
    return most if model.at_once is None else max(min(most, model.at_once // longest), 1)


def as_result(tokenizer: Tokenizer, completion: Completion) -> dict[str, Any]:
    """A completion as JSON has it."""
    result: dict[str, Any] = {
        "text": completion.text,
        "prompt_tokens": completion.prompt_tokens,
        "new_tokens": len(completion.tokens),
        "stop_reason": completion.reason,
    }
    if completion.score is not None:
        result["score"] = completion.score
    if completion.chances:
        result["logprobs"] = _logprobs(tokenizer, completion)
    return result


def _logprobs(tokenizer: Tokenizer, completion: Completion) -> list[dict[str, Any]]:
    def named(token: int, logprob: float) -> dict[str, Any]:
        return {"token": token, "text": tokenizer.decode([token], skip_specials=False), "logprob": logprob}

    return [
        named(token, chances.logprob) | ({"top": [named(*pair) for pair in chances.top]} if chances.top else {})
        for token, chances in zip(completion.tokens, completion.chances, strict=True)
    ]
