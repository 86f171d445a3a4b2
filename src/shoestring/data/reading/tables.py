"""Tables as text, plain or compressed: the rows of a CSV or TSV file, one at a time.

Cells are strings, and a row has as many as the first one has names. What is not UTF-8 is carried through the parser (as
surrogates), so that it makes one row bad and not the file.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError
from shoestring.data.reading import streams
from shoestring.data.reading.row import Row

CELL_LIMIT = 2**24  # characters of a cell: a quotation mark that nothing closes is found within so many
_SEPARATORS = ",;\t|"
_UTF8_HINT = 'a spreadsheet saves UTF-8 as "CSV UTF-8"; iconv -f LATIN1 -t UTF-8 FILE converts a file from Latin-1'
_QUOTES_HINT = 'a cell with a separator, a quotation mark or a line break stands in "quotes", a quotation mark twice'


def table_rows(file: Path) -> Iterator[Row]:
    """A row for each line below the names, numbered by lines; one that does not fit the names is an error.

    A CSV file's separator is the one of , ; tab and | that its first line has most of. Raises DataError for a file
    that cannot be read as a table.
    """
    csv.field_size_limit(CELL_LIMIT)
    line = 0
    with streams.opened(file, lambda: f"{file}:{line + 1}") as content:
        text = _Lines(content, file)
        names, reader = _begun(text, file)
        while True:
            line = reader.line_num
            where = f"{file}:{line + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                # What follows may be half of a cell: there is no line to go on with.
                raise DataError(f"not a readable row: {error}", where, _QUOTES_HINT) from error
            if cells is None:
                return
            if wrong := text.wrong():
                yield Row(line + 1, where, wrong)
            elif cells and len(cells) != len(names):
                message = f"a row of {len(cells)} cells, and there are {len(names)} names in the first line"
                yield Row(line + 1, where, DataError(message, where, _QUOTES_HINT))
            elif cells:
                yield Row(line + 1, where, dict(zip(names, cells, strict=True)))


def table_names(file: Path) -> list[str]:
    """The names in the first line. Raises DataError as `table_rows`."""
    csv.field_size_limit(CELL_LIMIT)
    with streams.opened(file) as content:
        return _begun(_Lines(content, file), file)[0]


class _Lines:
    """The lines of a text, with their ends, none longer than LINE_LIMIT; and whether the last ones were UTF-8."""

    def __init__(self, content: streams.Content, file: Path) -> None:
        self._text = io.TextIOWrapper(content, "utf-8-sig", "surrogateescape", newline="")  # type: ignore[type-var]
        self._file, self._number = file, 0
        self._wrong: DataError | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(streams.LINE_LIMIT + 1)
        if not line:
            raise StopIteration
        self._number += 1
        if len(line) > streams.LINE_LIMIT:
            message = f"a line longer than {streams.LINE_LIMIT // 2**20} MiB"
            raise DataError(message, f"{self._file}:{self._number}", _QUOTES_HINT)
        if self._wrong is None and not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) - 0xDC00
                where = f"{self._file}:{self._number}"
                self._wrong = DataError(f"not UTF-8: byte 0x{byte:02x}", where, _UTF8_HINT)
        return line

    def wrong(self) -> DataError | None:
        """What was wrong since this was asked last."""
        wrong, self._wrong = self._wrong, None
        return wrong


def _begun(text: _Lines, file: Path) -> tuple[list[str], Any]:
    """The names of columns, and a reader of what is below them."""
    first = next(text, "")
    separator = "\t" if streams.bare_name(file).endswith(".tsv") else max(_SEPARATORS, key=first.count)
    reader = csv.reader(itertools.chain([first], text), delimiter=separator, strict=True)
    try:
        cells = next(reader, [])
    except csv.Error as error:
        raise DataError(f"not a readable row: {error}", f"{file}:1", _QUOTES_HINT) from error
    if wrong := text.wrong():
        raise wrong
    if not any(cells):
        raise DataError("no names of columns in the first line", str(file), "write them there, as: prompt,completion")
    names = [name.strip() or f"column {number}" for number, name in enumerate(cells, 1)]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"two columns are named {twice[0]!r}", f"{file}:1", "each column needs a name of its own")
    return names, reader
