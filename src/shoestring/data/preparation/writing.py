"""Encoded documents, in their order, to shards: what repeats an earlier one is left out, and the rest is appended.

Every few seconds, and whenever a shard is whole, the instant is entered in the journal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoestring.core.errors import DataError
from shoestring.data.preparation.encoding import Batch, Place
from shoestring.data.preparation.journal import JOURNAL, Journal
from shoestring.data.preparation.writer import SplitWriter
from shoestring.data.quality.review import Reviewer, marks_width
from shoestring.data.shards import SPLITS

SEEN = ".seen"  # marks of the documents written, uint64 [n, width], until the folder is finished
EVERY = 10.0  # seconds between entries in the journal


@dataclass(frozen=True)
class Target:
    """shard_tokens: of a shard, at least. tokens: to train on, documents: to keep; the rest of the source is left, None
    for all. compress: zstd's level, 0 for none."""

    out: Path
    dtype: np.dtype
    separator_id: int
    shard_tokens: int
    tokens: int | None
    compress: int
    documents: int | None = None


def write_shards(
    target: Target,
    journal: Journal,
    reviewer: Reviewer,
    batches: Callable[[Place], Iterator[Batch]],
    advance: Callable[[int], object],
) -> None:
    """Write what the journal says is missing. advance: told the bytes of text of each batch."""
    out = target.out
    written = {split: sum(s.split == split for s in journal.shards) for split in SPLITS}
    writers = {
        split: SplitWriter(
            out, split, target.dtype, target.separator_id, target.compress, written[split], journal.extents[split]
        )
        for split in SPLITS
    }
    trained = sum(shard.tokens for shard in journal.shards if shard.split == "train") + writers["train"].extent.tokens
    kept = sum(shard.documents for shard in journal.shards) + sum(w.extent.documents for w in writers.values())
    seen = _reopened(out / SEEN, journal.remembered)
    if journal.review is not None:
        reviewer.restore(journal.review)
        marks = np.fromfile(out / SEEN, "<u8", count=journal.remembered // 8)
        reviewer.remember(marks.reshape(-1, marks_width(reviewer.config)))
    entered, reached = time.monotonic(), journal.place

    def enter(place: Place) -> None:
        nonlocal entered
        seen.flush()
        os.fsync(seen.fileno())
        for writer in writers.values():
            writer.flush()
        journal.place, journal.remembered = place, seen.tell()
        journal.extents = {split: writer.extent for split, writer in writers.items()}
        journal.review = reviewer.state()
        journal.write(out)
        for writer in writers.values():
            writer.forget()
        entered = time.monotonic()

    try:
        for batch in () if journal.done else batches(journal.place):
            full, reached = False, batch.end
            for document in batch.documents:
                enough = target.tokens is not None and trained >= target.tokens
                if enough or (target.documents is not None and kept >= target.documents):
                    journal.done = True
                    break
                if reviewer.decide(document.findings, document.name) is not None:
                    continue
                writer = writers[document.split]
                writer.add(document.ids, document.bytes)
                seen.write(document.findings.marks.astype("<u8").tobytes())
                kept += 1
                if document.split == "train":
                    trained += 1 + len(document.ids)
                if writer.extent.tokens >= target.shard_tokens:
                    full = True
                    shard = writer.close()
                    assert shard is not None
                    journal.shards.append(shard)
            advance(sum(document.bytes for document in batch.documents))
            if full or time.monotonic() - entered > EVERY:
                enter(reached)
            if journal.done:
                break
        for writer in writers.values():
            if (shard := writer.close()) is not None:
                journal.shards.append(shard)
        journal.done = True
        enter(reached)
    finally:
        seen.close()


def clear(out: Path) -> None:
    """Remove what a finished folder needs no longer."""
    for name in (JOURNAL, SEEN):
        (out / name).unlink(missing_ok=True)
    for old in out.glob(".*.partial"):
        old.unlink()


def entries(journal: Journal) -> list[dict[str, Any]]:
    """The shards for the index, sorted."""
    return [asdict(shard) for shard in sorted(journal.shards, key=lambda shard: shard.name)]


def _reopened(file: Path, size: int) -> Any:
    opened = open(file, "r+b" if file.is_file() else "w+b")
    if os.fstat(opened.fileno()).st_size < size:
        raise DataError("less was written than the journal says", str(file), "remove the folder and try again")
    opened.truncate(size)
    opened.seek(size)
    return opened
