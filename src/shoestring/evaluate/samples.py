"""What a model writes while it is trained: the same few prompts, continued at each evaluation, into metrics.jsonl.

Sampled at a temperature with a fixed seed by a generator of its own, so that training goes on with the bits that it
would have without. Every process writes the same texts, since one alone could not run a model that all hold together.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shoestring.core.errors import ShoestringError
from shoestring.core.seeds import restore_rng_state, rng_state
from shoestring.data.corpus import Corpus
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.text import without_controls
from shoestring.kernels import allocator
from shoestring.train.evaluation import TIMES
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.run import say
from shoestring.train.state import is_due, times_left

LONGEST = 48  # tokens of a sample
STREAMED_LONGEST = 12  # while each of them reads the model from disk
_OPENING = 12  # tokens of a text that is to be continued
_TEMPERATURE = 0.7


class Prompt(NamedTuple):
    """text: as a person reads it. ids: as the model does."""

    text: str
    ids: list[int]


def openings(corpus: Corpus, count: int) -> list[Prompt]:
    """The first tokens of held-out documents, or a plain word where none are held out."""
    tokenizer = corpus.tokenizer
    long_enough = (one for one in corpus.held_out_documents() if len(one.tokens) > _OPENING)
    found = [document.tokens[:_OPENING].tolist() for document in itertools.islice(long_enough, count)]
    prompts = [Prompt(tokenizer.decode(ids), ids) for ids in found]
    return prompts or [Prompt("The", tokenizer.encode("The"))]


class Samples(Callback):
    """model: the live one, as something that writes. every: steps, as evaluations have it. Comes before metrics."""

    def __init__(
        self, model: Callable[[], LanguageModel], prompts: Sequence[Prompt], every: int | None, longest: int = LONGEST
    ):
        self.model, self.prompts, self.every, self.longest = model, prompts, every, longest
        self._seconds: float | None = None

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        if not self.prompts or not (event.last or is_due(state.step, state.total_steps, self.every, TIMES)):
            return
        started, random = time.perf_counter(), rng_state()
        language = self.model()
        language.decoder.eval()
        room = max(language.decoder.config.context - self.longest, 1)
        prompts = [prompt.ids[-room:] for prompt in self.prompts]
        parts = language.decoder.parts
        try:
            with contextlib.nullcontext() if parts is None else parts.computing():
                done = language.complete_ids(prompts, temperature=_TEMPERATURE, max_tokens=self.longest, seed=0)
        except (RuntimeError, ShoestringError) as error:
            if isinstance(error, RuntimeError) and allocator.refused(error) is None:
                raise
            reason = getattr(error, "message", "there is no memory left for them")
            say(f"samples   {reason}; the run goes on without")
            self.prompts = ()
            return
        finally:
            language.decoder.train()
            restore_rng_state(random)
        for prompt, completion in zip(self.prompts, done, strict=True):
            event.lines.append({"prompt": without_controls(prompt.text), "sample": without_controls(completion.text)})
        self._seconds = time.perf_counter() - started

    def seconds_ahead(self, step: int, total: int, step_seconds: float) -> float:
        each = step_seconds if self._seconds is None else self._seconds
        return each * (times_left(step, total, self.every, TIMES) + 1) if self.prompts else 0.0
