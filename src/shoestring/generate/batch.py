"""Many prompts answered together, each as soon as there is a place for it; an answer is given once it is whole.

Which random numbers an answer gets depends on its row alone: answers asked for in several goes are those of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from shoestring.generate.config import SamplingConfig
from shoestring.generate.request import Speed
from shoestring.generate.text import TextStream

if TYPE_CHECKING:
    from shoestring.generate.language_model import Completion, LanguageModel


def answer_rows(
    model: LanguageModel,
    prompts: Iterable[tuple[int, Sequence[int]]],
    longest: int,
    sampling: SamplingConfig,
    slots: int,
) -> Iterator[tuple[int, Completion]]:
    """(row, completion) of each (row, its tokens), in the order in which they end. longest: tokens of a prompt.

    slots: decoded at once; fewer where the model's memory is limited. `model.speed` counts meanwhile.
    """
    from shoestring.generate.language_model import Completion

    capacity = min(longest + sampling.max_tokens, model.decoder.config.context)
    if model.at_once is not None:
        slots = max(min(slots, model.at_once // capacity), 1)
    scheduler = model.scheduler(slots, capacity)
    model.speed = scheduler.speed = Speed()
    left = iter(prompts)
    running: dict[int, tuple[int, Completion, TextStream]] = {}
    while True:
        while len(running) < slots and (following := next(left, None)) is not None:
            row, tokens = following
            id = scheduler.add(model.request(list(tokens), sampling, row))
            running[id] = row, Completion(len(tokens)), TextStream(model.tokenizer, sampling.stop)
        if not running:
            return
        for event in scheduler.step():
            row, completion, text = running[event.request]
            reason = event.reason
            completion.tokens.append(event.token)
            if reason != "stop_token":
                completion.text += text.add(event.token)
            if reason is not None and not text.stopped:
                completion.text += text.finish()
            if text.stopped:
                reason = "stop_string"
                scheduler.cancel(event.request)
            if reason is not None:
                completion.reason = reason
                del running[event.request]
                yield row, completion
