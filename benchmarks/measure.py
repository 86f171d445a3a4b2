"""What the benchmarks share: workers in processes of their own, taken in turn, and the way figures are printed.

Speeds on a shared machine drift, so peers alternate and medians are compared; peak memory belongs to a process,
so every measurement gets a fresh one. A worker is `python -m benchmarks.NAME --worker WHO ...` and prints one
JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cgroup import memory_group

ROOT = Path(__file__).resolve().parent.parent


def run_worker(
    module: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    memory: int | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """The JSON object that `python -m module ARGUMENTS` prints last, with `wall`, the worker's seconds in all.

    memory: bytes of a memory cgroup around the worker; the result then has `group_peak` (bytes). Raises RuntimeError
    with the worker's stderr, when the kernel killed it, or where no group can be made; TimeoutError after `timeout`
    seconds.
    """
    started = time.perf_counter()
    command = [sys.executable, "-m", module, *arguments]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    around = {**os.environ, "PYTHONPATH": path, **(environment or {})}
    if memory is None:
        return _result(command, _run(command, around, timeout), started)
    with memory_group(memory) as group:
        done = _run(group.command(command), around, timeout)
        if done.returncode and group.kills:
            raise RuntimeError(
                f"{' '.join(command[2:])} was killed at its limit of {memory / 1e6:,.0f} MB:\n{done.stderr[-4000:]}"
            )
        return _result(command, done, started) | {"group_peak": group.peak}


def _run(command: list[str], around: dict[str, str], timeout: float | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, env=around, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"not done after {timeout:.0f} s") from None


def _result(command: Sequence[str], done: subprocess.CompletedProcess[str], started: float) -> dict[str, Any]:
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"wall": time.perf_counter() - started}


def alternate(
    module: str, workers: Sequence[Sequence[str]], rounds: int, **options: Any
) -> list[list[dict[str, Any]]]:
    """`rounds` results of each worker, the workers taken in turn."""
    results: list[list[dict[str, Any]]] = [[] for _ in workers]
    for round_ in range(rounds):
        for i, arguments in enumerate(workers):
            print(f"round {round_ + 1}/{rounds}: {' '.join(arguments)}", file=sys.stderr, flush=True)
            results[i].append(run_worker(module, *arguments, **options))
    return results


def median(results: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: the first column to the left, figures to the right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def finish(figures: dict[str, Any]) -> None:
    """The last line: one JSON object."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded))
