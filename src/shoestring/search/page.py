"""The page of a study: one HTML file with its pictures inside, which asks nothing of any other place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from shoestring.core.units import format_count, format_seconds
from shoestring.search import charts
from shoestring.search.charts import Axis, Column, Point
from shoestring.search.config import OBJECTIVES, better, shown
from shoestring.search.folder import StudyFolder
from shoestring.search.parameters import Choices, Range, label
from shoestring.search.proposing import BASELINE, SETTINGS
from shoestring.search.results import SearchResult, told
from shoestring.search.space import described

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_LEAST = 4  # trials that importances and parallel coordinates are drawn of

_STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c1c1c; --dim: #6a6a6a; --page: #fff; --grid: #d9d9d9; --one: #1f5fa8; --two: #c2571a
}
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --dim: #a2a2a2; --page: #161616; --grid: #3a3a3a; --one: #7fb3ee; --two: #f0995c }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 800px; margin: 2em auto;
  padding: 0 1em
}
svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: var(--dim) }
svg .name { font-size: 12px; fill: var(--text) }
.grid, .axis { stroke: var(--grid) }
.point, .bar { fill: var(--one) }
.line { fill: none; stroke: var(--one); stroke-width: 1.5 }
.pruned { stroke: var(--dim); fill: none }
.failed { stroke: var(--two); fill: none; stroke-width: 2 }
.ring { fill: none; stroke: var(--two); stroke-width: 2.5 }
.run { fill: none; stroke: var(--one); stroke-width: 1.5 }
.top { stroke: var(--two); stroke-width: 2.5 }
table { border-collapse: collapse; font-size: 13px }
td, th { padding: 2px 10px 2px 0; text-align: left; vertical-align: top }
th { border-bottom: 1px solid var(--grid) }
.figure { text-align: right; font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px }
dt { color: var(--dim) }
dd { margin: 0 }
"""


def page(folder: StudyFolder, trials: Sequence[FrozenTrial], result: SearchResult, whole: bool = True) -> str:
    """All that is known so far. trials: all that count. whole: with importances, for which Optuna imports a lot."""
    objectives = result.objectives
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    sections = [("Trial by trial", _history(trials, result, 0))]
    if len(objectives) == 1 and objectives[0] in ("loss", "bits_per_byte"):
        sections.append(("On the way", _on_the_way(trials, result)))
    if len(objectives) > 1:
        sections.insert(0, ("The front", _front(complete, result)))
        sections.append((f"Trial by trial: {objectives[1]}", _history(trials, result, 1)))
    found = importances(folder, complete) if whole else []
    if found:
        about = (
            "<p>The share of each setting in how good a trial is (PED-ANOVA), among trials that came to their end.</p>"
        )
        sections.append(("What matters", about + charts.bars(found, "importances")))
    if len(complete) >= _LEAST:
        sections.append(("Which settings", _parallel(folder, complete, result)))
    sections.append(("All trials", _table(trials, result)))
    title = f"{escape(folder.config.recipe)}: {escape(' and '.join(objectives))}"
    body = "".join(f"<h2>{escape(name)}</h2>{content}" for name, content in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{_summary(folder, result)}{body}</body></html>\n"
    )


def importances(folder: StudyFolder, complete: Sequence[FrozenTrial]) -> list[tuple[str, float]]:
    """Of the settings that all these trials have, the largest first; none of too few trials, or of trials all alike."""
    if len(complete) < _LEAST or len({trial.values[0] for trial in complete}) < 2:
        return []
    import optuna

    study = optuna.create_study(directions=folder.config.directions[:1])
    for trial in complete:
        if BASELINE not in trial.user_attrs and trial.params:
            study.add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[0])
            )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials that differ
        return []
    return [(name, value) for name, value in found.items() if math.isfinite(value)]


def _summary(folder: StudyFolder, result: SearchResult) -> str:
    config = folder.config
    rows: list[tuple[str, str]] = [
        ("objective", "; ".join(f"{name}: {OBJECTIVES[name]}" for name in result.objectives)),
        ("proposed by", config.sampler + ("" if config.pruner == "none" else f", ended early by {config.pruner}")),
        ("trials", f"{result.finished} finished, {result.pruned} pruned, {result.failed} failed, of {result.wanted}"),
        ("taken", f"{format_count(result.tokens)} tokens, {format_seconds(result.seconds)} of training"),
    ]
    if len(result.objectives) == 1 and result.best is not None:
        rows.append(
            ("best", f"trial {result.best.number}: {told(result.objectives, result.best.values)};"
             f" {described(result.best.settings)}")
        )  # fmt: skip
    if result.baseline is not None:
        rows.append(("recipe as it is", told(result.objectives, result.baseline.values)))
        if result.improved is False:
            rows.append(("", "no trial was better than the recipe as it is"))
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def _history(trials: Sequence[FrozenTrial], result: SearchResult, which: int) -> str:
    """What each trial came to, and the best so far as a line."""
    objective = result.objectives[which]
    points, line, best = [], [], None
    for trial in trials:
        value = _value(trial, which)
        if value is None:
            continue
        complete = trial.state.name == "COMPLETE"
        kind = "complete" if complete else "pruned"
        if complete and result.best is not None and trial.number == result.best.number and len(result.objectives) == 1:
            kind = "best"
        points.append(Point(trial.number, value, _told(trial, objective, value), kind))
        if complete and (best is None or better(objective, value, best)):
            best = value
        if best is not None:
            line.append((float(trial.number), best))
    return charts.scatter(
        points,
        Axis("trial", lambda value: f"{value:.0f}", whole=True),
        _axis(objective),
        line,
        f"{objective} of each trial",
    )


def _on_the_way(trials: Sequence[FrozenTrial], result: SearchResult) -> str:
    """Evaluations at each tenth of a trial."""
    objective = result.objectives[0]
    points = [
        Point(
            step / 10, value, _told(trial, objective, value),
            "pruned" if trial.state.name == "PRUNED" and step == max(trial.intermediate_values) else "complete",
        )
        for trial in trials for step, value in trial.intermediate_values.items()
    ]  # fmt: skip
    about = "<p>Each evaluation on the way, on a sample of the held-out text; a cross where a trial was ended.</p>"
    return about + charts.scatter(
        points, Axis("share of a trial", lambda value: f"{value:.0%}"), _axis(objective), name="evaluations on the way"
    )


def _front(complete: Sequence[FrozenTrial], result: SearchResult) -> str:
    first, second = result.objectives
    best = {found.number for found in result.front}
    points = [
        Point(
            trial.values[1], trial.values[0], f"trial {trial.number}: {told(result.objectives, trial.values)};"
            f" {described(trial.user_attrs[SETTINGS])}", "best" if trial.number in best else "complete",
        )
        for trial in complete
    ]  # fmt: skip
    line = sorted((found.values[1], found.values[0]) for found in result.front)
    about = "<p>A ring where no other trial is better in both.</p>"
    return about + charts.scatter(points, _axis(second), _axis(first), line, f"{first} over {second}")


def _parallel(folder: StudyFolder, complete: Sequence[FrozenTrial], result: SearchResult) -> str:
    objective = result.objectives[0]
    values = [trial.values[0] for trial in complete]
    low, high = min(values), max(values)
    upside = better(objective, 1.0, 0.0)
    parameters = [one for one in folder.space.parameters if any(one.name in trial.params for trial in complete)]
    columns = []
    for one in parameters:
        ends = ("", "")
        if isinstance(one, Range):
            ends = label(float(one.low)), label(float(one.high))
        elif isinstance(one, Choices):
            ends = label(one.values[0]), label(one.values[-1])
        columns.append(Column(one.name, *ends))
    columns.append(Column(objective, *(f"{end:.4g}" for end in ((low, high) if upside else (high, low)))))
    rows: list[tuple[list[float | None], float, str]] = []
    for trial in complete:
        height = (trial.values[0] - low) / ((high - low) or 1.0)
        goodness = height if upside else 1 - height
        places: list[float | None] = [
            one.position(_of(one, trial)) if one.name in trial.params else None for one in parameters
        ]
        rows.append(([*places, goodness], goodness, _told(trial, objective, trial.values[0])))
    about = (
        "<p>A line for each trial that came to its end, the strongest the best; at the right the better is above.</p>"
    )
    return about + charts.parallel(columns, rows, "parallel coordinates")


def _of(parameter: Any, trial: FrozenTrial) -> Any:
    """The value itself, which a study keeps as text where it is a list or a section."""
    kept = trial.params[parameter.name]
    if isinstance(parameter, Choices):
        return next(value for value in parameter.values if parameter.drawn(value) == kept)
    return kept


def _table(trials: Sequence[FrozenTrial], result: SearchResult) -> str:
    heads = ["trial", "", *result.objectives, "tokens", "time", "settings"]
    figures = {"trial", *result.objectives, "tokens", "time"}
    rows = []
    for trial in trials:
        what = "the recipe as it is" if BASELINE in trial.user_attrs else described(trial.user_attrs.get(SETTINGS, {}))
        if trial.state.name == "FAIL":
            what += f" — {trial.user_attrs.get('reason', '')}"
        values = [_value(trial, which) for which in range(len(result.objectives))]
        cells = [
            str(trial.number),
            {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "under way"),
            *("" if one is None else shown(name, one) for name, one in zip(result.objectives, values, strict=True)),
            format_count(trial.user_attrs["tokens"]) if "tokens" in trial.user_attrs else "",
            format_seconds(trial.user_attrs["seconds"]) if "seconds" in trial.user_attrs else "",
            what,
        ]  # fmt: skip
        rows.append(
            "<tr>" + "".join(_cell(head, cell, figures) for head, cell in zip(heads, cells, strict=True)) + "</tr>"
        )
    head = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in heads) + "</tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _cell(head: str, text: str, figures: set[str]) -> str:
    kind = ' class="figure"' if head in figures else ""
    return f"<td{kind}>{escape(text)}</td>"


def _value(trial: FrozenTrial, which: int) -> float | None:
    """At its end, or for a pruned one where it was ended."""
    if trial.state.name == "COMPLETE":
        return trial.values[which]
    steps = trial.intermediate_values
    return steps[max(steps)] if trial.state.name == "PRUNED" and steps and which == 0 else None


def _axis(objective: str) -> Axis:
    if objective in ("bytes", "memory", "seconds"):
        return Axis(objective, lambda value: shown(objective, value))
    return Axis(OBJECTIVES[objective])


def _told(trial: FrozenTrial, objective: str, value: float) -> str:
    what = "the recipe as it is" if BASELINE in trial.user_attrs else described(trial.user_attrs.get(SETTINGS, {}))
    return f"trial {trial.number}: {shown(objective, value)}; {what}"
