"""Which reader a file gets, by the ending of its name; and the rows of those files that have some."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from shoestring.core.errors import DataError
from shoestring.data.reading.json_list import list_rows
from shoestring.data.reading.json_rows import jsonl_rows
from shoestring.data.reading.parquet import parquet_rows
from shoestring.data.reading.row import Row
from shoestring.data.reading.streams import COMPRESSED, bare_name
from shoestring.data.reading.tables import table_rows

Kind = Literal["jsonl", "json", "table", "parquet", "text"]
_ENDINGS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "table", ".tsv": "table", ".parquet": "parquet",
}  # fmt: skip
KNOWN = f"known endings: {', '.join(_ENDINGS)}, and all but the last with .gz or .zst behind it"


def kind_of(file: Path) -> Kind:
    """By the name alone, a compression's ending left out; everything else is text."""
    name = bare_name(file)
    return next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), "text")


def has_rows(file: Path) -> bool:
    """Whether its name is that of a file of rows."""
    return kind_of(file) != "text"


def rows(file: Path, fields: tuple[str, ...] | None = None) -> Iterator[Row]:
    """The rows of a file that has some. fields: those that are read, None for all.

    Raises DataError for a file that is not what its name says or is damaged, OSError where it cannot be read.
    """
    match kind_of(file):
        case "jsonl":
            return jsonl_rows(file, fields)
        case "json":
            return list_rows(file, fields)
        case "table":
            return table_rows(file)
        case "parquet":
            if file.name.lower().endswith(COMPRESSED):
                raise DataError("Parquet inside another compression cannot be read", str(file), "unpack it first")
            return parquet_rows(file, fields)
        case "text":
            raise AssertionError(file)
