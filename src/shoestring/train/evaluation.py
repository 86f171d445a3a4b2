"""Held-out loss and bits per byte, measured while training and at its end.

Bits per byte = nats of all labels / ln 2 / bytes of text they stand for (UTF-8): comparable between
tokenizers and with compressors. Each document also pays for its end, the separator that follows it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import Protocol

import torch

from shoestring.core.waiting import Waiting
from shoestring.data.batch import IGNORED, Batch
from shoestring.models.decoder import Decoder
from shoestring.train import parallel
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss
from shoestring.train.state import HeldOut, is_due, times_left

TIMES = 10  # over a run, when no interval is set
_FORWARD_SHARE = 0.4  # of a training step's time, a first estimate until an evaluation has been timed


class HeldOutText(Protocol):
    """What is measured: one pass over `tokens` labels that stand for `bytes` of text in `documents`."""

    tokens: int
    bytes: int
    documents: int

    def __iter__(self) -> Iterator[Batch]: ...


def measure(
    model: Decoder,
    text: HeldOutText,
    compute: torch.dtype = torch.float32,
    step: int = 0,
    told: Waiting | None = None,
) -> HeldOut:
    """The model's loss on every label of `text`, summed over ranks. told: what is shown meanwhile, in labels."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad():
            for batch in text if model.parts is None else parallel.in_step(text):
                if batch is None:  # the others have more, and gather weights from this process too
                    forward_loss(model, next_token, _nothing().to(device), compute)
                    continue
                loss, _ = forward_loss(model, next_token, batch.to(device), compute)
                total += float(loss.sum)
                count += loss.count
                if told is not None:
                    told.advance(loss.count * parallel.shares())
    finally:
        model.train(training)
    (total,), (labels,) = parallel.sum_numbers(total), parallel.sum_shares(count)  # of stages the last has the loss
    bits = total / math.log(2) / max(text.bytes, 1)
    return HeldOut(step, total / max(labels, 1), bits, int(labels), text.bytes, text.documents)


def _nothing() -> Batch:
    """A token without a label."""
    zero = torch.zeros(1, 1, dtype=torch.int64)
    return Batch(zero, torch.full_like(zero, IGNORED), zero, zero)


class Evaluation(Callback):
    """Measures `sample` every so often and `whole` after the last step.

    The result stands in the trainer's state.
    """

    def __init__(
        self,
        model: Decoder,
        sample: HeldOutText,
        whole: HeldOutText,
        every: int | None,
        step_tokens: int,
        compute: torch.dtype = torch.float32,
    ):
        self.model, self.sample, self.whole, self.every, self.compute = model, sample, whole, every, compute
        self.step_tokens = step_tokens
        self._seconds_per_token: list[float] = []

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        if not (event.last or is_due(state.step, state.total_steps, self.every, TIMES)):
            return
        text = self.whole if event.last else self.sample
        started = time.perf_counter()
        state.held_out = measure(self.model, text, self.compute, state.step)
        state.held_out.sample = text.tokens < self.whole.tokens
        self._seconds_per_token.append((time.perf_counter() - started) / max(text.tokens, 1))

    def seconds_ahead(self, step: int, total: int, step_seconds: float) -> float:
        # The guess counts as one measurement: a single disturbed evaluation must not shorten a run.
        guess = _FORWARD_SHARE * step_seconds / self.step_tokens
        each = statistics.median_low([guess, *self._seconds_per_token])
        return each * (times_left(step, total, self.every, TIMES) * self.sample.tokens + self.whole.tokens)
