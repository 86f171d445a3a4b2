"""The same rows as files of every format."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
JSON = ("jsonl", "jsonl.gz", "jsonl.zst", "ndjson", "json", "json.gz", "json.zst", "parquet")
TABLES = ("csv", "csv.gz", "csv.zst", "tsv")


def write(folder: Path, ending: str, rows: list[dict[str, Any]], **how: Any) -> Path:
    """rows as a file in `folder`. how: of JSON, as json.dumps has it."""
    folder.mkdir(exist_ok=True)
    file = folder / f"rows.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=3)
        return file
    kind, _, packed = ending.partition(".")
    if kind == "json":
        text = json.dumps(rows, **how)
    elif kind in ("csv", "tsv"):
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = table.getvalue()
    else:
        text = "".join(json.dumps(row, **how) + "\n" for row in rows)
    file.write_bytes(PACK[f".{packed}" if packed else ""](text.encode()))
    return file
