"""What a use of a model took, beside what the plan says of it: kept in the log of this machine (`plan.receipt`).

A use has no folder of its own. Memory is told where it was promised, inside a budget; time where the model wrote or
read as it does by itself, without guesses.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from shoestring.core.machine import peak_rss_bytes
from shoestring.core.speeds import FEW, matrix_peak, memory_bandwidth
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels import allocator
from shoestring.plan import receipt as receipts
from shoestring.plan.decoding import Loaded
from shoestring.plan.receipt import Item, Receipt, memory_items, receipt_of
from shoestring.plan.shapes import Prediction

_Taken = tuple[int, int | None]  # the peaks of the process, and of what lay in tensors


def of_texts(model: LanguageModel, prompt_tokens: int, texts: int, at_once: int) -> Receipt | None:
    """Of texts that were written, so many at once; None where nothing can be said. The figures are `model.speed`'s,
    since it was reset; prompts and texts are taken to be as long as their mean."""
    taken, loaded, speed = _taken(), _measured(model), model.speed
    if loaded is None or not texts or speed.guessed or not prompt_tokens:
        return None
    rows = max(min(texts, at_once), 1)
    written = speed.new_tokens / texts + 1  # the first token of a text belongs to reading
    prediction = loaded.predict("generate", rows, max(round(prompt_tokens / texts), 1), max(round(written), 1))
    return _kept(model, "generate", prediction, texts / rows, speed.prompt_seconds + speed.new_seconds, taken)


def of_scoring(model: LanguageModel, rows: int, length: int, tokens: int, seconds: float) -> Receipt | None:
    """Of text that was scored: tokens in all, padded, in passes of rows × length."""
    taken, loaded = _taken(), _measured(model)
    if loaded is None or not tokens:
        return None
    prediction = loaded.predict("perplexity", rows, length, scored=True)
    return _kept(model, "perplexity", prediction, tokens / (rows * length), seconds, taken)


def _taken() -> _Taken:
    """Until now: before speeds are measured."""
    counts = allocator.counts()
    return peak_rss_bytes(), None if counts is None else counts.live_peak


def _measured(model: LanguageModel) -> Loaded | None:
    """With the machine's speeds, where they are not known yet."""
    loaded = model.loaded
    if loaded is None or loaded.promised:
        return loaded
    flops, bandwidth = matrix_peak(loaded.compute), memory_bandwidth(count=FEW)
    return replace(loaded, machine=replace(loaded.machine, flops=flops, bandwidth=bandwidth))


def _kept(
    model: LanguageModel, job: str, prediction: Prediction, times: float, seconds: float, taken: _Taken
) -> Receipt:
    """times: how often the predicted use was made. taken: of memory."""
    loaded, (peak, tensors) = model.loaded, taken
    assert loaded is not None
    measured = peak if loaded.promised and peak > loaded.before else None
    counted = tensors if loaded.promised else None
    items = [*memory_items(prediction, measured, counted, {})] if loaded.promised else []
    items += [Item(name, "seconds", each * times) for name, each in prediction.time]
    items.append(Item("all of it", "seconds", prediction.seconds * times, seconds))
    made = receipt_of(
        prediction, job, loaded.engine, torch.get_num_threads(), peak=measured, tensors=counted,
        seconds=seconds / times, count=1, items=items, unit="use",
    )  # fmt: skip
    receipts.keep(made, None)
    return made
