"""`make_plan(recipe or model)`: what a job would take, and how long, in every form. What `shoestring plan` does.

Nothing is trained or written. The machine is this one, measured, or one that `shoestring doctor --save` described.
Examples are read as the job reads them, since rows and steps depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.errors import BudgetError, ConfigError
from shoestring.core.units import format_bytes, format_seconds
from shoestring.core.waiting import waiting
from shoestring.forecast.config import PlanBudget, plan_budget
from shoestring.forecast.form import Work
from shoestring.forecast.largest import Largest, largest_context, largest_model
from shoestring.forecast.opening import check_job, open_work, recipe_of
from shoestring.forecast.rows import GIGABYTE, Limits, Place, Row, best, nearest, predicted
from shoestring.forecast.text import text
from shoestring.plan.calibration import corrections_of
from shoestring.plan.constants import SPARE
from shoestring.plan.gpu import unpredicted_on_gpu
from shoestring.plan.machine_file import MachineConfig, read_machine

TRAINING = ("pretrain", "finetune", "distill")
_GAIN = 0.99  # of the seconds, below which a form is faster


@dataclass(frozen=True)
class More:
    """What further memory would buy: bytes of `place`'s, a form that they would allow, the largest that would fit."""

    place: Place
    bytes: int
    row: Row | None
    largest: Largest | None = None


@dataclass(frozen=True)
class Plan:
    """name: as it was given. where: of the machine. chosen: the fastest form that fits. gigabyte: what one more would
    buy; faster: the least further memory that would buy anything."""

    name: str
    work: Work
    machine: MachineConfig
    where: str
    limits: Limits
    rows: tuple[Row, ...]
    chosen: Row
    gigabyte: More
    faster: More | None
    largest: Largest | None

    def to_json(self) -> dict[str, Any]:
        limits = self.limits
        return {
            "name": self.name, "job": self.work.job, "parameters": int(self.work.config.parameter_count()),
            "tokens_per_step": self.work.tokens, "machine": self.where, "processor": self.machine.processor,
            "memory": limits.memory, "gpu_memory": limits.gpu, "time": limits.seconds, "disk_free": limits.disk,
            "assumed": list(self.work.assumed),
            "chosen": self.chosen.to_json(limits),
            "rows": [row.to_json(limits) for row in self.rows],
            "one_more_gigabyte": _more_json(self.gigabyte, limits),
            "faster": None if self.faster is None else _more_json(self.faster, limits),
            "largest": None if self.largest is None else _largest_json(self.largest),
        }  # fmt: skip

    def __str__(self) -> str:
        return text(self)


def _more_json(more: More, limits: Limits) -> dict[str, Any]:
    found: dict[str, Any] = {
        "of": "memory" if more.place == "cpu" else "gpu_memory", "bytes": more.bytes,
        "row": None if more.row is None else more.row.to_json(limits.with_more(more.place, more.bytes)),
    }  # fmt: skip
    return found if more.largest is None else {**found, "largest": _largest_json(more.largest)}


def _largest_json(largest: Largest) -> dict[str, Any]:
    return {"of": largest.asked, "size": largest.size, "settings": largest.settings}


def make_plan(
    recipe_or_model: str | Path,
    job: str | None = None,
    *,
    memory: str | int | None = None,
    gpu_memory: str | int | None = None,
    time: str | float | None = None,
    machine: str | Path | MachineConfig | None = None,
    largest: str | None = None,
    overrides: dict[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """Predict a job: memory, disk and time of every engine, number format and microbatch, and what fits.

    job: pretrain, finetune, distill, quantize, serve or generate; a recipe's own if left out. memory: of the whole
    process at most, as "4GB" (all that the machine has). gpu_memory: of a GPU, there or not. time: that one would wait,
    as "10h". machine: a file of `shoestring doctor --save` (this machine). largest: "context" or "model", to be found.
    overrides: the recipe's settings by their dotted names, and generate.*, serve.* and quantize.* for these jobs; or
    keywords with two underscores for a dot. Raises ConfigError, BudgetError where nothing fits, and what opening the
    job's model and data raises.
    """
    changed = {**(overrides or {}), **{key.replace("__", "."): value for key, value in settings.items()}}
    budget = plan_budget(memory, gpu_memory, time)
    check_job(job)
    if largest not in (None, "context", "model"):
        raise ConfigError(f"largest: context or model is looked for, not {largest!r}")
    described = machine if isinstance(machine, MachineConfig) or machine is None else read_machine(machine)
    where = "this one" if machine is None else "as described" if isinstance(machine, MachineConfig) else str(machine)
    if budget.memory is not None and budget.gpu_memory is None:
        changed = _with_budget(str(recipe_or_model), job, changed, budget.memory)
    work = original = _for_time(open_work(str(recipe_or_model), job, changed, console.say), budget.time)
    if described is None:
        with waiting("measuring this machine"):
            described = _this_machine(work)
    limits, kept = _limits(budget, work, described), described
    corrections = corrections_of(work.job, kept.threads) if machine is None else ()

    def rows_of(one: Work) -> list[Row]:
        return predicted(one, kept, limits, corrections)

    rows = rows_of(work)
    found = None
    if largest is not None:
        with waiting(f"looking for the largest {largest}"):
            found = _largest(largest, original, rows_of, limits)
        work = found.work
        rows = rows_of(work)
    chosen = best(rows, limits)
    if chosen is None:
        raise _nothing_fits(rows, limits)
    gigabyte = _with_gigabyte(rows, chosen, limits)
    if found is not None:
        assert largest is not None
        more = limits.with_more(chosen.place, GIGABYTE)
        gigabyte = replace(gigabyte, largest=_largest(largest, original, rows_of, more))
    return Plan(
        str(recipe_or_model), work, described, where, limits, tuple(rows), chosen, gigabyte,
        _least_faster(rows, chosen, limits), found,
    )  # fmt: skip


def _with_budget(name: str, job: str | None, changed: dict[str, Any], memory: int) -> dict[str, Any]:
    """The budget is the recipe's too, which may refuse it, or leave other engines open."""
    if (job or recipe_of(name)) not in TRAINING:
        return changed
    return {**changed, "budget.memory": memory}


def _for_time(work: Any, seconds: float | None) -> Any:
    """A recipe that is bounded by time is planned for the time that one would wait."""
    recipe = getattr(work, "recipe", None)
    if seconds is None or recipe is None or recipe.train.time is None:
        return work
    train = recipe.train.model_copy(update={"time": seconds})
    return replace(work, recipe=recipe.model_copy(update={"train": train}))


def _limits(budget: PlanBudget, work: Work, machine: MachineConfig) -> Limits:
    """A run with a budget of memory stays on the processor, so that a GPU is planned for where there is none, or where
    its memory is given."""
    own = getattr(getattr(getattr(work, "recipe", None), "budget", None), "memory", None)
    memory = budget.memory if budget.memory is not None else own
    gpu, given = budget.gpu_memory, memory is not None and budget.gpu_memory is None
    unknown = unpredicted_on_gpu(work.config)
    if gpu is not None and unknown:
        raise ConfigError(f"what a GPU's memory takes is not predicted of {unknown[0]}", hint="leave out --gpu-memory")
    if gpu is None and machine.gpu is not None and not given and not unknown:
        gpu = machine.gpu.memory
    return Limits(machine.memory if memory is None else memory, given, gpu, budget.time, machine.disk.free)


def _this_machine(work: Work) -> MachineConfig:
    from shoestring.finetuning.model import read_speed
    from shoestring.forecast.computer import this_computer
    from shoestring.forecast.own_size import sizes_for

    machine = this_computer(sizes_for(work.job in TRAINING))
    if work.folder is not None:
        disk = machine.disk.model_copy(update={"read_speed": read_speed(work.folder)})
        machine = machine.model_copy(update={"disk": disk})
    return machine


def _largest(asked: str, work: Work, rows_of: Callable[[Work], list[Row]], limits: Limits) -> Largest:
    last: list[Row] = []

    def fits(one: Work) -> bool:
        last[:] = rows_of(one)
        return any(row.fits(limits) and row.form.exact for row in last)

    found = (largest_context if asked == "context" else largest_model)(work, fits)
    if found is None:
        raise _nothing_fits(last, limits)
    return found


def _nothing_fits(rows: Sequence[Row], limits: Limits) -> BudgetError:
    """With the form that passes its limits by least, and what would do for it."""
    if limits.gpu is not None:  # it is what was asked for
        rows = [row for row in rows if row.place == "gpu"] or rows
    row = nearest(rows, limits)
    over = row.over(limits)
    name = max(over, key=lambda one: over[one] / max(_limit(one, limits), 1.0))
    what = {"memory": "memory", "gpu_memory": "the GPU's memory", "disk": "disk", "seconds": "time"}[name]
    form, there = row.form, _limit(name, limits)
    least = f"{form.engine}, {form.precision}, {form.told} at once"
    needed, flags = there + over[name], {"memory": "--memory", "gpu_memory": "--gpu-memory"}
    size = format_seconds if name == "seconds" else format_bytes
    enough, hint = needed, f"as {least}"
    if name in flags:
        enough = needed * SPARE
        hint = f"{flags[name]} {-(-int(needed) // 10_000_000) * 10}MB would do ({least})"
    return BudgetError(
        f"{size(there)} of {what} are too little: {size(enough)} is the least that is predicted to do", hint=hint
    )


def _limit(name: str, limits: Limits) -> float:
    found = {"memory": limits.memory, "gpu_memory": limits.gpu, "disk": limits.disk, "seconds": limits.seconds}[name]
    return float(found or 0)


def _with_gigabyte(rows: Sequence[Row], chosen: Row, limits: Limits) -> More:
    """row: None where the form that fits now stays the fastest."""
    then = best(rows, limits.with_more(chosen.place, GIGABYTE))
    return More(chosen.place, GIGABYTE, then if then is not None and _is_faster(then, chosen) else None)


def _least_faster(rows: Sequence[Row], chosen: Row, limits: Limits) -> More | None:
    """None where nothing that would be faster is kept out by memory alone."""
    name = "memory" if chosen.place == "cpu" else "gpu_memory"
    found = []
    for row in rows:
        over = row.over(limits)
        if set(over) == {name} and row.place == chosen.place and _is_faster(row, chosen):
            found.append((int(over[name]), row))
    if not found:
        return None
    bytes, row = min(found, key=lambda one: (one[0], one[1].pace))
    return More(chosen.place, bytes, row)


def _is_faster(row: Row, than: Row) -> bool:
    alike = row.form.exact >= than.form.exact and row.settled >= than.settled
    return alike and row.pace < _GAIN * than.pace

