"""Stages of a run (progressive learning): its first steps are cheaper, of shorter rows, fewer of them, fewer layers.

Which stage a step belongs to follows from where the schedule stands and from nothing else, so a resumed run changes at
the same step as an uninterrupted one; a run whose end moves walks through its stages faster, as through its schedule.
A run never goes back to an earlier stage: layers that were added stay. Torch-free.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoestring.train.state import TrainerState


def stage_ends(until: Sequence[float], total: int) -> list[int]:
    """The steps done when each stage but the last is over, in a run of `total` steps.

    until: for each stage but the last, a share of the run when below 1, else steps. Each stage has a step at least,
    where there are as many; later stages come before earlier ones in this.
    """
    ends: list[int] = []
    for share in until:
        end = round(share * total) if share < 1 else int(share)
        ends.append(max(end, ends[-1] + 1 if ends else 1))
    for back in range(1, len(ends) + 1):
        ends[-back] = max(min(ends[-back], total - back), 0)
    return ends


def stage_steps(until: Sequence[float], total: int) -> list[int]:
    """How many of `total` steps each stage has, the last one included."""
    ends = [0, *stage_ends(until, total), total]
    return [end - begin for begin, end in zip(ends, ends[1:], strict=False)]


def steps_for(tokens: int, until: Sequence[float], batch_tokens: Sequence[int]) -> int:
    """The fewest steps, as bisection finds them, that have at least so many tokens. batch_tokens: of each stage."""

    def enough(total: int) -> bool:
        return sum(n * each for n, each in zip(stage_steps(until, total), batch_tokens, strict=True)) >= tokens

    low, high = 1, -(-tokens // min(batch_tokens)) + len(until) + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class Stage:
    """What the loop, the metrics and the pace know of a stage.

    microbatches: of an optimizer step of one process. flops_per_token: of training. seconds: of a step, as predicted;
    only what it is beside the other stages' matters. rate: times the schedule's learning rate. settings: for events
    and metrics.
    """

    microbatches: int
    flops_per_token: float = 0.0
    seconds: float = 1.0
    rate: float = 1.0
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Stages:
    """All stages of a run, the last one included, and the way into one.

    until: of all but the last, as `stage_ends` takes them. enter: brings engine and stream from the stage before into
    stage n, or leaves both as they were where it fails.
    """

    all: tuple[Stage, ...]
    until: tuple[float, ...] = ()
    enter: Callable[[int], None] | None = None

    def of(self, state: TrainerState, position: float) -> int:
        """The stage of the step that stands at this position of the schedule."""
        if state.planned_steps is None:  # shares of what is not known yet
            return state.stage
        return max(state.stage, bisect.bisect_right(stage_ends(self.until, state.planned_steps), position))

    def change(self, state: TrainerState, number: int) -> None:
        """Go to stage `number`, which is an event of the step to come."""
        assert self.enter is not None
        self.enter(number)
        state.stage = number
        event = {"event": "stage", "step": state.step + 1, "tokens": state.tokens, "stage": number + 1}
        state.events.append({**event, **(self.all[number].settings or {})})

    def seconds_ahead(self, state: TrainerState, steps: int, planned: int, each: Sequence[float]) -> float:
        """What `steps` more steps take, that walk the rest of a schedule of `planned` steps; each: of every stage."""
        position = state.schedule_position() if state.planned_steps is not None else float(state.step)
        left = planned - position
        if steps <= 0 or left <= 0:
            return max(steps, 0) * each[state.stage]
        total, begin = 0.0, position
        for number, end in enumerate([*stage_ends(self.until, planned), planned]):
            if number >= state.stage and end > begin:
                total, begin = total + (end - begin) / left * each[number], end
        return steps * total
