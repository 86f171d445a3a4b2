"""metrics.jsonl: what happened, one JSON object a line, each with its `step`.

A training line has tokens, loss (nats per label), lr, grad_norm, tokens_per_second (of all processes), share_of_peak,
memory (of this process), tensors (live, as the allocator counts) and seconds, and stage (counted from 1) where the run
has several; an evaluation line has held_out_loss and
bits_per_byte; an event line has event. Lines after the checkpoint that a run resumes from are cut off, so no step
appears twice.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from shoestring.core.errors import RunError
from shoestring.core.files import atomic_write
from shoestring.core.foreign import parse_json
from shoestring.core.machine import rss_bytes
from shoestring.kernels.allocator import counts
from shoestring.models.config import ModelConfig
from shoestring.models.count import operations
from shoestring.train import parallel
from shoestring.train.loggers import Logger
from shoestring.train.loop import Callback, StepEvent


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
        self._opened = open(file, "a", encoding="utf-8") if parallel.rank() == 0 else None

    def after_step(self, event: StepEvent) -> None:
        if self._opened is None:
            return
        state = event.state
        for values in state.events[self._events :]:
            self._write(values)
        self._events = len(state.events)
        if state.step % self.every == 0 or event.last or event.stopping:
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

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        for logger in self.loggers:
            logger.close()

    def _write(self, values: dict[str, Any]) -> None:
        assert self._opened is not None
        try:
            self._opened.write(json.dumps(values) + "\n")
            self._opened.flush()
        except OSError as error:
            raise RunError(
                f"cannot be written: {error.strerror}", str(self.file), "free some space and resume"
            ) from error
        for logger in self.loggers:
            logger.add(values)


def _finite(number: float) -> float | None:
    """JSON has no other numbers."""
    return number if math.isfinite(number) else None


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut by a kill is left out, and so are losses without a number.

    A loss that was none, or a line that someone else wrote, must not end a run at its plot.
    """
    lines = _lines(file)
    for line in lines:
        for name, needed in _TOGETHER.items():
            if not all(_is_number(line.get(key)) for key in (name, *needed)):
                line.pop(name, None)
    return lines


# A loss, and what is drawn together with it.
_TOGETHER = {"loss": ("tokens",), "held_out_loss": ("tokens", "held_out_tokens", "bits_per_byte")}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e18  # neither NaN nor infinite


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = parse_json(line)
            except ValueError:
                continue
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                lines.append(values)
    return lines


def truncate_metrics(file: Path, step: int) -> None:
    """Cut off what was written after `step`, the one to resume from."""
    if file.is_file():
        kept = [values for values in _lines(file) if values["step"] <= step]
        with atomic_write(file) as opened:
            opened.writelines(json.dumps(values) + "\n" for values in kept)
