"""The two consoles: results go to stdout (`out`), progress and errors to stderr (`err`).

Rich turns colour off for pipes and `NO_COLOR` by itself. Both consoles are made on first use, and without
automatic highlighting or markup: what we print are paths, numbers and model text, in which square brackets
mean themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    out: Console
    err: Console

_consoles: dict[str, Console] = {}
_LABEL = re.compile(r"\S+(?: \S+)* {2,}(?=\S)")  # "memory    0.9 GB ...": its continuation stands below the text


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


def fold(text: str, width: int) -> str:
    """Lines longer than `width` broken between words, their rest below the text behind a label or indented by two.

    Lines that hold a command stay whole, to be copied.
    """
    lines = []
    for line in text.split("\n"):
        if len(line) <= width or "shoestring " in line:
            lines.append(line)
            continue
        label = _LABEL.match(line)
        hang = label.end() if label and label.end() <= width // 3 else len(line) - len(line.lstrip()) + 2
        lines += textwrap.wrap(
            line, width, subsequent_indent=" " * hang,
            break_long_words=False, break_on_hyphens=False, replace_whitespace=False,
        )  # fmt: skip
    return "\n".join(lines)


def say(text: str, style: str | None = None) -> None:
    """Lines on stderr; at a terminal they break between words."""
    console = __getattr__("err")
    console.print(fold(text, console.width) if console.is_terminal else text, style=style)


def show(text: object) -> None:
    """A result on stdout, plain; at a terminal its lines break between words."""
    import shutil

    print(fold(str(text), shutil.get_terminal_size().columns) if sys.stdout.isatty() else text)


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


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = (), stream: str = "out"
) -> Table | str:
    """A plain table without borders; columns named in `right` are right-aligned.

    Print it with `out.print`, or that of another `stream`. Outside a terminal a row is one line, however long.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if not __getattr__(stream).is_terminal:
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = []
        for row in (columns, *cells):
            placed = zip(row, widths, (column in right for column in columns), strict=True)
            lines.append("  ".join(f"{cell:>{width}}" if end else f"{cell:<{width}}" for cell, width, end in placed))
        return "\n".join(line.rstrip() for line in lines)
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in cells:
        grid.add_row(*map(Text, row))
    return grid


# --- streams that fail ---------------------------------------------------------------------------------------


class Output:
    """A standard stream whose failures are sentences (`stdout`), or nothing at all (`stderr`).

    needed: whether what is written must arrive. Progress must not end what it tells about: a run outlives its
    terminal. After a failure nothing more is tried.
    """

    def __init__(self, stream: Any, needed: bool):
        self._stream, self._needed = stream, needed

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._fail(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fail(self, error: Exception) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # What is in the buffer goes there, also when Python writes it out once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if self._needed and isinstance(error, OSError):
            if isinstance(error, BrokenPipeError):
                raise error
            raise RunError(f"the output cannot be written: {error.strerror}", "(standard output)") from error


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Standard streams that exist (closed ones become the null device) and fail as `Output` says."""
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = (
        _opened(number, mode) if stream is None else stream
        for number, (stream, mode) in enumerate(zip(before, "rww", strict=True))
    )
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a console that lacks a character shows "?" rather than end the run
            reconfigure(errors="replace")
    outputs: Any = Output(sys.stdout, needed=True), Output(sys.stderr, needed=False)
    sys.stdout, sys.stderr = outputs
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _opened(number: int, mode: str) -> Any:
    """The null device in the place of a standard stream that was closed, or the next file opened would stand there."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    with contextlib.suppress(OSError):
        os.fstat(number)  # taken by a file that is open
        return open(descriptor, mode, encoding="utf-8")
    os.dup2(descriptor, number)
    os.close(descriptor)
    return open(number, mode, encoding="utf-8", closefd=False)


def print_json(result: Any) -> None:
    """One JSON object on one line of stdout, plain, without rich: the result of a verb under `--json`."""
    print(json.dumps(result, ensure_ascii=False, default=str), flush=True)
