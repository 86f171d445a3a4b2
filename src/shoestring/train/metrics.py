"""metrics.jsonl: what happened, one JSON object a line, each with its `step`.

A training line has tokens, loss (nats per label), lr, grad_norm, tokens_per_second (of all processes), share_of_peak,
memory (of this process), tensors (live, as the allocator counts) and seconds, stage (counted from 1) where the run has
several, and waiting_seconds where there are several processes, those of each in a step since the last line; an
evaluation line has held_out_loss and bits_per_byte; a line of what the model wrote has sample; an event line has event.
The file itself is `train.metrics_file`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from shoestring.core.console import say
from shoestring.core.machine import rss_bytes
from shoestring.core.units import counted
from shoestring.kernels.allocator import counts
from shoestring.models.config import ModelConfig
from shoestring.models.count import operations
from shoestring.train import parallel
from shoestring.train.loggers import Logger
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.metrics_file import MetricsFile
from shoestring.train.metrics_file import read_metrics as read_metrics
from shoestring.train.metrics_file import truncate_metrics as truncate_metrics
from shoestring.train.state import TrainerState


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Operations of one training token, forward and backward, without any recomputation.

    Three times the forward pass: backward, each product has two of its size. After appendix B of PaLM (arXiv
    2204.02311), with the causal half of attention counted; `models.count` has the parts.
    """
    return 3.0 * operations(config, sequence_length).forward


def memory_bytes(device: torch.device | str = "cpu") -> int:
    """What the run holds now: the process's resident set, or the GPU allocator's bytes."""
    device = torch.device(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else rss_bytes()


def share_of_peak(rate: float, token_flops: float, peak: float) -> float:
    """Of the matrix peaks of all processes together. rate: tokens per second of all; peak: FLOP/s of one."""
    return rate * token_flops / (peak * parallel.world_size())


class Metrics(Callback):
    """Appends to metrics.jsonl and to the loggers that the recipe asks for.

    Comes after evaluation, before checkpoints.
    """

    def __init__(
        self,
        file: Path,
        every: int,
        token_flops: float,
        peak: float,
        device: torch.device,
        loggers: list[Logger],
        events: int,
    ):
        self.file, self.every, self.token_flops, self.peak = file, every, token_flops, peak
        self.device, self.loggers = device, loggers
        self._events = events  # those that stand in the file already
        self._opened = MetricsFile(file) if parallel.rank() == 0 else None
        self._state: TrainerState | None = None
        self._waited: list[float] = []  # in each step since the last line

    def after_step(self, event: StepEvent) -> None:
        self._waited.append(event.waited)
        due, waiting = event.state.step % self.every == 0 or event.last or bool(event.stopping), {}
        if due and parallel.is_parallel():
            seconds = parallel.by_rank(sum(self._waited) / len(self._waited))
            waiting = {"waiting_seconds": [round(each, 6) for each in seconds]}
            self._waited.clear()
        if self._opened is None:
            return
        state = self._state = event.state
        self._write_events(state)
        if due:
            rate, tensors, stage = event.tokens / event.seconds, counts(), event.stage
            token_flops = self.token_flops if stage is None else stage.flops_per_token
            # The count of each metric is the loss's: they are sums over the same labels.
            extra = {name: _finite(value / max(event.loss.count, 1)) for name, value in event.loss.metrics.items()}
            self._write(
                {
                    "step": state.step,
                    "tokens": state.tokens,
                    "loss": _finite(event.loss.mean),
                    "lr": event.learning_rate,
                    "grad_norm": _finite(event.result.norm),
                    "tokens_per_second": round(rate, 1),
                    "share_of_peak": round(share_of_peak(rate, token_flops, self.peak), 4),
                    "memory": memory_bytes(self.device),
                    **({} if tensors is None else {"tensors": tensors.live}),
                    "seconds": round(state.seconds, 3),
                    **({} if stage is None else {"stage": state.stage + 1}),
                    **waiting,
                    **extra,
                }
            )
        held_out = state.held_out
        if held_out is not None and held_out.step == state.step:
            self._write(
                {
                    "step": state.step,
                    "tokens": state.tokens,
                    "held_out_loss": held_out.loss,
                    "bits_per_byte": held_out.bits_per_byte,
                    "held_out_tokens": held_out.tokens,
                    "held_out_set": "sample" if held_out.sample else "whole",
                    "seconds": round(state.seconds, 3),
                }
            )

        for values in event.lines:
            self._write({"step": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3), **values})

    def close(self) -> None:
        if self._opened is not None:
            if self._state is not None:  # what the last callbacks had to say
                self._write_events(self._state)
            self._opened.close()
            if lost := self._opened.lines_waiting:
                say(f"metrics   {counted(lost, 'line')} of {self.file} could not be written: {self._opened.failed}")
        for logger in self.loggers:
            logger.close()

    def _write_events(self, state: TrainerState) -> None:
        for values in state.events[self._events :]:
            self._write(values)
        self._events = len(state.events)

    def _write(self, values: dict[str, Any]) -> None:
        assert self._opened is not None
        before = self._opened.failed
        self._opened.write(values)
        if (failed := self._opened.failed) and not before:
            say(f"metrics   {self.file} cannot be written: {failed}; the run goes on, and its lines wait in memory")
        elif before and not failed:
            say(f"metrics   {self.file} is written again, what waited included")
        for logger in self.loggers:
            logger.add(values)


def _finite(number: float) -> float | None:
    """JSON has no other numbers."""
    return number if math.isfinite(number) else None
