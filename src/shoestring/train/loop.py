"""The one training loop: batches, a step, clipping, the optimizer and its schedule, callbacks.

    batches -> microbatches -> step (forward, backward) -> clip -> learning rate -> optimizer -> callbacks

It knows nothing about models, objectives or files: a step leaves gradients in `.grad`, and whatever looks
at the run (evaluation, log, checkpoints) is a callback, called in order after each step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from shoestring.core.errors import RunError
from shoestring.data.batch import Batch
from shoestring.train import parallel
from shoestring.train.interrupt import Interrupted, StopRequest
from shoestring.train.objective import Loss
from shoestring.train.pace import Clock, Pace
from shoestring.train.schedule import Schedule
from shoestring.train.state import TrainerState
from shoestring.train.step import Step


class NonFiniteLoss(RunError):
    """The loss or its gradient is no longer a number."""


@dataclass
class StepEvent:
    """What callbacks see after a step.

    Seconds: of this step alone. last: no step follows; a callback may set it. stopping: the user asked.
    """

    state: TrainerState
    loss: Loss
    learning_rate: float
    gradient_norm: float
    seconds: float
    tokens: int
    last: bool
    stopping: bool
    pace: Pace


class Callback:
    """Base of what is called after each step."""

    def after_step(self, event: StepEvent) -> None:
        raise NotImplementedError

    def seconds_ahead(self, step: int, total: int, step_seconds: float) -> float:
        """Wall clock that it will still take between `step` and the end at `total`."""
        return 0.0


def train(
    step: Step,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    pace: Pace,
    state: TrainerState,
    *,
    microbatches: int = 1,
    clip: float | None = 1.0,
    callbacks: Sequence[Callback] = (),
    device: torch.device | str = "cpu",
    stop: StopRequest | None = None,
    clock: Clock | None = None,
) -> TrainerState:
    """Train until `pace` says so. `state` is advanced in place and returned.

    microbatches: batches of one optimizer step. Raises NonFiniteLoss before the weights are touched,
    Interrupted once the callbacks have run after the step during which the user asked to stop.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    highest = [group["lr"] for group in optimizer.param_groups]
    clock = clock or Clock()
    clock.start(state.seconds)
    pace.start(state)

    def reserve(at: int, total: int, step_seconds: float) -> float:
        # `at` is the step just done, whose own callbacks have not run yet.
        return sum(callback.seconds_ahead(at - 1, total, step_seconds) for callback in callbacks)

    while not pace.is_finished(state):
        started = time.perf_counter()
        group = [next(batches).to(device) for _ in range(microbatches)]
        planned = pace.expected_steps(state)
        position = state.schedule_position() if state.planned_steps is not None else float(state.step)
        share = schedule(position, planned)
        for parameter_group, rate in zip(optimizer.param_groups, highest, strict=True):
            parameter_group["lr"] = rate * share

        loss = step(group)
        norm = _clip(parameters, clip)
        if not (math.isfinite(loss.mean) and math.isfinite(norm)):
            raise NonFiniteLoss(
                f"at step {state.step + 1} the loss is {loss.mean} and its gradient's norm {norm}"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        tokens = int(parallel.sum_numbers(sum(batch.tokens_BT.numel() for batch in group))[0])
        state.step += 1
        state.tokens += tokens
        state.seconds = clock()
        seconds = time.perf_counter() - started
        pace.after_step(state, seconds, reserve)
        stopping = stop is not None and bool(parallel.sum_numbers(stop.requested)[0])
        event = StepEvent(
            state, loss, highest[0] * share, norm, seconds, tokens, pace.is_finished(state), stopping, pace
        )
        for callback in callbacks:
            callback.after_step(event)
            state.seconds = clock()
        if event.last:  # a callback may end the run too
            break
        if stopping:
            raise Interrupted(f"stopped after step {state.step}")
    for parameter_group, rate in zip(optimizer.param_groups, highest, strict=True):
        parameter_group["lr"] = rate
    return state


def _clip(parameters: list[torch.nn.Parameter], limit: float | None) -> float:
    """The global norm of all gradients, which are scaled down to `limit` if it is larger."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
    return float(norm)
