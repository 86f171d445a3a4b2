"""Forms predicted for one machine: what each takes of every memory and of time, and what of that is too much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from shoestring.forecast.form import Form, Outcome, Work
from shoestring.plan.constants import SPARE
from shoestring.plan.machine_file import MachineConfig
from shoestring.plan.shapes import Correction, Line, Machine

Place = Literal["cpu", "gpu"]
GIGABYTE = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """memory: of the process, in bytes; given: whether somebody asked for it, or it is all that the machine has. gpu:
    of a GPU, None where there is none to plan for. seconds: that may be waited. disk: that is free."""

    memory: int
    given: bool
    gpu: int | None
    seconds: float | None
    disk: int

    def with_more(self, place: Place, bytes: int) -> Limits:
        if place == "gpu":
            return replace(self, gpu=(self.gpu or 0) + bytes)
        return replace(self, memory=self.memory + bytes)


@dataclass(frozen=True)
class Row:
    """A form on the processor or on a GPU. memory: of the process, gpu: of the GPU's, disk: written; bytes.

    step: seconds of one, None where the machine's speed in this is not known. lines: of memory, then of the disk.
    settled: whether its number format is the one that the job takes where nobody says it.
    """

    place: Place
    form: Form
    outcome: Outcome
    memory: int
    gpu: int
    disk: int
    step: float | None
    lines: tuple[Line, ...]
    settled: bool

    @property
    def seconds(self) -> float | None:
        return None if self.step is None else self.outcome.seconds

    @property
    def steps(self) -> int | None:
        return None if self.step is None and self.outcome.bounded else self.outcome.steps

    def over(self, limits: Limits) -> dict[str, float]:
        """By how much more than each limit it takes, bytes or seconds; empty where it fits."""
        found: dict[str, float] = {}
        for name, size, room in (("memory", self.memory, limits.memory), ("gpu_memory", self.gpu, limits.gpu or 0)):
            if size > room * SPARE:
                found[name] = math.ceil(size / SPARE) - room
        if self.disk > limits.disk:
            found["disk"] = self.disk - limits.disk
        if limits.seconds is not None and self.seconds is not None and self.seconds > limits.seconds:
            found["seconds"] = self.seconds - limits.seconds
        return found

    def fits(self, limits: Limits) -> bool:
        return not self.over(limits)

    @property
    def pace(self) -> float:
        """What rows are compared by: all seconds, or those of a step; infinite where speed is not known."""
        known = self.step if self.seconds is None else self.seconds
        return math.inf if known is None else known / self.form.served

    @property
    def corrected(self) -> str | None:
        """By what, where runs have corrected it."""
        correction = self.outcome.prediction.correction
        return None if correction is None else str(correction)

    def to_json(self, limits: Limits) -> dict[str, Any]:
        form = self.form
        return {
            "device": self.place, "engine": form.engine, "precision": form.precision, "at_once": form.at_once,
            "note": form.note, "memory": self.memory, "gpu_memory": self.gpu, "disk": self.disk,
            "seconds_per_step": self.step, "steps": self.steps, "seconds": self.seconds,
            "fits": self.fits(limits), "over": self.over(limits), "exact": form.exact, "settings": form.settings,
            "lines": [list(line) for line in self.lines], "corrected": self.corrected,
        }  # fmt: skip


def predicted(
    work: Work, machine: MachineConfig, limits: Limits, corrections: tuple[Correction, ...] = ()
) -> list[Row]:  # fmt: skip
    """Every form, on the processor and, where one is planned for, on the GPU. corrections: by runs of this job on the
    machine (`plan.calibration`)."""
    from shoestring.train import precision  # which brings torch

    settled = "bfloat16" if machine.bfloat16_gain >= precision.GAIN else "float32"
    forms = work.forms(limits.given, settled)
    found = [_on_processor(form, machine, form.precision == forms[0].precision, corrections) for form in forms]
    if limits.gpu is not None:
        settled = "bfloat16" if machine.gpu_bfloat16_gain >= precision.GAIN else "float32"
        forms = [form for form in work.forms(limits.given, settled) if form.on_gpu]
        found += [_on_gpu(form, machine, form.precision == forms[0].precision) for form in forms]
    return found


def _on_processor(
    form: Form, machine: MachineConfig, settled: bool, corrections: tuple[Correction, ...]
) -> Row:  # fmt: skip
    where = machine.processor_for(form.precision, machine.process_of(form.process))
    where = replace(where, corrections=corrections)
    outcome = form.predict(where)
    disk = form.disk(outcome.prediction)
    return Row(
        "cpu", form, outcome, outcome.prediction.total, 0, _sum(disk), _step(outcome, where),
        (*outcome.prediction.lines, *disk), settled,
    )  # fmt: skip


def _on_gpu(form: Form, machine: MachineConfig, settled: bool) -> Row:
    """Tensors are the GPU's; what else the process takes, and what waits for its turn there, is memory."""
    where = machine.gpu_for(form.precision, machine.process_of(form.process))
    outcome = form.predict(where)
    prediction = outcome.prediction
    disk, host = form.disk(prediction), form.host(prediction)
    waits: tuple[Line, ...] = (("on its way to the GPU and the disk", host),) if host else ()
    return Row(
        "gpu", form, outcome, _sum(prediction.beside) + host, prediction.tensor_bytes, _sum(disk),
        _step(outcome, where), (*prediction.lines, *waits, *disk), settled,
    )  # fmt: skip


def _step(outcome: Outcome, machine: Machine) -> float | None:
    known = math.isfinite(machine.flops) and outcome.prediction.seconds > 0
    return outcome.prediction.seconds if known else None


def _sum(lines: Sequence[Line]) -> int:
    return sum(size for _, size in lines)


def best(rows: Sequence[Row], limits: Limits) -> Row | None:
    """The fastest that fits: on the GPU if one is planned for, of those that give what the job gives, and in the number
    format that it would take, if there are such."""
    fitting = [row for row in rows if row.fits(limits)]
    return min(fitting, key=rank, default=None)


def rank(row: Row) -> tuple[bool, bool, bool, float]:
    return row.place != "gpu", not row.form.exact, not row.settled, row.pace


def nearest(rows: Sequence[Row], limits: Limits) -> Row:
    """What would need the least more, in the terms of the limits that it passes."""

    def distance(row: Row) -> float:
        room = {
            "memory": limits.memory, "gpu_memory": limits.gpu or 1, "disk": limits.disk or 1,
            "seconds": limits.seconds or 1.0,
        }  # fmt: skip
        return max((size / room[name] for name, size in row.over(limits).items()), default=0.0)

    return min(rows, key=distance)
