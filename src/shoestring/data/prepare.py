"""Documents to token shards: what `shoestring prepare` does.

Documents are encoded on all cores (`preparation.encoding`), judged and appended to one open shard per split in their
order (`preparation.writing`); after a kill the next run goes on from the last instant that the journal holds, and
ends with the same bytes, as with any number of threads. The last act is to write `index.json`: a folder without it is
unfinished.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shoestring.core import console
from shoestring.core.errors import DataError, TokenizerError
from shoestring.core.files import atomic_folder, atomic_write, exclusive
from shoestring.core.waiting import waiting
from shoestring.data.config import DataConfig, NewTokenizerConfig, PartConfig
from shoestring.data.preparation import writing
from shoestring.data.preparation.encoding import Batch, Encoder, Examine, Place, encoded_batches
from shoestring.data.preparation.journal import Journal, read_journal
from shoestring.data.quality.config import QualityConfig
from shoestring.data.quality.review import Reviewer, examine
from shoestring.data.shards import FORMAT, INDEX, ShardFolder, index_checksum
from shoestring.data.sources import Skipped, Source
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import train_tokenizer

LOCK = ".lock"
ZSTD_LEVEL = 3
_ELSEWHERE = "give another --out, or remove this folder"
Batches = Callable[[Place], Iterator[Batch]]


@dataclass(frozen=True)
class Settings:
    """How shards are made. tokens: to train on, documents: to keep, after which the rest of the source is left.
    workers: threads that encode, all cores by default; the bytes do not depend on it."""

    shard_tokens: int = 2**26
    tokens: int | None = None
    compress: bool = False
    quality: QualityConfig = field(default_factory=QualityConfig)
    workers: int | None = None
    documents: int | None = None

    def identity(self) -> dict[str, Any]:
        """What the bytes depend on."""
        return {
            "shard_tokens": self.shard_tokens,
            "tokens": self.tokens,
            "compress": self.compress,
            **({} if self.documents is None else {"documents": self.documents}),  # older folders do not say it
            **{f"quality.{name}": value for name, value in self.quality.model_dump(mode="json").items()},
        }


def prepare(
    source: str | Path,
    tokenizer: Tokenizer | NewTokenizerConfig,
    out: str | Path,
    text_field: str | None = None,
    validation: float = 0.05,
    on_bad_line: Literal["stop", "skip"] = "stop",
    settings: Settings | None = None,
) -> ShardFolder:
    """Write the shards of a source into the folder `out`, or finish those begun there, and open them.

    tokenizer: one that exists, or what to train on the training split. A finished folder of the same inputs
    is opened as it is, an unfinished one of other text or settings is begun anew. Raises TokenizerError
    when `out` holds shards of another tokenizer, DataError when it is a finished folder of other text or
    settings, and as Source does. A second process with the same `out` waits for the first.
    """
    return prepare_source(Source(source, text_field, validation, on_bad_line), tokenizer, out, settings)


def prepare_source(
    opened: Source,
    tokenizer: Tokenizer | NewTokenizerConfig,
    out: str | Path,
    settings: Settings | None = None,
    batches: Batches | None = None,
) -> ShardFolder:
    """`prepare` with a source that is opened already. batches: where its documents have been encoded elsewhere."""
    out, settings = Path(out), settings or Settings()
    if os.path.isdir(opened.source) and out.resolve().is_relative_to(Path(opened.source).resolve()):
        raise DataError("the shards would be written among the text", str(out), "give another --out")
    inputs = inputs_of(opened, tokenizer, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with exclusive(out / LOCK):
            return _finish(opened, tokenizer, out, inputs, settings, batches)
    except OSError as error:
        sentence = f"cannot write the shards: {error.strerror or error}"
        raise DataError(sentence, str(error.filename or out), "give another --out, or make room") from error


def inputs_of(opened: Source, tokenizer: Tokenizer | NewTokenizerConfig, settings: Settings) -> dict[str, Any]:
    """What decides the bytes of the shards, but for a tokenizer that exists."""
    return {
        "source": opened.fingerprint(),
        "settings": {
            "text_field": opened.text_field,
            "validation": opened.validation,
            "on_bad_line": opened.on_bad_line,
            **settings.identity(),
        },
        "new_tokenizer": tokenizer.model_dump() if isinstance(tokenizer, NewTokenizerConfig) else None,
    }


def source_of(config: DataConfig, part: PartConfig) -> Source:
    """One part of what a recipe reads."""
    return Source(part.source, part.text_field, config.validation, config.on_bad_line)


def settings_of(config: DataConfig) -> Settings:
    return Settings(config.shard_tokens, None, config.compress, config.quality, documents=config.max_documents)


def _finish(
    source: Source,
    tokenizer: Tokenizer | NewTokenizerConfig,
    out: Path,
    inputs: dict[str, Any],
    settings: Settings,
    batches: Batches | None,
) -> ShardFolder:
    """Open the folder if it is finished, else write what is missing."""
    if (out / INDEX).is_file():
        finished = ShardFolder(out)
        if changed := difference(finished.index["inputs"], inputs):
            raise DataError(f"this folder is finished, but {changed}", str(out), _ELSEWHERE)
        _check_tokenizer(finished.index["tokenizer"], finished.index["inputs"], inputs, tokenizer, out)
        writing.clear(out)
        return finished
    journal = _open_journal(out, inputs, tokenizer, source, settings)
    _write(source, Tokenizer.load(out / "tokenizer"), out, journal, settings, batches)
    return ShardFolder(out)


def _open_journal(
    out: Path,
    inputs: dict[str, Any],
    tokenizer: Tokenizer | NewTokenizerConfig,
    source: Source,
    settings: Settings,
) -> Journal:
    """The journal of an unfinished run of the same inputs, or a new one with its tokenizer saved."""
    journal = read_journal(out)
    if journal is not None:
        changed = difference(journal.inputs, inputs)
        if not changed:
            _check_tokenizer(journal.tokenizer, journal.inputs, inputs, tokenizer, out)
            return journal
        console.say(f"{out} holds an unfinished run, but {changed}: starting over")
        for pattern in ("*.bin", "*.bin.zst", "*.offsets", "*.blocks"):
            for old in out.glob(pattern):
                old.unlink()
        writing.clear(out)
    strangers = sorted(
        path.name for path in out.iterdir() if path.name not in (LOCK, "tokenizer") and path.name[0] != "."
    )
    if strangers:
        raise DataError(f"this folder holds other files ({strangers[0]})", str(out), "give an empty folder as --out")
    writing.clear(out)
    if isinstance(tokenizer, NewTokenizerConfig):
        first = itertools.islice(source.documents(), settings.documents)
        training = (document.text for document in first if document.split == "train")
        tokenizer = train_tokenizer(training, tokenizer.vocabulary, tokenizer.min_frequency)
    _ = tokenizer.separator_id  # refused before any work when there is none
    with atomic_folder(out / "tokenizer", replace=True) as folder:
        tokenizer.save(folder)
    journal = Journal(inputs, tokenizer.fingerprint())
    journal.write(out)
    return journal


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How the text or the settings differ from those a folder was begun with."""
    for name in {**now["settings"], "documents": None}:
        was, value = before["settings"].get(name), now["settings"].get(name)
        if was != value:
            return f"it was prepared with {name} {was}, now it is {value}"
    if before["source"] != now["source"]:
        return "it was prepared from other text, or the text has changed since"
    return None


def _check_tokenizer(
    fingerprint: str,
    before: dict[str, Any],
    now: dict[str, Any],
    tokenizer: Tokenizer | NewTokenizerConfig,
    out: Path,
) -> None:
    if isinstance(tokenizer, Tokenizer):
        same = tokenizer.fingerprint() == fingerprint
    else:
        same = before["new_tokenizer"] == now["new_tokenizer"]
    if not same:
        raise TokenizerError("this folder was prepared with another tokenizer", str(out), _ELSEWHERE)


def _write(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    journal: Journal,
    settings: Settings,
    made: Batches | None,
) -> None:
    dtype = id_dtype(tokenizer)
    encoder, reviewer = Encoder(tokenizer, dtype), Reviewer(settings.quality)
    workers = settings.workers or os.cpu_count() or 1
    batches: Batches
    if made is not None:
        batches = made
    else:
        examined = functools.partial(examine, config=settings.quality)
        batches = functools.partial(_read, source, encoder, examined, workers)
    level = ZSTD_LEVEL if settings.compress else 0
    target = writing.Target(
        out, dtype, tokenizer.separator_id, settings.shard_tokens, settings.tokens, level, settings.documents
    )
    with _progress(source.size()) as advance:
        writing.write_shards(target, journal, reviewer, batches, advance)
    read, judged = journal.place, reviewer.left_out
    left_out = Skipped({**read.skipped, **judged.counts}, {**read.first, **judged.first})
    if not journal.shards:
        raise DataError(f"no text in this source; left out: {left_out}", source.source, "give files that hold text")
    if left_out.counts:
        console.say(f"left out: {left_out}")
    index = {
        "format": FORMAT,
        "inputs": journal.inputs,
        "tokenizer": journal.tokenizer,
        "vocabulary": tokenizer.vocabulary_size,
        "separator": tokenizer.separator_id,
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "compression": "zstd" if settings.compress else None,
        "skipped": left_out.counts,
        "shards": writing.entries(journal),
    }
    with atomic_write(out / INDEX) as file:
        file.write(json.dumps({**index, "sha256": index_checksum(index)}, indent=1) + "\n")
    writing.clear(out)


def _read(source: Source, encoder: Encoder, examined: Examine, workers: int, place: Place) -> Iterator[Batch]:
    return encoded_batches(source, encoder, examined, Skipped(), place, workers)


def id_dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocabulary_size <= 2**16 else "<u4")


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], object]]:
    """What is to be told the bytes of text that are done."""
    if not console.err.is_terminal:
        with waiting("preparing text, in MB", round(size / 1e6)) as told:
            done = 0

            def tell(written: int) -> None:
                nonlocal done
                done += written
                told.done = done // 10**6

            yield tell
        return
    with console.progress() as progress:
        bar = progress.add_task("preparing (MB)", total=size / 1e6)
        yield lambda written: progress.advance(bar, written / 1e6)
