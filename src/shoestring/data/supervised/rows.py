"""Where examples come from: JSONL, JSON, CSV and Parquet files, folders and globs of them, data sets on the hub, made
exercises, and rows that a program has.

A source is listed once, its form told from its first rows; then examples come one at a time, each with its
file and line, so that a mistake can be found.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError
from shoestring.data.built_in import find
from shoestring.data.hub import HUB, training_files
from shoestring.data.reading import kinds
from shoestring.data.reading.listing import Listed, below, is_glob, listed, matching
from shoestring.data.reading.row import Row, good
from shoestring.data.sources import Skipped
from shoestring.data.supervised import columns as naming
from shoestring.data.supervised.config import Format, OnBadLine
from shoestring.data.supervised.formats import EXPECTED, Example, detect, named, to_example
from shoestring.data.synthetic.kinds import make

EXERCISES = "exercises:"  # before a kind of `data.synthetic.kinds`
GIVEN = "the rows given"  # the name of a source that is no file
_EXERCISES_MADE = 4000  # held-out ones, which `data make` writes apart, included
_LOOKED_AT = 20  # rows from which the form is told
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_NO_FILE = "for a data set on the hub write hf:OWNER/NAME, or one of the names alpaca, gsm8k"

Rows = Iterable[Mapping[str, Any]]  # as a program has them: dictionaries, a datasets.Dataset


class ExampleSource:
    """files: in order. form: of all rows, detected or given. columns: fields of the form under other names in the rows.

    source: a path, a glob or a name (`data.built_in`), or rows themselves, which are read once if they can be. Raises
    DataError when there is nothing to read or the form is unknown, ConfigError for columns that no form has,
    NetworkError for the hub, whose files are fetched when they are reached.
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
        self.files: list[Listed] = []
        self._given: list[Any] | None = None
        if not isinstance(source, (str, Path)):
            self.source, self._given = GIVEN, given_rows(source)
        else:
            self.source = str(source)
            known = find(self.source)[1]
            columns = columns or (known.columns if known else None)
            if not self.source.startswith(EXERCISES):
                self.files = _files(self.source, say)
        self.form, self.columns = self._settle(form, dict(columns or {}))

    def examples(self, skipped: Skipped) -> Iterator[Example]:
        """Each example in order. Rows that cannot be read stop it, or are counted in `skipped`."""
        for row in self._rows():
            try:
                yield to_example(good(row, EXPECTED), self.form, row.where, self.columns)
            except DataError:
                if self.on_bad_line == "stop":
                    raise
                skipped.add("bad lines", row.where)

    def _rows(self) -> Iterator[Row]:
        if self._given is not None:
            return (Row(n, f"row {n}", row) for n, row in enumerate(self._given, 1))
        if self.source.startswith(EXERCISES):
            return _exercise_rows(self.source)
        return itertools.chain.from_iterable(map(_rows_of, self.files))

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
        made = self._given is None and self.source.startswith(EXERCISES)
        for row in _exercise_rows(self.source, 2 * _LOOKED_AT) if made else self._rows():
            any_row = True
            try:
                content = good(row, EXPECTED)
                if isinstance(content, dict):
                    found = True
                    yield content
                else:
                    wrong = wrong or DataError("not a JSON object", row.where, EXPECTED)
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
    nulls = hasattr(rows, "features")
    try:
        found = [dict(row) if isinstance(row, Mapping) else row for row in rows]
    except TypeError as error:
        raise DataError(f"a {type(rows).__name__} is not rows", GIVEN, EXPECTED) from error
    return list(map(without_nulls, found)) if nulls else found


def without_nulls(value: Any) -> Any:
    """Parquet gives every object the fields of all others of its column, null where it has none of its own."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def are_rows(source: str) -> bool:
    """Whether a source is made of rows (JSON, CSV, Parquet, the hub, exercises) rather than of text."""
    where = os.path.expanduser(find(source)[0])
    if where.startswith((HUB, EXERCISES)):
        return True
    path = Path(where)
    if os.path.isdir(path):
        files = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        files = below(path) if all(entry.is_dir() for entry in files) else files
    else:
        files = [Path(name) for name, _ in matching(where)] if is_glob(where) else [path]
    return bool(files) and all(map(kinds.has_rows, files))


def _rows_of(listed: Listed) -> Iterator[Row]:
    file = listed.path()
    try:
        for row in kinds.rows(file):
            yield row._replace(content=without_nulls(row.content)) if kinds.kind_of(file) == "parquet" else row
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", str(file)) from error


def _exercise_rows(source: str, made: int = _EXERCISES_MADE) -> Iterator[Row]:
    """The exercises that `shoestring data make KIND` writes to train on, but fewer, without what is there to score."""
    exercises = make(source.removeprefix(EXERCISES), made)
    for number, exercise in enumerate(exercises.train, 1):
        yield Row(number, f"{source}: exercise {number}", {"messages": exercise.row()["messages"]})


def _files(source: str, say: Callable[[str], None] | None) -> list[Listed]:
    where = os.path.expanduser(find(source)[0])
    path = Path(where)
    if os.path.isdir(path):
        return _of_folder(path)
    files = listed(source, say, _NO_FILE)
    if os.path.isfile(path):
        if path.suffix.lower() in _WORKBOOKS:
            raise DataError(
                "a workbook of a spreadsheet program, not a table as text", str(path),
                'save the sheet as "CSV UTF-8", with the names of the columns in its first line',
            )  # fmt: skip
        if not kinds.has_rows(path):
            raise DataError("not a file of examples", str(path), f"{kinds.KNOWN}\n{EXPECTED}")
    found = [file for file in files if kinds.has_rows(Path(file.name))]
    if not found:
        raise DataError("this pattern matches no file of examples", source, kinds.KNOWN)
    return found


def _of_folder(folder: Path) -> list[Listed]:
    """The files of examples in it, or in the folders below where a data set has its files there."""
    named = {file.relative_to(folder).as_posix(): file for file in below(folder) if kinds.has_rows(file)}
    found = [name for name in named if "/" not in name] or training_files(list(named))
    # A folder with a train.jsonl is a split data set, of which the rest is held out.
    found = [name for name in found if Path(name).name.split(".")[0].startswith("train")] or found
    if not found:
        raise DataError("this folder holds no examples", str(folder), kinds.KNOWN)
    return [Listed(name, named[name]) for name in found]
