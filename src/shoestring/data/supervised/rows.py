"""Where examples come from: JSONL, JSON, CSV and Parquet files, folders of them, data sets on the hub, made exercises,
and rows that a program has.

A source is listed once, its form told from its first rows; then examples come one at a time, each with its
file and line, so that a mistake can be found.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError
from shoestring.core.foreign import parse_json
from shoestring.data.hub import HUB, hub_files
from shoestring.data.parquet import parquet_rows
from shoestring.data.sources import JSONL_SUFFIXES, LINE_LIMIT, Skipped, jsonl_lines
from shoestring.data.supervised import columns as naming
from shoestring.data.supervised.config import Format, OnBadLine
from shoestring.data.supervised.formats import EXPECTED, SKIP, Example, detect, named, to_example
from shoestring.data.synthetic.kinds import make
from shoestring.data.tables import TABLE_SUFFIXES, is_json, is_table, json_list, table_rows

EXERCISES = "exercises:"  # before a kind of `data.synthetic.kinds`
GIVEN = "the rows given"  # the name of a source that is no file
ROW_SUFFIXES = (*JSONL_SUFFIXES, ".json", *TABLE_SUFFIXES, ".parquet")
_EXERCISES_MADE = 4000  # held-out ones, which `data make` writes apart, included
_LOOKED_AT = 20  # rows from which the form is told
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")

Row = Callable[[], Any]  # gives the row's content, or raises DataError
Rows = Iterable[Mapping[str, Any]]  # as a program has them: dictionaries, a datasets.Dataset


class ExampleSource:
    """files: in order. form: of all rows, detected or given. columns: fields of the form under other names in the rows.

    source: a path or a name, or rows themselves, which are read once if they can be. Raises DataError when there is
    nothing to read or the form is unknown, ConfigError for columns that no form has, NetworkError for the hub.
    """

    def __init__(
        self,
        source: str | Path | Rows,
        form: Format = "auto",
        on_bad_line: OnBadLine = "stop",
        say: Callable[[str], None] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.on_bad_line = on_bad_line
        self.files: list[Path] = []
        self._given: list[Any] | None = None
        if not isinstance(source, (str, Path)):
            self.source, self._given = GIVEN, given_rows(source)
        else:
            self.source = str(source)
            if self.source.startswith(HUB):
                self.files = [file for _, file in hub_files(self.source, say)]
            elif not self.source.startswith(EXERCISES):
                self.files = _files(Path(source))
        self.form, self.columns = self._settle(form, dict(columns or {}))

    def examples(self, skipped: Skipped) -> Iterator[Example]:
        """Each example in order. Rows that cannot be read stop it, or are counted in `skipped`."""
        for where, row in self._rows():
            try:
                yield to_example(row(), self.form, where, self.columns)
            except DataError:
                if self.on_bad_line == "stop":
                    raise
                skipped.add("bad lines", where)

    def _rows(self) -> Iterator[tuple[str, Row]]:
        if self._given is not None:
            return ((f"row {n}", functools.partial(_given, row)) for n, row in enumerate(self._given, 1))
        if self.source.startswith(EXERCISES):
            return _exercise_rows(self.source)
        return itertools.chain.from_iterable(map(_rows, self.files))

    def _settle(self, form: Format, columns: dict[str, str]) -> tuple[Format, dict[str, str]]:
        """The form, and how its fields are called, of the first rows."""
        first = list(itertools.islice(self._first(), _LOOKED_AT))
        naming.check_columns(columns, first, self.source)
        renamed = [named(row, columns) for row in first]
        if (found := naming.recognise(renamed, form)) is not None:
            form, more = found
            return form, {**more, **columns}
        return detect(renamed, self.source, f"{EXPECTED}\n{naming.HINT}") if form == "auto" else form, columns

    def _first(self) -> Iterator[dict[str, Any]]:
        """Those of the rows that are objects. Raises DataError where there is none."""
        wrong, found, any_row = None, False, False
        for where, row in self._rows():
            any_row = True
            try:
                content = row()
                if isinstance(content, dict):
                    found = True
                    yield content
                else:
                    wrong = wrong or DataError("not a JSON object", where, EXPECTED)
            except DataError as error:
                if self.on_bad_line == "stop":
                    raise
                wrong = wrong or error
        if not any_row:
            raise DataError("there are no rows", self.source, EXPECTED)
        if not found and wrong is not None:
            raise DataError(f"no row can be read; the first: {wrong.message}", wrong.where, wrong.hint)


def given_rows(rows: Any) -> list[Any]:
    """Rows that a program has, as a list. Raises DataError for what holds none."""
    if isinstance(rows, Mapping):  # a DatasetDict, or one row
        splits = ", ".join(map(repr, rows))
        raise DataError("a dictionary is not a list of rows", GIVEN, f"give one of its parts ({splits}), or [row]")
    if hasattr(rows, "to_dict") and hasattr(rows, "iterrows"):
        rows = rows.to_dict("records")
    # As in Parquet, rows of a datasets.Dataset have a null for each field that only others have.
    clean = without_nulls if hasattr(rows, "features") else _given
    try:
        return [clean(dict(row) if isinstance(row, Mapping) else row) for row in rows]
    except TypeError as error:
        raise DataError(f"a {type(rows).__name__} is not rows", GIVEN, EXPECTED) from error


def without_nulls(value: Any) -> Any:
    """Parquet gives every object the fields of all others of its column, null where it has none of its own."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def _rows(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        if file.name.lower().endswith(".parquet"):
            for number, content in enumerate(parquet_rows(file), 1):
                yield f"{file}: row {number}", functools.partial(_given, without_nulls(content))
        elif is_json(file):
            for number, entry in enumerate(json_list(file), 1):
                yield f"{file}: entry {number}", functools.partial(_given, entry)
        elif is_table(file):
            for number, cells in table_rows(file):
                yield f"{file}:{number}", functools.partial(_fitting, cells)
        else:
            for number, line in enumerate(jsonl_lines(file), 1):
                if not line.isspace():
                    where = f"{file}:{number}"
                    yield where, functools.partial(_parse, line, where)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", str(file)) from error


def _exercise_rows(source: str) -> Iterator[tuple[str, Row]]:
    """The exercises that `shoestring data make KIND` writes to train on, but fewer, without what is there to score."""
    exercises = make(source.removeprefix(EXERCISES), _EXERCISES_MADE)
    for number, exercise in enumerate(exercises.train, 1):
        yield f"{source}: exercise {number}", functools.partial(_given, {"messages": exercise.row()["messages"]})


def _given(row: Any) -> Any:
    return row


def _fitting(row: dict[str, str] | DataError) -> dict[str, str]:
    if isinstance(row, DataError):
        raise DataError(row.message, row.where, f"{row.hint}\n{SKIP}")
    return row


def _parse(line: bytes, where: str) -> Any:
    hint = f"{EXPECTED}\n{SKIP}"
    if line.lstrip().startswith(b"["):
        hint += "\na list of all rows goes into a .json file"
    elif line.strip() == b"{":
        hint += "\na row stands on one line; objects over several lines go into a .json file, as a list"
    if len(line) > LINE_LIMIT:
        raise DataError(f"a line longer than {LINE_LIMIT // 2**20} MiB", where, hint)
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}", where, SKIP
        ) from error
    try:
        row = parse_json(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        reason = "unexpected end of line" if cut else f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise DataError(f"not a JSON object: {reason}", where, hint) from error
    except ValueError as error:
        raise DataError(f"not a readable JSON object: {error}", where, hint) from error
    if b"\\ud" in line.lower():
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError("the text holds half of a surrogate pair", where, SKIP) from error
    return row


def _files(path: Path) -> list[Path]:
    path = Path(os.path.expanduser(path))
    if os.path.isfile(path):
        if path.suffix.lower() in _WORKBOOKS:
            raise DataError(
                "a workbook of a spreadsheet program, not a table as text", str(path),
                'save the sheet as "CSV UTF-8", with the names of the columns in its first line',
            )  # fmt: skip
        if not path.name.lower().endswith(ROW_SUFFIXES):
            known = f"known endings: {', '.join(ROW_SUFFIXES)}"
            raise DataError("not a file of examples", str(path), f"{known}\n{EXPECTED}")
        return [path]
    if not os.path.isdir(path):
        raise DataError("no such file or folder", str(path), "for a data set on the hub write hf:OWNER/NAME")
    found = sorted(file for file in path.iterdir() if file.name.lower().endswith(ROW_SUFFIXES))
    # A folder with a train.jsonl is a split data set, of which the rest is held out.
    found = [file for file in found if file.name.split(".")[0].startswith("train")] or found
    if not found:
        raise DataError("this folder holds no examples", str(path), f"known endings: {', '.join(ROW_SUFFIXES)}")
    return found

