"""Rows of a Parquet file, some at a time: of a column the pages at hand are in memory, however large a row group is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError
from shoestring.data.reading.row import UTF8_HINT, Row

_ROWS_AT_ONCE = 256
_BYTES_AT_ONCE = 4 * 2**20
_BUFFER = 2**20


def parquet_rows(file: Path, fields: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Each row, numbered from 1. fields: columns that are read, where the first is there; None: all of them.

    Where the first is not there, rows come without content, and with the names of what is there. Raises DataError for a
    file that is none, and for cells that Python cannot hold.
    """
    import pyarrow
    from pyarrow import parquet

    number, group = 0, -1
    try:
        with parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as content:
            names = tuple(content.schema_arrow.names)
            known = fields is None or fields[0] in names
            columns = _columns(fields, names)
            for group in range(content.num_row_groups):
                at_once = _rows_at_once(content.metadata.row_group(group))
                for part in content.iter_batches(at_once, row_groups=[group], columns=columns, use_threads=False):
                    for found in _rows(part) if known else [{}] * part.num_rows:
                        number += 1
                        where = f"{file}: row group {group + 1}, row {number}"
                        read = DataError("a text that is not UTF-8", where, UTF8_HINT) if found is None else found
                        yield Row(number, where, read, names)
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        # Such as a date that Python's calendar lacks; Arrow tells damaged headers of pages as OSError without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = str(file) if group < 0 else f"{file}: row group {group + 1}, after row {number}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"not a readable Parquet file: {reason}", where) from error


def _columns(fields: tuple[str, ...] | None, names: tuple[str, ...]) -> list[str] | None:
    """What is read: where the first field is not there, any column, so that rows are counted."""
    if fields is None:
        return None
    return list(dict.fromkeys(name for name in fields if name in names) if fields[0] in names else names[:1])


def _rows_at_once(group: Any) -> int:
    """Fewer of large ones."""
    each = max(group.total_byte_size, 0) // max(group.num_rows, 1) + 1
    return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // each))


def _rows(part: Any) -> list[dict[str, Any] | None]:
    """As Python's values; None for a row with a text that is not UTF-8."""
    try:
        return part.to_pylist()
    except UnicodeDecodeError:
        found: list[dict[str, Any] | None] = []
        for n in range(part.num_rows):
            try:
                found += part.slice(n, 1).to_pylist()
            except UnicodeDecodeError:
                found.append(None)
        return found
