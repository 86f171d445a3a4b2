"""When a run ends. `FixedSteps` counts; `TimeBudget` turns wall clock into a number of steps, once.

The first steps of a session are slow (kernels are chosen, memory is touched), so they are not measured.
Evaluations and checkpoints still to come are paid for in advance. If the machine slows down later, the end
moves forward, and back towards the planned one when it is fast again; the schedule always finishes there, and
each change is an event in the trainer's state.

In a run of stages a step of one takes longer than a step of another: what has not been measured yet is taken from what
was, in the proportion that the plan predicts.

Every rank has a clock of its own, and would plan otherwise by it: what is settled here is what the first one says.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from shoestring.train import parallel
from shoestring.train.stages import Stage, Stages
from shoestring.train.state import TrainerState

WARM_STEPS = 2  # of each session, not measured
MEASURED_STEPS = 5  # at least, before the number of steps is fixed
MEASURED_SHARE = 0.04  # of the budget, at most; a longer look gives a better number
TARGET = 0.985  # the share of the budget to plan for: noise has a long tail on one side only
PATIENCE = 0.995  # a projected end beyond this share is acted upon
LEISURE = 0.95  # a shortened run that would end before this share grows again
WINDOW = 0.05  # of the budget: how far back the present speed is measured
_GUESS = 1000  # steps of the run before the first one has been measured

# (step, total, seconds of a step of the last stage) -> seconds of what is still to be paid
Reserve = Callable[[int, int, float], float]


class Pace(Protocol):
    """Decides before each step whether there is one, and how long the run is."""

    def start(self, state: TrainerState) -> None: ...
    def is_finished(self, state: TrainerState) -> bool: ...
    def expected_steps(self, state: TrainerState) -> int: ...
    def after_step(self, state: TrainerState, seconds: float, reserve: Reserve) -> None: ...
    def seconds_left(self, state: TrainerState) -> float | None: ...


class Clock:
    """Seconds that a run has used, over all its sessions."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._start = now()
        self._before = 0.0

    def start(self, used: float) -> None:
        self._start, self._before = self._now(), used

    def __call__(self) -> float:
        return self._before + self._now() - self._start


class _Seconds:
    """How long a step of each stage takes: as measured, or by the proportions that were predicted."""

    def __init__(self, stages: Stages | None):
        self.stages = stages or Stages((Stage(1),))
        self._left: dict[int, float] = {}  # of stages that are over

    def leave(self, number: int, seconds: float) -> None:
        self._left[number] = seconds

    def of_each(self, number: int, seconds: float) -> list[float]:
        """seconds: of a step of stage `number`."""
        per_unit = seconds / self.stages.all[number].seconds
        found = [self._left.get(n, stage.seconds * per_unit) for n, stage in enumerate(self.stages.all)]
        found[number] = seconds
        return found

    def expected(self, number: int) -> float | None:
        """Of a stage that has just begun, by the one before it, where that was measured."""
        before = max((n for n in self._left if n < number), default=None)
        if before is None:
            return None
        return self._left[before] * self.stages.all[number].seconds / self.stages.all[before].seconds


class FixedSteps:
    """Ends after `total` steps."""

    def __init__(self, total: int, stages: Stages | None = None):
        self.total = total
        self._recent: deque[float] = deque(maxlen=20)
        self._stage = 0
        self._seconds = _Seconds(stages)

    def start(self, state: TrainerState) -> None:
        if state.total_steps is None:
            state.plan(self.total)

    def is_finished(self, state: TrainerState) -> bool:
        return state.step >= self.total

    def expected_steps(self, state: TrainerState) -> int:
        return self.total

    def after_step(self, state: TrainerState, seconds: float, reserve: Reserve) -> None:
        if state.stage != self._stage:
            self._recent.clear()
            self._stage = state.stage
        self._recent.append(seconds)
        self._reserve = reserve

    def seconds_left(self, state: TrainerState) -> float | None:
        if not self._recent:
            return None
        each = self._seconds.of_each(self._stage, statistics.fmean(self._recent))
        ahead = self._seconds.stages.seconds_ahead(state, self.total - state.step, self.total, each)
        return ahead + self._reserve(state.step, self.total, each[-1])


class TimeBudget:
    """Ends within `budget` seconds of wall clock.

    The number of steps is fixed from the first ones and kept in the state.
    """

    def __init__(self, budget: float, stages: Stages | None = None):
        self.budget = budget
        self._seconds = _Seconds(stages)
        self._stage: int | None = None
        self._steps = 0  # of this session, and of this stage
        self._estimate = _GUESS
        self._measured: deque[float] = deque(maxlen=400)

    def start(self, state: TrainerState) -> None:
        """Nothing is known yet, or the state knows it already."""
        self._estimate = state.schedule_step + _GUESS

    def is_finished(self, state: TrainerState) -> bool:
        return state.total_steps is not None and state.step >= state.total_steps

    def expected_steps(self, state: TrainerState) -> int:
        """The fixed number, or an estimate until then: the warmup needs one from the first step on."""
        return self._estimate if state.planned_steps is None else state.planned_steps

    def after_step(self, state: TrainerState, seconds: float, reserve: Reserve) -> None:
        if self._stage is not None and state.stage != self._stage:
            self._seconds.leave(self._stage, self._recent_seconds_per_step())
            self._measured.clear()
            self._steps = 0
        self._stage = state.stage
        self._steps += 1
        # Until something better is known, a cold step counts: a single step may take most of the budget.
        if self._steps == WARM_STEPS + 1:
            self._measured.clear()
        self._measured.append(seconds)
        if state.total_steps is None:
            left = max(self.budget - state.seconds, 0.0)
            each = self._seconds.of_each(state.stage, self._seconds_per_step())
            mean = self._seconds.stages.seconds_ahead(state, 1, max(self._estimate, state.step + 1), each)
            estimate = max(state.step + 1, state.step + int(left / mean))
            total, self._estimate = parallel.from_first((self._first_plan(state, reserve), estimate))
            if total is not None:
                state.plan(total)
                state.events.append(
                    {
                        "event": "planned",
                        "step": state.step,
                        "steps": state.total_steps,
                        "seconds_per_step": round(self._seconds_per_step(), 4),
                    }
                )
        elif state.step < state.total_steps:
            total = parallel.from_first(self._changed_plan(state, reserve))
            if total != state.total_steps:
                state.move_end(total)

    def _first_plan(self, state: TrainerState, reserve: Reserve) -> int | None:
        """How many steps the run has, None while that is not known."""
        each, used = self._seconds_per_step(), state.seconds
        looked = sum(self._measured)
        warm = self._steps >= WARM_STEPS + MEASURED_STEPS
        long_enough = warm and looked >= min(MEASURED_SHARE * self.budget, 20 * each)
        # Very few steps fit: decide with what is known rather than never. What a cold step says about the
        # evaluations to come is far too much, and a plan is not taken back.
        last = self._seconds.of_each(state.stage, each)[-1]
        later = reserve(state.step, state.step + 2, last) if self._steps > WARM_STEPS else 0.0
        pressed = used + 2 * each + later > TARGET * self.budget
        if not (long_enough or looked >= MEASURED_SHARE * self.budget and warm or pressed):
            return None
        return self._steps_that_fit(state, used, each, reserve)

    def _changed_plan(self, state: TrainerState, reserve: Reserve) -> int:
        """The same number of steps, or another where the run would end late, or early after it was shortened."""
        assert state.total_steps is not None and state.planned_steps is not None
        recent = self._recent_seconds_per_step()
        if self._steps <= WARM_STEPS and (expected := self._seconds.expected(state.stage)) is not None:
            recent = expected  # the first steps of a stage are slow as those of a session are
        ahead, total = self._ahead(state, recent, state.planned_steps), state.total_steps
        projected = state.seconds + ahead(total) + self._reserve(state, recent, total, reserve)
        late = projected > PATIENCE * self.budget
        early = projected < LEISURE * self.budget and state.total_steps < state.planned_steps
        if not (late or early):
            return state.total_steps
        highest = state.total_steps if late else state.planned_steps
        return self._steps_that_fit(state, state.seconds, recent, reserve, highest)

    def seconds_left(self, state: TrainerState) -> float | None:
        return max(self.budget - state.seconds, 0.0)

    def _ahead(self, state: TrainerState, each: float, planned: int | None) -> Callable[[int], float]:
        """What the steps up to a total take. each: seconds of a step of this stage. planned: None for that total."""
        seconds = self._seconds.of_each(state.stage, each)

        def ahead(total: int) -> float:
            walked = planned or max(total, 1)
            return self._seconds.stages.seconds_ahead(state, total - state.step, walked, seconds)

        return ahead

    def _reserve(self, state: TrainerState, each: float, total: int, reserve: Reserve) -> float:
        return reserve(state.step, max(total, 1), self._seconds.of_each(state.stage, each)[-1])

    def _seconds_per_step(self) -> float:
        return statistics.fmean(self._measured)

    def _recent_seconds_per_step(self) -> float:
        """The median over the last 5% of the budget: a disturbance that passes does not end the run."""
        recent: list[float] = []
        for seconds in reversed(self._measured):
            recent.append(seconds)
            if len(recent) >= 8 and sum(recent) > WINDOW * self.budget:
                break
        return statistics.median(recent)

    def _steps_that_fit(
        self, state: TrainerState, used: float, each: float, reserve: Reserve, highest: int | None = None
    ) -> int:
        """The largest total, at most `highest`, whose steps and reserve end before the target.

        At least the steps done.
        """
        least = min(self._seconds.of_each(state.stage, each))
        low, high = state.step, state.step + max(int((self.budget - used) / max(least, 1e-9)), 0)
        ahead = self._ahead(state, each, state.planned_steps)
        if highest is not None:
            high = min(high, highest)
        while low < high:  # the reserve grows with the total, so bisection is right
            middle = (low + high + 1) // 2
            cost = used + ahead(middle) + self._reserve(state, each, middle, reserve)
            low, high = (middle, high) if cost <= TARGET * self.budget else (low, middle - 1)
        return low
