"""What a run's folder tells, read within limits, whoever wrote it: figures by name, events, samples, sessions, recipe.

A folder may come from anyone, and may be of a run that is at work. Nothing in it is required but metrics.jsonl; what is
no number, no object or too much is passed over. Torch-free.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoestring.core.errors import RunError, ShoestringError
from shoestring.core.foreign import parse_json, read_json
from shoestring.core.yaml_document import read_document
from shoestring.plan.receipt import NAME as RECEIPTS
from shoestring.plan.receipt import Receipt
from shoestring.plan.receipt import read as read_receipts
from shoestring.train.metrics_file import NAME as METRICS
from shoestring.train.metrics_file import as_curves, is_number, metrics_lines

RECIPE, SESSIONS, ANSWERS = "recipe.yaml", "sessions.jsonl", "answers.json"
MOST_FIGURES, MOST_EVENTS, MOST_SAMPLES, MOST_SESSIONS = 60, 2000, 400, 200
_MOST_TEXT = 4000  # characters of a sample or an answer
_MOST_RECIPE = 200_000  # characters
_PLACES = ("step", "tokens", "seconds")
_NOT_DRAWN = {*_PLACES, "held_out_tokens", "stage"}


@dataclass
class Column:
    """One figure of a run: where each value stands (step, tokens, seconds) and the value."""

    step: array = field(default_factory=lambda: array("d"))
    tokens: array = field(default_factory=lambda: array("d"))
    seconds: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))


@dataclass
class RunFigures:
    """name: of the folder, which others shown beside it may have too. columns: by the names of metrics.jsonl, those of
    a held-out sample with `sample_` before them. events, samples: lines, each with its step, tokens and seconds.
    sessions: pairs of what one wrote as it began and as it ended, {} where it did not. recipe: its text; settings: what
    that says, by dotted keys. answers: of a fine-tuning, before and after. receipts: of its sessions.
    """

    name: str
    folder: Path
    columns: dict[str, Column] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    events_left_out: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    recipe: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, str]] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    step: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    def last(self, name: str) -> float | None:
        """The newest value of this figure."""
        column = self.columns.get(name)
        return column.values[-1] if column is not None and column.values else None

    def predicted(self, name: str) -> float | None:
        """Bytes of `memory` or `tensors`, as the newest session predicted them."""
        for began, _ in reversed(self.sessions):
            known = began.get("predicted")
            if isinstance(known, dict) and is_number(known.get(name)):
                return float(known[name])
        return None

    def peak_memory(self) -> float | None:
        """The most that a session took, from those that ended and from what was seen in between."""
        column = self.columns.get("memory")
        found = [end["peak_memory"] for _, end in self.sessions if is_number(end.get("peak_memory"))]
        return max([*found, *([max(column.values)] if column is not None and column.values else [])], default=None)


def read_run(text: str | Path) -> RunFigures:
    """Of OUT, or what is in it: OUT/latest, OUT/best, OUT/step-N. Raises RunError where there is no metrics.jsonl."""
    folder = _folder(Path(text).expanduser())
    run = RunFigures(folder.resolve().name or "run", folder)
    try:
        for line in metrics_lines(folder / METRICS):
            _take(run, line)
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", str(folder / METRICS)) from error
    run.samples = _spread(run.samples, MOST_SAMPLES)
    run.sessions = _sessions(folder / SESSIONS)
    run.recipe, run.settings = _recipe(folder / RECIPE)
    run.answers = _answers(folder / ANSWERS)
    run.receipts = _receipts(folder / RECEIPTS)
    return run


def _folder(path: Path) -> Path:
    inside = path.name in ("latest", "best") or path.name.startswith("step-")
    for folder in (path, path.parent) if inside else (path,):
        if (folder / METRICS).is_file():
            return folder
    where = str(path)
    if not path.exists():
        raise RunError("there is no such folder", where, "give the --out folder of a run")
    if (path / RECIPE).is_file():
        raise RunError("this run has no metrics yet: its first step is not done", where)
    raise RunError("no run here: there is no metrics.jsonl", where, "give the --out folder of a run")


def _take(run: RunFigures, line: dict[str, Any]) -> None:
    if not is_number(line["step"]) or line["step"] < 0:
        return
    run.step = max(run.step, line["step"])
    for name in ("tokens", "seconds"):
        if is_number(line.get(name)):
            setattr(run, name, max(getattr(run, name), float(line[name])))
    place = {"step": line["step"], "tokens": run.tokens, "seconds": run.seconds}
    if isinstance(line.get("event"), str):
        if len(run.events) < MOST_EVENTS:
            run.events.append({**line, **place})
        else:
            run.events_left_out += 1
        return
    if isinstance(line.get("sample"), str):
        prompt = line.get("prompt")
        shown = prompt[:_MOST_TEXT] if isinstance(prompt, str) else ""
        run.samples.append({**place, "prompt": shown, "sample": line["sample"][:_MOST_TEXT]})
        if len(run.samples) > 4 * MOST_SAMPLES:
            run.samples = _spread(run.samples, MOST_SAMPLES)
        return
    for name, value in as_curves(line).items():
        if name in _NOT_DRAWN or isinstance(value, bool) or not is_number(value) or not math.isfinite(value):
            continue
        if name not in run.columns:
            if len(run.columns) >= MOST_FIGURES:
                continue
            run.columns[name] = Column()
        column = run.columns[name]
        for key in _PLACES:
            getattr(column, key).append(place[key])
        column.values.append(value)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many of them, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def _sessions(file: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The newest ones."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            for text in opened:
                try:
                    line = parse_json(text)
                except ValueError:
                    continue
                if not isinstance(line, dict):
                    continue
                if line.get("session") == "began":
                    found = [*found[-MOST_SESSIONS + 1 :], (line, {})]
                elif line.get("session") == "ended" and found:
                    found[-1] = found[-1][0], line
    except OSError:
        return []
    return found


def _recipe(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            text = opened.read(_MOST_RECIPE)
    except OSError:
        return "", {}
    try:
        return text, _flat(read_document(file).values)
    except (ShoestringError, OSError, ValueError):  # shown as it stands
        return text, {}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _receipts(file: Path) -> list[Receipt]:
    """The newest ones."""
    try:
        return read_receipts(file, MOST_SESSIONS)[0]
    except OSError:
        return []


def _answers(file: Path) -> list[dict[str, str]]:
    try:
        rows = read_json(file, most_bytes=2**22)
    except (OSError, ValueError):
        return []
    names = ("question", "expected", "before", "after")
    return [
        {name: str(row[name])[:_MOST_TEXT] for name in names if isinstance(row.get(name), str)}
        for row in (rows if isinstance(rows, list) else [])[:100]
        if isinstance(row, dict) and isinstance(row.get("question"), str)
    ]
