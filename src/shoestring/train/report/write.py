"""`report(runs)`: one HTML page on one run or several. What `shoestring report` does. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.core.errors import ConfigError, RunError
from shoestring.core.files import atomic_write
from shoestring.train.report.page import GENERATOR, page
from shoestring.train.report.read import RunFigures, read_run

PAGE = "report.html"
MOST_RUNS = 20


@dataclass(frozen=True)
class Report:
    """out: the page. runs: figures of each run, by what the page calls it."""

    out: Path
    runs: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), "runs": self.runs}


def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Report:
    """Write the page. runs: folders of runs, finished or at work; out: a file, by default report.html in the one run's
    folder, or here where there are several.

    Raises RunError where there is no run, or where the page cannot stand: a file that is no report is not replaced.
    """
    folders = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not 1 <= len(folders) <= MOST_RUNS:
        raise ConfigError(f"a report is of 1 to {MOST_RUNS} runs, not of {len(folders)}")
    found = [read_run(folder) for folder in folders]
    names = _names(found)
    file = Path(out).expanduser() if out is not None else found[0].folder / PAGE if len(found) == 1 else Path(PAGE)
    _check(file)
    with atomic_write(file) as opened:
        opened.write(page(found, names))
    return Report(file, {name: _figures(run) for name, run in zip(names, found, strict=True)})


def _check(file: Path) -> None:
    if os.path.isdir(file):
        raise RunError("this is a folder, and the page is a file", str(file), f"give --out {file / PAGE}")
    if os.path.isfile(file):
        with open(file, encoding="utf-8", errors="replace") as opened:
            if GENERATOR not in opened.read(2000):
                raise RunError("there is a file already, and it is no report", str(file), "choose another --out")


def _names(runs: Sequence[RunFigures]) -> list[str]:
    """Of the folders; with the folder above where two have one name, with a number where that does not help."""
    names = [run.name for run in runs]
    longer = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    return [
        name if names.count(name) == 1 else more if longer.count(more) == 1 else f"{name} ({n})"
        for n, (name, more) in enumerate(zip(names, longer, strict=True), 1)
    ]


def _figures(run: RunFigures) -> dict[str, Any]:
    names = ("loss", "held_out_loss", "bits_per_byte", "sample_held_out_loss", "sample_bits_per_byte")
    known = {name: value for name in names if (value := run.last(name)) is not None}
    return {
        "folder": str(run.folder),
        "steps": run.step,
        "tokens": int(run.tokens),
        "seconds": run.seconds,
        **known,
        "peak_memory": run.peak_memory(),
        "predicted_memory": run.predicted("memory"),
        "step_seconds": run.receipts[-1].measured_seconds if run.receipts else None,
        "predicted_step_seconds": run.receipts[-1].told_seconds if run.receipts else None,
        "events": len(run.events) + run.events_left_out,
        "samples": len(run.samples),
    }
