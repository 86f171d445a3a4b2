"""What the trainer knows besides weights and moments: plain numbers, saved as `trainer/state.json`.

Everything the next step depends on is here, in the optimizer's tensors or in the random generators' states.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

FORMAT = 1
_MOST = 2**62  # that counters in C can hold
_REMEMBERED = 100  # losses that the next one is compared with
_ENOUGH = 20  # before which none is called an explosion
# What a resumed run reads of an event, and its type.
_READ_AGAIN: dict[str, tuple[str, type]] = {"started": ("before", float), "source": ("digest", str)}


@dataclass
class HeldOut:
    """A measurement on held-out text. loss: nats per label, of `tokens` labels for `bytes` of text.

    sample: it was a part of the text; such figures are compared with one another alone.
    """

    step: int
    loss: float
    bits_per_byte: float
    tokens: int
    bytes: int
    documents: int
    sample: bool = False


@dataclass
class TrainerState:
    """step: optimizer steps done. seconds: wall clock used, over all sessions of the run.

    total_steps: where the run ends, None until a time budget has fixed it. planned_steps: the first such number, which
    the schedule is made for; it began at schedule_step, 0 unless a finished run was made longer. When the end moves at
    step `turn_step`, where the schedule stood at `turn_position`, the rest of the schedule is walked in strides that
    finish it there. best_loss: the lowest held-out loss, at step best_step, kept where a run looks for it
    (`train.early_stopping`). skipped_in_a_row: steps that changed nothing, up to the last one (`train.loop`). stage: of
    the last step, counted from 0 (`train.stages`). matmul: which library multiplied which matrices
    (`core.matmul_choice`), for the last bits of what follows. recent_losses: of the last steps that were done, in nats
    per label; rollbacks: how often the run has gone back to a checkpoint (`train.rollback`).
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    total_steps: int | None = None
    planned_steps: int | None = None
    schedule_step: int = 0
    turn_step: int = 0
    turn_position: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    held_out: HeldOut | None = None
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    skipped_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    stage: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    matmul: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    def remember(self, loss: float) -> None:
        """Of a step that was done."""
        if math.isfinite(loss):
            self.recent_losses = [*self.recent_losses[1 - _REMEMBERED :], loss]

    def loss_limit(self, above: float | None) -> float:
        """Beyond which the next step's loss is an explosion: so many nats above the median; infinite while too few are
        known to tell."""
        if above is None or len(self.recent_losses) < _ENOUGH:
            return math.inf
        return statistics.median(self.recent_losses) + above

    def plan(self, total: int) -> None:
        """Fix the number of steps."""
        self.total_steps = self.planned_steps = max(total, 1)

    def extend(self, total: int | None) -> str:
        """Go on to step `total`, or for as long as a time budget lasts (None); -> what becomes of the schedule.

        A finished schedule has brought the rate down, and begins anew over the steps to come; one that is under way
        becomes that of the longer run. Either is an event.
        """
        anew = self.finished
        self.events.append(
            {
                "event": "extended",
                "step": self.step,
                "seconds": round(self.seconds, 1),
                "from": self.total_steps,
                "to": total,
                "schedule": "anew" if anew else "longer",
            }
        )
        self.schedule_step = self.step if anew else self.schedule_step
        self.total_steps = self.planned_steps = total
        self.turn_step, self.turn_position = 0, 0.0
        self.evaluations_since_best, self.finished = 0, False
        if anew:
            return f"the schedule, finished at step {self.step:,}, begins anew for the steps to come, warmup included"
        return f"from step {self.step + 1:,} on the schedule is that of the longer run"

    def move_end(self, total: int) -> None:
        """End at step `total` instead, with the schedule finished; the change is logged in `events`."""
        assert self.total_steps is not None and self.planned_steps is not None
        assert self.step <= total <= self.planned_steps and total != self.total_steps
        self.events.append(
            {
                "event": "shortened" if total < self.total_steps else "lengthened",
                "step": self.step,
                "seconds": round(self.seconds, 1),
                "from": self.total_steps,
                "to": total,
            }
        )
        if self.step != self.turn_step:  # at the same step once more, it stands where it stood
            self.turn_position = self.schedule_position()
        self.turn_step = self.step
        self.total_steps = total

    def schedule_position(self) -> float:
        """The step of the planned schedule that the next step stands for."""
        assert self.total_steps is not None and self.planned_steps is not None
        if self.turn_step == 0:
            return float(self.step)
        end = self.planned_steps - 1  # where the last step stands, be it the only one left
        left = self.total_steps - self.turn_step - 1
        walked = (self.step - self.turn_step) / left if left > 0 else 1.0
        return min(self.turn_position + walked * (end - self.turn_position), end)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainerState:
        """Raises ValueError when the format is another's, or a value is none that a run could have written."""
        values = dict(values)
        if values.pop("format", None) != FORMAT:
            raise ValueError(f"not a trainer state of format {FORMAT}")
        if unknown := values.keys() - {each.name for each in fields(cls)}:
            raise ValueError(f"unknown {sorted(unknown)[0]}")
        try:
            state = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        counts = [state.step, state.tokens, state.turn_step, state.evaluations_since_best, state.skipped_in_a_row]
        counts += [state.stage, state.rollbacks]
        counts += [n for n in (state.total_steps, state.planned_steps, state.best_step) if n is not None]
        if not all(0 <= count < _MOST for count in counts) or state.step > (state.total_steps or _MOST):
            raise ValueError("counts of steps or tokens that no run has")
        if len(state.recent_losses) > _REMEMBERED or not all(map(math.isfinite, state.recent_losses)):
            raise ValueError("recent losses that no run has")
        if (state.total_steps is None) != (state.planned_steps is None):
            raise ValueError("total_steps and planned_steps are known together")
        if any(type(event.get("step")) is not int or not isinstance(event.get("event"), str) for event in state.events):
            raise ValueError("an event without its name or step")
        for event in state.events:
            key, kind = _READ_AGAIN.get(event["event"], ("event", str))
            if not isinstance(event.get(key), kind):
                raise ValueError(f"an event {event['event']!r} without its {key}")
        return state


def is_due(step: int, total: int | None, every: int | None, times: int) -> bool:
    """Whether something done `every` n steps, or `times` over the run when n is None, is done after step
    `step`.

    Always after the last step.
    """
    if total is not None and step >= total:
        return True
    if every is not None:
        return step % every == 0
    return total is not None and step * times // total > (step - 1) * times // total


def times_left(step: int, total: int, every: int | None, times: int) -> int:
    """How often it is still due between `step` (not included) and the end, the last step not counted."""
    if every is not None:
        return (total - 1) // every - step // every
    times = min(times, total)
    return (total - 1) * times // total - step * times // total
