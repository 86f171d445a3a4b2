"""Documents to ids, batch by batch on several threads, in the order of the source.

What happens to a batch here depends on its documents alone, so neither the number of threads nor of machines changes
it; what depends on earlier documents (duplicates) comes afterwards, in `preparation.writing`.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoestring.core.errors import TokenizerError
from shoestring.data.quality.review import Findings
from shoestring.data.sources import Document, Skipped, Source
from shoestring.data.tokenizer import Tokenizer

BATCH_BYTES = 250_000
BATCH_DOCUMENTS = 1024
_PARALLEL = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class Place:
    """Where reading goes on: document number `document` of file number `file`. skipped: what was left out before that
    file, which is counted again from there."""

    file: int = 0
    document: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """One document. ids: without the separator, empty where it has a fault. findings: of its text alone."""

    name: str
    split: str
    bytes: int
    ids: np.ndarray
    findings: Findings


@dataclass(frozen=True)
class Batch:
    """Documents in their order, and the place behind them."""

    documents: list[Encoded]
    end: Place


Examine = Callable[[str], Findings]


class Encoder:
    """texts to ids in arrays of `dtype`. It may be used by several threads at once."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._encode, self._dtype, self._vocabulary = tokenizer.encoder(), dtype, tokenizer.vocabulary_size

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        found = [np.frombuffer(array("I", ids), np.uint32) for ids in self._encode(texts)]  # faster than np.array
        for ids in found:
            if len(ids) and int(ids.max()) >= self._vocabulary:
                raise TokenizerError(
                    f"the tokenizer gives the id {int(ids.max())}, beyond its {self._vocabulary:,} tokens"
                )
        return [ids.astype(self._dtype) for ids in found]


def encoded_batches(
    source: Source,
    encoder: Encoder,
    examine: Examine,
    skipped: Skipped,
    begin: Place,
    workers: int,
    files: int | None = None,
) -> Iterator[Batch]:
    """Every document from a place on, of so many files. workers: threads that encode. skipped: what the source leaves
    out, when it has come to its end."""

    def encoded(documents: list[Document], end: Place) -> Batch:
        return Batch(_encoded(documents, encoder, examine), end)

    batches = _batches(source, skipped, begin, files)
    with _one_thread_each(), ThreadPoolExecutor(workers, "encode") as pool:
        ahead: deque[Future[Batch]] = deque()
        try:
            for documents, end in batches:
                ahead.append(pool.submit(encoded, documents, end))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _encoded(documents: list[Document], encoder: Encoder, examine: Examine) -> list[Encoded]:
    findings = [examine(document.text) for document in documents]
    kept = [n for n, found in enumerate(findings) if found.fault is None]
    ids = dict(zip(kept, encoder([documents[n].text for n in kept]), strict=True))
    nothing = np.zeros(0, np.uint16)
    return [
        Encoded(document.name, document.split, len(document.text.encode()), ids.get(n, nothing), found)
        for n, (document, found) in enumerate(zip(documents, findings, strict=True))
    ]


def _batches(
    source: Source, skipped: Skipped, begin: Place, files: int | None
) -> Iterator[tuple[list[Document], Place]]:
    """Documents worth encoding at once, and the place behind them; none at last, with all that was left out."""
    skipped.counts, skipped.first = dict(begin.skipped), dict(begin.first)
    batch: list[Document] = []
    size, end = 0, begin
    for file, documents in source.by_file(skipped, begin.file):
        if files is not None and file >= begin.file + files:
            break
        before = dict(skipped.counts), dict(skipped.first)
        passed = begin.document if file == begin.file else 0
        for number, document in enumerate(documents, 1):
            if number <= passed:
                continue
            batch.append(document)
            size += len(document.text)
            end = Place(file, number, *before)
            if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
                yield batch, end
                batch, size = [], 0
    if batch:
        yield batch, end
    yield [], Place(len(source.files), 0, dict(skipped.counts), dict(skipped.first))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """The library's own threads and ours would fight each other."""
    before: Any = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "false"
    try:
        yield
    finally:
        os.environ.pop(_PARALLEL, None)
        if before is not None:
            os.environ[_PARALLEL] = before
