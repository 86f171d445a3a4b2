"""Where examples come from: JSONL, JSON and Parquet files, folders of them, data sets on the hub, made exercises.

A source is listed once, its form told from its first rows; then examples come one at a time, each with its
file and line, so that a mistake can be found.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError
from shoestring.core.foreign import parse_json, read_json
from shoestring.data.hub import HUB, hub_files
from shoestring.data.sources import JSONL_SUFFIXES, LINE_LIMIT, Skipped, jsonl_lines
from shoestring.data.supervised.config import Format, OnBadLine
from shoestring.data.supervised.formats import EXPECTED, SKIP, Example, detect, to_example
from shoestring.data.synthetic.kinds import make

EXERCISES = "exercises:"  # before a kind of `data.synthetic.kinds`
_EXERCISES_MADE = 4000  # held-out ones, which `data make` writes apart, included
_LOOKED_AT = 20  # rows from which the form is told
_LONGEST_LIST = 2**30  # bytes of a .json file, which is read whole
_SUFFIXES = (*JSONL_SUFFIXES, ".json", ".parquet")

Row = Callable[[], Any]  # gives the row's content, or raises DataError


class ExampleSource:
    """files: in order. form: of all rows, detected or given.

    Raises DataError when there is nothing to read or the form is unknown, NetworkError for the hub.
    """

    def __init__(
        self,
        source: str | Path,
        form: Format = "auto",
        on_bad_line: OnBadLine = "stop",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.source = str(source)
        self.on_bad_line = on_bad_line
        self.files: list[Path] = []
        if self.source.startswith(HUB):
            self.files = [file for _, file in hub_files(self.source, say)]
        elif not self.source.startswith(EXERCISES):
            self.files = _files(Path(source))
        self.form: Format = self._detect() if form == "auto" else form

    def examples(self, skipped: Skipped) -> Iterator[Example]:
        """Each example in order. Rows that cannot be read stop it, or are counted in `skipped`."""
        for where, row in self._rows():
            try:
                yield to_example(row(), self.form, where)
            except DataError:
                if self.on_bad_line == "stop":
                    raise
                skipped.add("bad lines", where)

    def _rows(self) -> Iterator[tuple[str, Row]]:
        if self.source.startswith(EXERCISES):
            return _exercise_rows(self.source)
        return itertools.chain.from_iterable(map(_rows, self.files))

    def _detect(self) -> Format:
        def first() -> Iterator[dict[str, Any]]:
            for _, row in self._rows():
                try:
                    content = row()
                except DataError:
                    if self.on_bad_line == "stop":
                        raise
                    continue
                if isinstance(content, dict):
                    yield content

        return detect(itertools.islice(first(), _LOOKED_AT), self.source)


def _rows(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        if file.name.lower().endswith(".parquet"):
            yield from _parquet_rows(file)
        elif file.name.lower().endswith(".json"):
            yield from _json_rows(file)
        else:
            for number, line in enumerate(jsonl_lines(file), 1):
                if not line.isspace():
                    where = f"{file}:{number}"
                    yield where, functools.partial(_parse, line, where)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", str(file)) from error


def _exercise_rows(source: str) -> Iterator[tuple[str, Row]]:
    """The exercises that `shoestring data make KIND` writes to train on, but fewer."""
    exercises = make(source.removeprefix(EXERCISES), _EXERCISES_MADE)
    for number, exercise in enumerate(exercises.train, 1):
        yield f"{source}: exercise {number}", functools.partial(_given, exercise.row())


def _given(row: Any) -> Any:
    return row


def _parse(line: bytes, where: str) -> Any:
    hint = f"{EXPECTED}\n{SKIP}"
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


def _json_rows(file: Path) -> Iterator[tuple[str, Row]]:
    """One list of objects, as Alpaca and ShareGPT sets are often given."""
    rows = _parse_file(file)
    if not isinstance(rows, list):
        raise DataError("not a list of objects", str(file), "give a .json file with a list, or a .jsonl file")
    for number, row in enumerate(rows, 1):
        yield f"{file}: entry {number}", functools.partial(_given, row)


def _parse_file(file: Path) -> Any:
    try:
        return read_json(file, most_bytes=_LONGEST_LIST, most_items=None)
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", str(file), "a file with one object per line is .jsonl") from error


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as content:
            for part in content.iter_batches(batch_size=256):
                for row in part.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", functools.partial(_given, row)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {str(error).splitlines()[0]}", str(file)) from error


def _files(path: Path) -> list[Path]:
    path = Path(os.path.expanduser(path))
    if os.path.isfile(path):
        if not path.name.lower().endswith(_SUFFIXES):
            raise DataError("not a file of examples", str(path), f"known endings: {', '.join(_SUFFIXES)}\n{EXPECTED}")
        return [path]
    if not os.path.isdir(path):
        raise DataError("no such file or folder", str(path), "for a data set on the hub write hf:OWNER/NAME")
    found = sorted(file for file in path.iterdir() if file.name.lower().endswith(_SUFFIXES))
    # A folder with a train.jsonl is a split data set, of which the rest is held out.
    found = [file for file in found if file.name.split(".")[0].startswith("train")] or found
    if not found:
        raise DataError("this folder holds no examples", str(path), f"known endings: {', '.join(_SUFFIXES)}")
    return found

