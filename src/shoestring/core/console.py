"""The two consoles: results go to stdout (`out`), progress and errors to stderr (`err`).

Rich turns colour off for pipes and `NO_COLOR` by itself. Both consoles are made on first use, and without
automatic highlighting or markup: what we print are paths, numbers and model text, in which square brackets
mean themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    out: Console
    err: Console

_consoles: dict[str, Console] = {}


def __getattr__(name: str) -> Any:
    """`console.out` and `console.err`, made when first asked for (rich costs 40 ms to import)."""
    if name not in ("out", "err"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _consoles:
        from rich.console import Console

        _consoles[name] = Console(
            stderr=name == "err", highlight=False, markup=False, emoji=False, soft_wrap=True
        )
    return _consoles[name]


def progress(transient: bool = True) -> Progress:
    """A progress display on stderr: description, bar, count, time left.

    Silent when stderr is not a terminal.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = __getattr__("err")
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A plain table without borders; columns named in `right` are right-aligned.

    Print it with `out.print`.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    return grid


def print_json(result: Any) -> None:
    """One JSON object on one line of stdout, plain, without rich: the result of a verb under `--json`."""
    print(json.dumps(result, ensure_ascii=False, default=str), flush=True)
