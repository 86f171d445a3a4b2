"""Batches that the student writes itself, where the teacher's opinion is of what the student does (arXiv 2306.13649).

Whether a microbatch is written is decided by a hash of the seed and its number, and so is every token drawn, from the
student as it is when the batch is asked for: a run that goes on draws what an uninterrupted one would. Prompts are what
stands before the first learned token of an example, of text its beginning. As many of a row's prompts are continued as
fit into the row with `new_tokens` each. Only what was written is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from shoestring.compression.distill.config import DistillConfig
from shoestring.compression.distill.lesson import Lesson, lesson
from shoestring.core.errors import DataError
from shoestring.core.seeds import derive_seed
from shoestring.data.batch import IGNORED, PADDING_SEGMENT, Batch
from shoestring.data.sources import Skipped
from shoestring.data.supervised.batches import to_batch
from shoestring.data.supervised.dataset import DatasetBuilder
from shoestring.data.supervised.supervise import ModelSide
from shoestring.generate.config import SamplingConfig
from shoestring.generate.request import Request
from shoestring.generate.scheduler import Scheduler
from shoestring.models.decoder import Decoder
from shoestring.train.loop import Stream

SLOTS = 16  # texts written at once
_MOST = 2**62


class OnPolicy:
    """A stream over `stream`, of which some batches are the student's own. text: whether the data are text without
    questions. length: tokens of a row."""

    def __init__(
        self, stream: Stream, decoder: Decoder, side: ModelSide, settings: DistillConfig, seed: int, length: int,
        text: bool,
    ):  # fmt: skip
        self._stream, self._decoder, self._side = stream, decoder, side
        self._settings, self._seed, self._length, self._text = settings, seed, length, text
        self._batches = 0

    def __iter__(self) -> OnPolicy:
        return self

    def __next__(self) -> Batch:
        batch, number = next(self._stream), self._batches
        self._batches += 1
        if not self._writes(number):
            return batch
        prompts = [self._fitting(row) for row in self._prompts(batch)]
        return batch if not any(prompts) else self._written(prompts, number)

    def state(self) -> dict[str, Any]:
        return {"batches": self._batches, "examples": self._stream.state()}

    def restore(self, state: dict[str, Any]) -> None:
        batches = state.get("batches")
        if type(batches) is not int or not 0 <= batches < _MOST or not isinstance(state.get("examples"), dict):
            raise DataError("the stream to resume says no place in its data", hint="remove this checkpoint folder")
        self._stream.restore(state["examples"])
        self._batches = batches

    def _writes(self, number: int) -> bool:
        return derive_seed(self._seed, "on policy", number) / 2**63 < self._settings.on_policy

    def _prompts(self, batch: Batch) -> Iterator[list[list[int]]]:
        """Of each row."""
        arrays = [part.numpy() for part in (batch.tokens_BT, batch.labels_BT, batch.segments_BT)]
        for tokens_T, labels_T, segments_T in zip(*arrays, strict=True):
            borders = [0, *(np.flatnonzero(segments_T[1:] != segments_T[:-1]) + 1).tolist(), len(segments_T)]
            row = []
            for begin, end in zip(borders, borders[1:], strict=False):
                learned = np.flatnonzero(labels_T[begin:end] != IGNORED)
                if segments_T[begin] == PADDING_SEGMENT or not len(learned):
                    continue
                asked = int(learned[0]) + 1  # tokens up to the one whose label is the first
                if self._text:
                    asked = min(self._settings.prompt_tokens, max((end - begin) // 2, 1))
                row.append(tokens_T[begin : begin + asked].tolist())
            yield row

    def _fitting(self, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
        """Each with the tokens that may be written behind it."""
        found: list[tuple[list[int], int]] = []
        left = self._length
        for prompt in prompts:
            new = min(self._settings.new_tokens, self._length - len(prompt))
            if new > 0 and len(prompt) + new <= left:
                found.append((prompt, new))
                left -= len(prompt) + new
        return found

    def _written(self, rows: list[list[tuple[list[int], int]]], number: int) -> Lesson:
        flat = [pair for row in rows for pair in row]
        texts = iter(self._write(flat, number))
        tokenizer = self._side.tokenizer
        builder = DatasetBuilder("the student", "text", tokenizer, self._side.stop_ids, None)
        numbers: list[list[int]] = []
        for row in rows:
            numbers.append([])
            for prompt, _ in row:
                ids = np.array([*prompt, *next(texts)], np.int64)
                numbers[-1].append(sum(map(len, numbers)))
                builder.add(ids, np.arange(len(ids)) >= len(prompt), len(ids), "the student")
        batch = to_batch(builder.build(Skipped()), [row for row in numbers if row])
        return lesson(batch, own=True)

    def _write(self, prompts: list[tuple[list[int], int]], number: int) -> list[list[int]]:
        """What the student says behind each prompt, one token at least."""
        decoder, settings = self._decoder, self._settings
        training = decoder.training
        decoder.eval()
        try:
            capacity = max(len(prompt) + new for prompt, new in prompts) + 1
            cache = decoder.new_cache(min(SLOTS, len(prompts)), min(capacity, decoder.config.context))
            scheduler = Scheduler(decoder, cache, self._side.tokenizer.vocabulary_size)
            seed = derive_seed(self._seed, "written", number)
            texts: dict[int, list[int]] = {}
            for row, (prompt, new) in enumerate(prompts):
                sampling = SamplingConfig(
                    max_tokens=new, temperature=settings.sampling_temperature, top_p=1.0, seed=seed
                )
                texts[scheduler.add(Request(prompt, sampling, self._side.stop_ids, row))] = []
            for event in scheduler.run():
                texts[event.request].append(event.token)
        finally:
            decoder.train(training)
        return [texts[request] for request in sorted(texts)]


def asked(settings: DistillConfig, length: int) -> tuple[int, int, int]:
    """Texts at once, the longest prompt and its new tokens, for the plan."""
    if not settings.on_policy:
        return 0, 0, 0
    new = min(settings.new_tokens, length - 1)
    return SLOTS, length - new, new
