"""Files that hold rows: JSON lists, CSV and TSV tables, one row at a time with the place where it stands.

A JSON list is read whole, so it has a limit; the rest comes line by line. Cells of a table are strings, and a row has
as many as the first one has names.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from shoestring.core.errors import DataError
from shoestring.core.foreign import read_json

TABLE_SUFFIXES = (".csv", ".tsv")
LIST_LIMIT = 2**30  # bytes of a JSON list
CELL_LIMIT = 64 * 2**20  # characters of a cell
_SEPARATORS = ",;\t|"
_UTF8_HINT = 'a spreadsheet saves UTF-8 as "CSV UTF-8"; iconv -f LATIN1 -t UTF-8 FILE converts a file from Latin-1'
_QUOTES_HINT = 'a cell with a separator, a quotation mark or a line break stands in "quotes", a quotation mark twice'


def is_json(file: Path) -> bool:
    return file.name.lower().endswith(".json")


def is_table(file: Path) -> bool:
    return file.name.lower().endswith(TABLE_SUFFIXES)


def json_list(file: Path) -> list[Any]:
    """The entries of a JSON list. Raises DataError for a file that is none."""
    try:
        rows = read_json(file, most_bytes=LIST_LIMIT, most_items=None)
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", str(file), "a file with one object per line is .jsonl") from error
    if not isinstance(rows, list):
        raise DataError("not a list of objects", str(file), "give a .json file with a list, or a .jsonl file")
    return rows


def table_rows(file: Path) -> Iterator[tuple[int, dict[str, str] | DataError]]:
    """(line, row) of a CSV or TSV file; a row that does not fit the names above it comes as the error to raise.

    A CSV file's separator is the one of , ; tab and | that its first line has most of. Raises DataError for a file
    that cannot be read as a table.
    """
    csv.field_size_limit(CELL_LIMIT)
    try:
        with open(file, encoding="utf-8-sig", newline="") as content:
            yield from _rows(content, file)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: byte 0x{error.object[error.start]:02x}", str(file), _UTF8_HINT) from error


def table_names(file: Path) -> list[str]:
    """The names in the first line. Raises DataError as `table_rows`."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as content:
            return _opened(content, file)[0]
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: byte 0x{error.object[error.start]:02x}", str(file), _UTF8_HINT) from error


def _rows(content: TextIO, file: Path) -> Iterator[tuple[int, dict[str, str] | DataError]]:
    names, reader = _opened(content, file)
    while True:
        line = reader.line_num + 1
        where = f"{file}:{line}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # What follows may be half of a cell: there is no line to go on with.
            raise DataError(f"not a readable row: {error}", where, _QUOTES_HINT) from error
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(names):
            message = f"a row of {len(cells)} cells, and there are {len(names)} names in the first line"
            yield line, DataError(message, where, _QUOTES_HINT)
        else:
            yield line, dict(zip(names, cells, strict=True))


def _opened(content: TextIO, file: Path) -> tuple[list[str], Any]:
    first = content.readline(CELL_LIMIT)
    content.seek(0)
    separator = "\t" if file.name.lower().endswith(".tsv") else max(_SEPARATORS, key=first.count)
    reader = csv.reader(content, delimiter=separator, strict=True)
    try:
        cells = next(reader, [])
    except csv.Error as error:
        raise DataError(f"not a readable row: {error}", f"{file}:1", _QUOTES_HINT) from error
    if not any(cells):
        raise DataError("no names of columns in the first line", str(file), "write them there, as: prompt,completion")
    names = [name.strip() or f"column {number}" for number, name in enumerate(cells, 1)]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"two columns are named {twice[0]!r}", f"{file}:1", "each column needs a name of its own")
    return names, reader
