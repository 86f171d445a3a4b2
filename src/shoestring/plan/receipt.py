"""A receipt: what a run took beside what was predicted for it, line by line; and the files that receipts stand in.

A run appends its receipt to OUT/receipts.jsonl and to the log of this user's machine, receipts.jsonl in the cache. The
log is what `plan.calibration` corrects predictions by, so figures predicted stand in it as they were before any
correction. A line is written at once, in the log under a lock: a kill can tear the last one only, which the next one
leaves behind it. Reading passes over what is no receipt, names it and changes nothing. Torch-free.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from shoestring import __version__
from shoestring.core.errors import ShoestringError
from shoestring.core.files import cache_dir, clear_errors, exclusive
from shoestring.core.foreign import parse_json
from shoestring.core.machine import cpu_identity
from shoestring.core.units import counted, format_bytes, format_seconds
from shoestring.plan.shapes import KEPT, Prediction

NAME = "receipts.jsonl"
MOST_LINES = 200  # of one receipt
_MOST_TEXT = 400  # characters of a name in one
_LARGEST = 1e18


@dataclass(frozen=True)
class Item:
    """A line: what it is, in bytes or seconds, predicted (as it was told) and measured; None where it was not."""

    what: str
    unit: str
    predicted: float | None = None
    measured: float | None = None


@dataclass(frozen=True)
class Receipt:
    """Of one session. job: as a recipe or verb names it. engine: or the method, where a job has no engine.

    machine: `machine_key`. memory: the process's peak, of which `tensors` lay in tensors; constant: what was predicted
    for what a process keeps beside them. seconds: of one `unit` of work, of which `count` were measured. predicted_:
    before any correction; None where nothing was predicted, as measured_ where that could not be told. beside,
    factor: the correction that was told, of the constant and of seconds. items: line by line.
    """

    job: str
    engine: str
    machine: str
    time: str = ""
    shoestring: str = __version__
    device: str = "cpu"
    processes: int = 1
    unit: str = "step"
    count: int = 0
    predicted_memory: float | None = None
    measured_memory: float | None = None
    predicted_tensors: float | None = None
    measured_tensors: float | None = None
    constant: float = 0.0
    predicted_seconds: float | None = None
    measured_seconds: float | None = None
    beside: float = 1.0
    factor: float = 1.0
    items: tuple[Item, ...] = field(default=())

    @property
    def told_memory(self) -> float | None:
        """Bytes as they were told, corrected."""
        told = self.predicted_memory
        return None if told is None else told + self.constant * (self.beside - 1)

    @property
    def told_seconds(self) -> float | None:
        return None if self.predicted_seconds is None else self.predicted_seconds * self.factor

    def line(self) -> str:
        """In one line: peak 880 MB (900 MB predicted), 1.2 s a step (1.3 s predicted)."""
        parts = []
        for sign, told, measured in (
            ("peak {}", self.told_memory, self.measured_memory),
            ("{} a " + self.unit, self.told_seconds, self.measured_seconds),
        ):
            shown = _bytes if sign.startswith("peak") else shown_seconds
            if measured is not None:
                parts.append(
                    sign.format(shown(measured)) + ("" if told is None else f" ({shown(told)} predicted)")
                )
        return ", ".join(parts)

    def __str__(self) -> str:
        rows = [row(item) for item in self.items]
        return f"{self.heading()}\n{aligned(('', 'predicted', 'measured', ''), rows)}"

    def heading(self) -> str:
        corrected = ", predictions corrected by earlier runs" * (self.beside != 1.0 or self.factor != 1.0)
        return f"{self.job}, {self.engine}, {counted(self.count, self.unit)} measured{corrected}"

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["items"] = [[item.what, item.unit, item.predicted, item.measured] for item in self.items]
        return {"receipt": 1, **values}


def row(item: Item) -> tuple[str, str, str, str]:
    """What, predicted, measured, and by how much that was more or less."""
    shown = _bytes if item.unit == "bytes" else shown_seconds
    cells = ["" if figure is None else shown(figure) for figure in (item.predicted, item.measured)]
    more = ""
    if item.predicted and item.measured is not None:
        more = f"{item.measured / item.predicted - 1:+.1%}"
    return item.what, cells[0], cells[1], more


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names, all but the first to the right."""
    cells = [columns, *rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    lines = [
        "  ".join(f"{cell:<{width}}" if not place else f"{cell:>{width}}" for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _bytes(figure: float) -> str:
    return format_bytes(int(figure))


def shown_seconds(figure: float) -> str:
    """Such as 2:05, 1.25 s, 83 ms."""
    return format_seconds(figure) if figure >= 60 else f"{figure:.2f} s" if figure >= 1 else f"{1000 * figure:.3g} ms"


def machine_key(threads: int) -> str:
    """Whose runs speak for one another's: of one processor, with as many threads."""
    return f"{cpu_identity()} | {threads} threads"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def receipt_of(
    prediction: Prediction, job: str, engine: str, threads: int, *, peak: float | None, tensors: float | None,
    seconds: float | None, count: int, items: Sequence[Item], **more: Any,
) -> Receipt:  # fmt: skip
    """What was predicted, as it was before any correction, beside these figures."""
    correction = prediction.correction
    beside = 1.0 if correction is None else correction.beside
    factor = 1.0 if correction is None else correction.seconds
    told = dict(prediction.beside).get(KEPT, 0)
    constant = told / beside if beside else 0.0
    return Receipt(
        job, engine, machine_key(threads), now(), count=count,
        predicted_memory=prediction.total - told + constant, measured_memory=peak,
        predicted_tensors=prediction.tensor_bytes, measured_tensors=tensors, constant=constant,
        predicted_seconds=prediction.seconds / factor if prediction.seconds else None, measured_seconds=seconds,
        beside=beside, factor=factor, items=tuple(items), **more,
    )  # fmt: skip


def memory_items(
    prediction: Prediction, peak: float | None, tensors: float | None, counted: Mapping[str, float]
) -> Iterator[Item]:
    """Line by line as the plan has them. counted: by the plan's names, what is known of single lines."""
    beside = dict(prediction.beside)
    for name, size in prediction.beside:
        kept = None
        if name == KEPT and peak is not None and tensors is not None:  # the other lines are as they were measured
            kept = peak - tensors - (sum(beside.values()) - size)
        yield Item(name, "bytes", size, size if name != KEPT else None if kept is None else max(kept, 0.0))
    for name, size in prediction.tensors:
        yield Item(name, "bytes", size, counted.get(name))
    yield Item("tensors at their most", "bytes", prediction.tensor_bytes, tensors)
    yield Item("peak of the process", "bytes", prediction.total, peak)


# --- files ----------------------------------------------------------------------------------------------------------


def log() -> Path:
    """Of this user, on this machine."""
    return cache_dir() / NAME


def append(receipt: Receipt, file: Path, shared: bool = False) -> None:
    """A line more, on the disk when this returns. shared: with other processes, one after another. Raises RunError and
    OSError where it cannot be written.
    """
    line = json.dumps(receipt.to_json(), allow_nan=False).encode() + b"\n"
    alone = exclusive(file.with_name(f".{file.name}.lock")) if shared else nullcontext()
    with clear_errors(file), alone, open(file, "ab", buffering=0) as opened:
        if _torn(file):
            line = b"\n" + line
        while line:
            line = line[opened.write(line) or 0 :]
        os.fsync(opened.fileno())


def _torn(file: Path) -> bool:
    """Whether a kill has left a line without its end."""
    with open(file, "rb") as opened:
        if opened.seek(0, os.SEEK_END) == 0:
            return False
        opened.seek(-1, os.SEEK_END)
        return opened.read(1) != b"\n"


def keep(receipt: Receipt, out: Path | None) -> str:
    """Into the run's folder and into the log; -> why it could not be, "" otherwise: no run ends by its receipt."""
    refused = []
    for shared in (False, True):
        if shared or out is not None:
            try:
                append(receipt, log() if shared or out is None else out / NAME, shared)
            except (ShoestringError, OSError) as error:
                refused.append(getattr(error, "message", None) or getattr(error, "strerror", None) or str(error))
    return "; ".join(dict.fromkeys(refused))


@dataclass(frozen=True)
class Damage:
    """A line of a file that is no receipt. why: in words."""

    where: str
    why: str


def read(file: Path, newest: int = 100_000) -> tuple[list[Receipt], list[Damage]]:
    """The newest receipts of a file in their order, and what else stands in it; nothing where there is no file."""
    found: list[Receipt] = []
    damaged: list[Damage] = []
    try:
        opened = open(file, "rb")
    except FileNotFoundError:
        return found, damaged
    with opened:
        for number, text in enumerate(opened, 1):
            if not text.strip():
                continue
            try:
                found.append(parsed(parse_json(text)))
            except ValueError as error:
                why = "cut off" if not text.endswith(b"\n") else f"no receipt: {str(error).splitlines()[0]}"
                damaged.append(Damage(f"{file}:{number}", why))
            if len(found) > 2 * newest:
                del found[:-newest]
    return found[-newest:], damaged


def parsed(values: Any) -> Receipt:
    """Of what `to_json` gave. Raises ValueError in words."""
    if not isinstance(values, dict) or values.get("receipt") != 1:
        raise ValueError('no object with "receipt": 1')
    taken: dict[str, Any] = {}
    for name in ("job", "engine", "machine", "time", "shoestring", "device", "unit"):
        if not isinstance(values.get(name), str):
            raise ValueError(f"{name} is no text")
        taken[name] = values[name][:_MOST_TEXT]
    for name in ("processes", "count"):
        if type(values.get(name)) is not int or not 0 <= values[name] < _LARGEST:
            raise ValueError(f"{name} is no count")
        taken[name] = values[name]
    for name in ("constant", "beside", "factor"):
        taken[name] = _number(name, values.get(name))
    for name in _FIGURES:
        taken[name] = None if values.get(name) is None else _number(name, values[name])
    rows = values.get("items")
    if not isinstance(rows, list) or len(rows) > MOST_LINES:
        raise ValueError("items is no list")
    return Receipt(**taken, items=tuple(_item(each) for each in rows))


_FIGURES = (
    "predicted_memory", "measured_memory", "predicted_tensors", "measured_tensors", "predicted_seconds",
    "measured_seconds",
)  # fmt: skip


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is no number")
    if not (math.isfinite(value) and abs(value) < _LARGEST):
        raise ValueError(f"{name} is {value!r}")
    return value


def _item(value: Any) -> Item:
    if not (isinstance(value, list) and len(value) == 4 and all(isinstance(each, str) for each in value[:2])):
        raise ValueError("an item is no line")
    figures = [None if each is None else _number("an item", each) for each in value[2:]]
    return Item(value[0][:_MOST_TEXT], "bytes" if value[1] == "bytes" else "seconds", *figures)
