"""The encoded documents of one file of a source, written by whichever machine encoded it, and read back in order.

A part is a file of numpy arrays, one group for each batch, behind each a line of JSON; the last line says what was left
out. Parts of all files, read in the order of the source, are what one process would have encoded, so that the shards
made of them are the same, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from shoestring.core.errors import DataError
from shoestring.core.files import atomic_write
from shoestring.core.foreign import parse_json
from shoestring.data.preparation.encoding import Batch, Encoded, Encoder, Examine, Place, encoded_batches
from shoestring.data.quality.review import Findings
from shoestring.data.shards import SPLITS
from shoestring.data.sources import Skipped, Source

PARTS = ".parts"  # in the folder of the shards, until they are finished


def part_file(out: Path, number: int) -> Path:
    return out / PARTS / f"{number:06d}.part"


def write_part(source: Source, number: int, encoder: Encoder, examine: Examine, out: Path, workers: int) -> None:
    """Encode one file of the source, unless that was done before."""
    place = part_file(out, number)
    if place.is_file():
        return
    skipped = Skipped()
    with atomic_write(place, "wb") as file:
        for batch in encoded_batches(source, encoder, examine, skipped, Place(number), workers, files=1):
            documents = batch.documents
            if not documents:
                continue
            _save(file, [document.name for document in documents], [document.findings.fault for document in documents])
            np.save(file, np.array([len(document.ids) for document in documents], np.int64))
            np.save(file, np.array([document.bytes for document in documents], np.int64))
            np.save(file, np.array([SPLITS.index(document.split) for document in documents], np.uint8))
            np.save(file, np.stack([document.findings.marks for document in documents]))
            np.save(file, np.concatenate([np.zeros(0, np.uint32), *(document.ids for document in documents)]))
        _save(file, skipped.counts, skipped.first)


def part_batches(source: Source, out: Path, begin: Place) -> Iterator[Batch]:
    """What the parts hold, from a place on. Raises DataError for a part that is missing or damaged."""
    skipped = Skipped(dict(begin.skipped), dict(begin.first))
    for number in range(begin.file, len(source.files)):
        before = dict(skipped.counts), dict(skipped.first)
        passed = begin.document if number == begin.file else 0
        place, done = part_file(out, number), 0
        try:
            with open(place, "rb") as file:
                while True:
                    one, other = _load(file)
                    if isinstance(one, dict):
                        for reason, count in one.items():
                            skipped.counts[reason] = skipped.counts.get(reason, 0) + count
                            skipped.first.setdefault(reason, other[reason])
                        break
                    documents = list(_documents(file, one, other))
                    done += len(documents)
                    rest = documents[max(passed - (done - len(documents)), 0) :]
                    if rest:
                        yield Batch(rest, Place(number, done, *before))
        except FileNotFoundError as error:
            raise DataError("this part is missing", str(place), "run every node to its end first") from error
        except (ValueError, KeyError, EOFError, IndexError) as error:
            raise DataError(f"a damaged part: {error}", str(place), "remove it, and run its node again") from error
    yield Batch([], Place(len(source.files), 0, dict(skipped.counts), dict(skipped.first)))


def _documents(file: IO[bytes], names: list[str], faults: list[str | None]) -> Iterator[Encoded]:
    lengths, sizes, splits, marks, ids = (np.load(file, allow_pickle=False) for _ in range(5))
    begin = 0
    for n, (name, fault) in enumerate(zip(names, faults, strict=True)):
        end = begin + int(lengths[n])
        yield Encoded(name, SPLITS[int(splits[n])], int(sizes[n]), ids[begin:end], Findings(fault, marks[n]))
        begin = end


def _save(file: IO[bytes], one: Any, other: Any) -> None:
    np.save(file, np.frombuffer(json.dumps([one, other]).encode(), np.uint8))


def _load(file: IO[bytes]) -> Any:
    return parse_json(np.load(file, allow_pickle=False).tobytes())
