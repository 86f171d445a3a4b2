"""What a session of a run took, beside what its plan said: `plan.receipt` filled in by whoever trains.

Time is that of the steps alone, without the first ones of a session, which are slow; what stands between them
(held-out losses, checkpoints) has a line of its own. Memory is told only where this run set the process's peak.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoestring.core.console import say
from shoestring.core.machine import peak_rss_bytes
from shoestring.kernels import allocator
from shoestring.plan import receipt as receipts
from shoestring.plan.divided import MOMENTS, WEIGHTS
from shoestring.plan.receipt import Item, Receipt, memory_items, receipt_of
from shoestring.plan.shapes import Prediction
from shoestring.plan.speed import MOVING
from shoestring.train import parallel
from shoestring.train.engine import Engine
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.pace import WARM_STEPS
from shoestring.train.stages import Stages


class Receipts(Callback):
    """Collects the seconds of steps; `keep` writes the receipt, by the first process. before: the process's peak until
    now."""

    def __init__(self, prediction: Prediction, stages: Stages | None, before: int):
        self.prediction, self.stages, self.before = prediction, stages, before
        self.began = time.perf_counter()
        self.steps = 0
        self.stepping = 0.0  # seconds of all steps
        self._stage: int | None = None
        self._measured: list[tuple[float, float]] = []  # of a step, and of its update alone

    def after_step(self, event: StepEvent) -> None:
        self.steps += 1
        self.stepping += event.seconds
        if event.state.stage != self._stage:  # its steps are of another size
            self._stage, self._in_stage = event.state.stage, 0
            self._measured.clear()
        self._in_stage += 1
        if self._in_stage <= WARM_STEPS:
            return
        share = 1.0  # rows are padded to their longest, not all to the longest of all
        if self.stages is None and self.prediction.tokens:
            share = self.prediction.tokens * parallel.world_size() / event.tokens
        self._measured.append(((event.seconds - event.updating) * share, event.updating))

    def receipt(self, recipe: Any, engine: Engine) -> Receipt:
        """Until now."""
        prediction = self._prediction()
        device, peak, counted = torch.device(engine_device(engine)), peak_rss_bytes(), allocator.counts()
        measured = peak if device.type == "cpu" and peak > self.before else None
        tensors = None if counted is None or device.type != "cpu" else counted.live_peak
        computing, updating = (statistics.median(each) for each in zip(*self._measured, strict=True)) if (
            self._measured
        ) else (None, None)  # fmt: skip
        seconds = None if computing is None or updating is None else computing + updating
        items = [*memory_items(prediction, measured, tensors, held(engine))]
        items += self._time_items(prediction, computing, updating)
        return receipt_of(
            prediction, recipe.job, recipe.budget.engine, torch.get_num_threads(), peak=measured, tensors=tensors,
            seconds=seconds, count=len(self._measured), items=items, device=device.type,
            processes=parallel.world_size(),
        )  # fmt: skip

    def keep(self, recipe: Any, engine: Engine, out: Path) -> Receipt | None:
        """None where no step was done, or this is not the first process."""
        if not self.steps or parallel.rank() != 0:
            return None
        made = self.receipt(recipe, engine)
        if refused := receipts.keep(made, out):
            say(f"receipt   not kept: {refused}")
        return made

    def _prediction(self) -> Prediction:
        """With the seconds of the stage that was measured."""
        if self.stages is None or self._stage is None:
            return self.prediction
        return replace(self.prediction, seconds=self.stages.all[self._stage].seconds, time=())

    def _time_items(self, prediction: Prediction, computing: float | None, updating: float | None) -> Iterator[Item]:
        moving = dict(prediction.time).get(MOVING)
        others = [(name, seconds) for name, seconds in prediction.time if name != MOVING]
        for name, seconds in others:
            yield Item(name, "seconds", seconds)
        together = sum(seconds for _, seconds in others) if others else None
        yield Item("forward and backward", "seconds", together, computing)
        yield Item(MOVING, "seconds", moving, updating)
        whole = None if computing is None or updating is None else computing + updating
        yield Item("a step", "seconds", prediction.seconds or None, whole)
        yield Item("all steps", "seconds", prediction.seconds * self.steps or None, self.stepping)
        rest = time.perf_counter() - self.began - self.stepping
        yield Item("between steps: held-out losses, checkpoints", "seconds", None, max(rest, 0.0))


def held(engine: Engine) -> dict[str, float]:
    """Bytes that the engine's model and moments are, by the plan's names, where it holds them itself."""
    decoder, optimizer = getattr(engine, "decoder", None), getattr(engine, "optimizer", None)
    if decoder is None or optimizer is None:
        return {}
    parts = getattr(engine, "parts", None)  # of a model that several processes divide
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    every = [*(decoder.parameters() if parts is None else parts.local), *decoder.buffers()]
    own = _bytes(tensor for tensor in every if id(tensor) in trained)
    others = _bytes(tensor for tensor in every if id(tensor) not in trained)
    moments = _bytes(
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
    if parts is not None:
        return {WEIGHTS: own + others, MOMENTS: moments}
    found: dict[str, float] = {"moments": moments, "adapters and their moments": own + moments}
    if engine.name != "streamed":  # whose layers are elsewhere
        full = not any(p.requires_grad is False for p in decoder.parameters())
        found["weights"] = own + others if full else others
    return found


def engine_device(engine: Engine) -> str:
    decoder = getattr(engine, "decoder", None)
    return "cpu" if decoder is None else str(next(decoder.parameters()).device)


def _bytes(tensors: Iterator[Tensor]) -> int:
    """Of their storages, each once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())
