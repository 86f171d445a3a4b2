"""Rows of a Parquet file, a group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError

_AT_ONCE = 256


def parquet_rows(file: Path, fields: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Each row. fields: what is read of it; all of it where the first is not there, so that a message can tell what is.

    Raises DataError for a file that is none, and for cells that Python cannot hold.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as content:
            names = content.schema_arrow.names
            columns = [name for name in fields if name in names] if fields[:1] and fields[0] in names else None
            for part in content.iter_batches(batch_size=_AT_ONCE, columns=columns):
                for row in part.to_pylist():
                    number += 1
                    yield row
    except UnicodeDecodeError as error:
        raise DataError("a text that is not UTF-8", f"{file}: after row {number}", "make the file anew") from error
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # a date that Python's calendar lacks
        raise DataError(f"not a readable Parquet file: {str(error).splitlines()[0]}", str(file)) from error
