"""A plan in words and a table, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoestring.core.units import counted, format_bytes, format_count, format_seconds
from shoestring.forecast.rows import Limits, Row, best, nearest, rank

if TYPE_CHECKING:
    from shoestring.forecast.plan import More, Plan

_NUMBERS = ("memory", "gpu", "disk", "in all")
_NAMES = {"memory": "memory", "gpu_memory": "the GPU's", "disk": "disk", "seconds": "time"}


def columns(plan: Plan) -> list[str]:
    """gpu: where one is planned for."""
    gpu = [] if plan.limits.gpu is None else ["on", "gpu"]
    step = f"a {plan.work.step}"
    return [*gpu[:1], "engine", "format", "at once", "memory", *gpu[1:], "disk", step, "in all", ""]


def cells(plan: Plan, rows: Sequence[Row]) -> list[list[str]]:
    return [_cells(plan, row) for row in rows]


def _cells(plan: Plan, row: Row) -> list[str]:
    form, with_gpu = row.form, plan.limits.gpu is not None
    return [
        *([row.place] if with_gpu else []), form.engine, form.precision, form.told, format_bytes(row.memory),
        *([format_bytes(row.gpu) if row.gpu else "-"] if with_gpu else []),
        format_bytes(row.disk) if row.disk else "-", _step(row.step),
        "?" if row.seconds is None else format_seconds(row.seconds), verdict(row, plan.limits),
    ]  # fmt: skip


def _step(seconds: float | None) -> str:
    if seconds is None or seconds >= 1:
        return "?" if seconds is None else format_seconds(seconds)
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"


def verdict(row: Row, limits: Limits) -> str:
    """fits, or by how much it does not."""
    over = row.over(limits)
    if not over:
        said = "fits"
    else:
        said = ", ".join(f"{amount(name, size)} too much {_NAMES[name]}" for name, size in over.items())
    return f"{said}; {row.form.note}" if row.form.note else said


def amount(name: str, size: float) -> str:
    return format_seconds(size) if name == "seconds" else format_bytes(size)


def shown_rows(plan: Plan, every: bool) -> list[Row]:
    """All, or of each engine and number format the one that is best, else the one that is nearest to fitting."""
    if every:
        return list(plan.rows)
    groups: dict[Any, list[Row]] = {}
    for row in plan.rows:
        kept = row.form.settings.get("weights")
        groups.setdefault((row.place, row.form.engine, row.form.precision, kept), []).append(row)
    found = [best(rows, plan.limits) or nearest(rows, plan.limits) for rows in groups.values()]
    return sorted(found, key=lambda row: (not row.fits(plan.limits), *rank(row)))


def head(plan: Plan) -> list[str]:
    work, limits = plan.work, plan.limits
    size = format_count(work.config.parameter_count())
    what = f"{work.job} {plan.name}: {size} parameters"
    if work.job in ("pretrain", "finetune", "distill"):
        steps = plan.chosen.steps
        what += f", {'steps' if steps is None else counted(steps, 'step')} of {work.tokens:,} tokens"
    lines = [f"{'plan':<10}{what}"]
    has = [f"{plan.machine.processor}, {counted(plan.machine.cores, 'core')}", f"{format_bytes(plan.machine.memory)}"]
    if plan.machine.gpu is not None:
        has.append(plan.machine.gpu.name)
    lines.append(f"{'machine':<10}{plan.where}: {', '.join(has)}")
    asked = [f"{format_bytes(limits.memory)} of memory"]
    if limits.gpu is not None:
        asked.append(f"{format_bytes(limits.gpu)} of a GPU's")
    if limits.seconds is not None:
        asked.append(f"{format_seconds(limits.seconds)} of time")
    asked.append(f"{format_bytes(limits.disk)} of disk")
    lines.append(f"{'within':<10}{', '.join(asked)}")
    lines += [f"{'assumed':<10}{said}" for said in work.assumed]
    return lines


def tail(plan: Plan) -> list[str]:
    row, work = plan.chosen, plan.work
    lines = [f"{'fastest':<10}{_named(plan, row)}"]
    if row.form.settings:
        lines.append(f"{'':<10}{flags(row.form.settings)}")
    if row.corrected is not None:
        lines.append(f"{'':<10}{row.corrected}")
    lines += [f"{'':<10}{format_bytes(size):>8}  {name}" for name, size in row.lines if size]
    if plan.limits.seconds is not None and row.step is not None and work.job in ("pretrain", "finetune", "distill"):
        fit = int(plan.limits.seconds / row.step)
        waited = format_seconds(plan.limits.seconds)
        lines.append(f"{'time':<10}{waited} are {counted(fit, 'step')}, {fit * work.tokens:,} tokens")
    lines += _more(plan)
    if plan.largest is not None:
        found = plan.largest
        lines.append(f"{'largest':<10}{found.asked}: {found.told()}")
        if found.settings:
            lines.append(f"{'':<10}{flags(found.settings)}")
    return lines


def _named(plan: Plan, row: Row) -> str:
    form = row.form
    where = f" on the {'GPU' if row.place == 'gpu' else 'processor'}" if plan.limits.gpu is not None else ""
    said = f"{form.engine}{where}, {form.precision}, {form.told} at once"
    if form.note:
        said += f", {form.note}"
    if row.step is None:
        return f"{said}; how fast is not known of this machine"
    rate = plan.work.tokens / row.step if form.served == 1 else form.served / row.step
    unit = "tokens/s" if plan.work.step != "block" else None
    return f"{said}: about {format_count(rate)} {unit}" if unit else said


def _more(plan: Plan) -> list[str]:
    gigabyte, faster = plan.gigabyte, plan.faster
    of = "" if gigabyte.place == "cpu" else " of the GPU's"
    lines = [f"{'1 GB more':<10}{_buys(plan, gigabyte) or 'would buy nothing'}{of}"]
    if faster is not None and faster.bytes > gigabyte.bytes:
        lines.append(f"{'':<10}{format_bytes(faster.bytes)} more{of}: {_buys(plan, faster)}")
    return lines


def _buys(plan: Plan, more: More) -> str:
    found = []
    if more.row is not None:
        said = _named(plan, more.row)
        if more.row.pace > 0 and plan.chosen.pace < float("inf"):
            said += f", {plan.chosen.pace / more.row.pace:.1f} times as fast"
        found.append(said)
    if more.largest is not None and plan.largest is not None and more.largest.size > plan.largest.size:
        found.append(f"{more.largest.asked}: {more.largest.told()}")
    return "; ".join(found)


def flags(settings: dict[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in settings.items())


def right(names: Sequence[str]) -> tuple[str, ...]:
    """Columns of numbers."""
    return tuple(name for name in names if name in _NUMBERS or name.startswith("a "))


def text(plan: Plan, every: bool = False) -> str:
    """All of it, with a plain table."""
    names = columns(plan)
    rows, ends = [names, *cells(plan, shown_rows(plan, every))], right(names)
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    table = []
    for row in rows:
        placed = [(cell, width, name in ends) for cell, width, name in zip(row, widths, names, strict=True)]
        table.append("  ".join(f"{cell:>{width}}" if end else f"{cell:<{width}}" for cell, width, end in placed))
    return "\n".join([*head(plan), "", *(line.rstrip() for line in table), "", *tail(plan)])
