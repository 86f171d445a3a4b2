"""The one training loop: a stream of batches, an engine, a schedule, callbacks.

    stream -> microbatches -> engine (forward, backward, clip, update) -> callbacks

It knows nothing about models, objectives or files, and never touches a gradient. Whatever looks at the run
(evaluation, log, checkpoints) is a callback, called in order after each step.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoestring.core.errors import RunError
from shoestring.core.seeds import restore_rng_state, rng_state
from shoestring.data.batch import Batch
from shoestring.kernels import allocator
from shoestring.train import parallel, watchdog
from shoestring.train.engine import Engine, StepResult
from shoestring.train.interrupt import Interrupted, StopRequest
from shoestring.train.objective import Loss
from shoestring.train.pace import Clock, Pace
from shoestring.train.schedule import Schedule
from shoestring.train.stages import Stage, Stages
from shoestring.train.state import TrainerState

MOST_SKIPPED = 10  # steps in a row
MOST_SKIPPED_LAST = 3  # at the end of a run, whose weights are its result


class NonFiniteLoss(RunError):
    """Step after step, the loss or its gradient is no longer a number; or once, where that cannot be undone."""


class Stream(Protocol):
    """Batches without end. `restore(state())` continues with exactly the next batch."""

    def __next__(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass
class StepEvent:
    """What callbacks see after a step.

    seconds: of this step alone; updating: of those, what moving the weights took; waited: those in which this rank
    waited for others. last: no step follows; stopping: why the run is to be saved and left before its end, "" if not.
    A callback may set both. stage: of this step, where the run has several. lines: what callbacks that come before the
    metrics have to say in metrics.jsonl.
    """

    state: TrainerState
    loss: Loss
    learning_rate: float
    result: StepResult
    seconds: float
    tokens: int
    last: bool
    stopping: str
    pace: Pace
    stage: Stage | None = None
    waited: float = 0.0
    updating: float = 0.0
    lines: list[dict[str, Any]] = field(default_factory=list)


class Callback:
    """Base of what is called after each step."""

    def after_step(self, event: StepEvent) -> None:
        raise NotImplementedError

    def seconds_ahead(self, step: int, total: int, step_seconds: float) -> float:
        """Wall clock that it will still take between `step` and the end at `total`."""
        return 0.0


def train(
    engine: Engine,
    stream: Stream,
    learning_rate: float,
    schedule: Schedule,
    pace: Pace,
    state: TrainerState,
    *,
    microbatches: int = 1,
    stages: Stages | None = None,
    clip: float | None = 1.0,
    explosion: float | None = None,
    roll_back: Callable[[TrainerState, str], bool] | None = None,
    callbacks: Sequence[Callback] = (),
    stop: StopRequest | None = None,
    clock: Clock | None = None,
) -> TrainerState:
    """Train until `pace` says so. `state` is advanced in place and returned.

    learning_rate: the highest, for the log. microbatches: batches of one optimizer step; stages: what else they are,
    where that changes over the run. explosion: a step whose loss is so many nats above the median of the last ones
    changes nothing, like one whose loss is no number. roll_back: told after ten such steps in a row, or one broken off
    among its weights; -> whether it has brought engine and state back to where they were sound. Raises NonFiniteLoss
    where it has not, and Interrupted once the callbacks have run after the step during which the user asked to stop.
    When memory is refused in the middle of a step, everything is as after the step before (but for a stage that was
    reached), and the refusal goes on.
    """
    clock = clock or Clock()
    stages = stages or Stages((Stage(microbatches),))
    clock.start(state.seconds)
    pace.start(state)

    def reserve(at: int, total: int, step_seconds: float) -> float:
        # `at` is the step just done, whose own callbacks have not run yet.
        return sum(callback.seconds_ahead(at - 1, total, step_seconds) for callback in callbacks)

    while not pace.is_finished(state):
        started = time.perf_counter()
        parallel.waited()  # what is between two steps is none of theirs
        planned = pace.expected_steps(state)
        where = state.schedule_position() if state.planned_steps is not None else float(state.step)
        share = schedule(where - state.schedule_step, planned - state.schedule_step)
        position, random = stream.state(), rng_state()
        try:
            if (number := stages.of(state, where)) != state.stage:
                stages.change(state, number)
                position = stream.state()
            stage = stages.all[state.stage]
            share *= stage.rate
            watchdog.doing(state.step + 1, "reading its batch")
            group = [next(stream) for _ in range(stage.microbatches)]
            watchdog.doing(state.step + 1, "passes forward and backward")
            engine.set_rate(share)
            engine.set_limit(state.loss_limit(explosion))
            loss = engine.forward_backward(group)
            watchdog.doing(state.step + 1, "moving the weights")
            with parallel.together():
                updating = time.perf_counter()
                result = engine.optimizer_step(clip, share)
                updating = time.perf_counter() - updating
        except RuntimeError as error:
            if allocator.refused(error) is not None or isinstance(error, parallel.Elsewhere):
                traceback.clear_frames(error.__traceback__)  # which hold the step's activations
                allocator.limit()  # what follows takes little, and must not fail
                engine.abandon()
                stream.restore(position)
                restore_rng_state(random)
            raise
        if reason := _count_skipped(state, result, loss):
            if roll_back is None or not roll_back(state, reason):
                raise NonFiniteLoss(reason)

        tokens = int(parallel.sum_shares(sum(batch.tokens_BT.numel() for batch in group))[0])
        state.step += 1
        state.tokens += tokens
        state.seconds = clock()
        seconds, waited = time.perf_counter() - started, parallel.waited()
        pace.after_step(state, seconds, reserve)
        asked = stop is not None and bool(parallel.sum_numbers(stop.requested)[0])
        stopping = f"stopped after step {state.step}" if asked else ""
        event = StepEvent(
            state, loss, learning_rate * share, result, seconds, tokens, pace.is_finished(state), stopping, pace,
            stage if len(stages.all) > 1 else None, waited, updating,
        )  # fmt: skip
        watchdog.doing(state.step, "after its step", limited=parallel.rank() != 0)  # the first does some for all
        for callback in callbacks:
            callback.after_step(event)
            state.seconds = clock()
        if event.last:  # a callback may end the run too
            break
        if event.stopping:
            raise Interrupted(event.stopping)
    return state


def _count_skipped(state: TrainerState, result: StepResult, loss: Loss) -> str:
    """A step that was skipped is an event of the run; -> why it cannot go on like this: ten in a row, three at the end,
    or one that was broken off."""
    number = state.step + 1
    if result.torn:
        return f"step {number} was broken off among its weights: {result.reason}"
    if not result.skipped:
        state.skipped_in_a_row = 0
        if loss.count:
            state.remember(loss.mean)
        return ""
    state.skipped_in_a_row += 1
    state.events.append({"event": "skipped", "step": number, "reason": result.reason})
    most = MOST_SKIPPED if number != state.total_steps else MOST_SKIPPED_LAST
    if state.skipped_in_a_row < most:
        return ""
    return f"{state.skipped_in_a_row} steps in a row were skipped up to step {number}: {result.reason}"
