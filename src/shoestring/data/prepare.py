"""Documents to token shards: what `shoestring prepare` does.

Documents are encoded in batches on all cores and appended to one open shard per split. A shard that is full
is flushed, renamed and entered in `journal.json`, together with the number of the document that follows;
after a kill the next run reads the source again, skips what is in whole shards, and ends with the same
bytes as a run without the kill. The last act is to write `index.json`: a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from shoestring.core import console
from shoestring.core.errors import DataError, TokenizerError
from shoestring.core.files import atomic_folder, atomic_write, exclusive
from shoestring.core.foreign import read_json
from shoestring.core.waiting import Waiting, waiting
from shoestring.data.config import DataConfig, NewTokenizerConfig
from shoestring.data.shards import FORMAT, INDEX, SPLITS, Shard, ShardFolder, check_size, index_checksum
from shoestring.data.sources import Document, Skipped, Source
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import train_tokenizer

JOURNAL = "journal.json"
LOCK = ".lock"
_ELSEWHERE = "give another --out, or remove this folder"
BATCH_BYTES = 2_000_000
BATCH_DOCUMENTS = 1024


def prepare(
    source: str | Path,
    tokenizer: Tokenizer | NewTokenizerConfig,
    out: str | Path,
    text_field: str = "text",
    validation: float = 0.05,
    on_bad_line: str = "stop",
    shard_tokens: int = 2**26,
) -> ShardFolder:
    """Write the shards of a source into the folder `out`, or finish those begun there, and open them.

    tokenizer: one that exists, or what to train on the training split. A finished folder of the same inputs
    is opened as it is, an unfinished one of other text or settings is begun anew. Raises TokenizerError
    when `out` holds shards of another tokenizer, DataError when it is a finished folder of other text or
    settings, and as Source does. A second process with the same `out` waits for the first.
    """
    return prepare_source(Source(source, text_field, validation, on_bad_line), tokenizer, out, shard_tokens)


def prepare_source(
    opened: Source, tokenizer: Tokenizer | NewTokenizerConfig, out: str | Path, shard_tokens: int = 2**26
) -> ShardFolder:
    """`prepare` with a source that is opened already, whose text is then hashed no second time."""
    out, source = Path(out), opened.source
    if os.path.isdir(source) and out.resolve().is_relative_to(Path(source).resolve()):
        raise DataError("the shards would be written among the text", str(out), "give another --out")
    inputs = {
        "source": opened.fingerprint(),
        "settings": {
            "text_field": opened.text_field,
            "validation": opened.validation,
            "on_bad_line": opened.on_bad_line,
            "shard_tokens": shard_tokens,
        },
        "new_tokenizer": tokenizer.model_dump() if isinstance(tokenizer, NewTokenizerConfig) else None,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with exclusive(out / LOCK):
            return _finish(opened, tokenizer, out, inputs)
    except OSError as error:
        sentence = f"cannot write the shards: {error.strerror or error}"
        raise DataError(sentence, str(error.filename or out), "give another --out, or make room") from error


def _finish(
    source: Source, tokenizer: Tokenizer | NewTokenizerConfig, out: Path, inputs: dict[str, Any]
) -> ShardFolder:
    """Open the folder if it is finished, else write what is missing."""
    if (out / INDEX).is_file():
        finished = ShardFolder(out)
        if changed := _difference(finished.index["inputs"], inputs):
            raise DataError(f"this folder is finished, but {changed}", str(out), _ELSEWHERE)
        _check_tokenizer(finished.index, inputs, tokenizer, out)
        (out / JOURNAL).unlink(missing_ok=True)
        return finished
    journal = _open_journal(out, inputs, tokenizer, source)
    _write(source, Tokenizer.load(out / "tokenizer"), out, journal)
    return ShardFolder(out)


def prepare_recipe(
    config: DataConfig, tokenizer: Tokenizer | None, out: str | Path, opened: Source | None = None
) -> ShardFolder:
    """`prepare` with the settings of a recipe. opened: its source, where it is open already.

    tokenizer: the one that `config.tokenizer` names; None to train one.
    A `config.source` that is itself a folder of shards is opened in place; its tokenizer must then be the
    given one.
    """
    if os.path.isfile(Path(config.source) / INDEX):
        shards = ShardFolder(config.source)
        if tokenizer is not None and tokenizer.fingerprint() != shards.tokenizer_fingerprint:
            raise TokenizerError(
                "these shards were made with another tokenizer",
                config.source,
                "prepare the text with this one",
            )
        return shards
    new = config.tokenizer if isinstance(config.tokenizer, NewTokenizerConfig) else None
    chosen = tokenizer or new
    assert chosen is not None, "config.tokenizer names a folder: load it first"
    opened = opened or recipe_source(config)
    return prepare_source(opened, chosen, out, config.shard_tokens)


def recipe_source(config: DataConfig) -> Source:
    """What a recipe reads."""
    return Source(config.source, config.text_field, config.validation, config.on_bad_line)


def _open_journal(
    out: Path, inputs: dict[str, Any], tokenizer: Tokenizer | NewTokenizerConfig, source: Source
) -> dict[str, Any]:
    """The journal of an unfinished run of the same inputs, or a new one with its tokenizer saved."""
    file = out / JOURNAL
    if file.is_file():
        try:
            journal = read_json(file)
            changed = _difference(journal["inputs"], inputs)
            if not changed:
                _check_tokenizer(journal, inputs, tokenizer, out)
                return journal
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the journal is damaged: {error}", str(file), "remove the folder and try again"
            ) from error
        console.say(f"{out} holds an unfinished run, but {changed}: starting over")
        for pattern in (".*.partial", "*.bin", "*.offsets", JOURNAL):
            for old in out.glob(pattern):
                old.unlink()
    strangers = sorted(
        path.name for path in out.iterdir() if path.name not in (LOCK, "tokenizer") and path.name[0] != "."
    )
    if strangers:
        raise DataError(
            f"this folder holds other files ({strangers[0]})", str(out), "give an empty folder as --out"
        )
    if isinstance(tokenizer, NewTokenizerConfig):
        training = (document.text for document in source.documents() if document.split == "train")
        tokenizer = train_tokenizer(training, tokenizer.vocabulary, tokenizer.min_frequency)
    _ = tokenizer.separator_id  # refused before any work when there is none
    with atomic_folder(out / "tokenizer", replace=True) as folder:
        tokenizer.save(folder)
    journal = {"inputs": inputs, "tokenizer": tokenizer.fingerprint(), "shards": []}
    _write_json(file, journal)
    return journal


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How the text or the settings differ from those a folder was begun with."""
    for name, value in now["settings"].items():
        if before["settings"][name] != value:
            return f"it was prepared with {name} {before['settings'][name]}, now it is {value}"
    if before["source"] != now["source"]:
        return "it was prepared from other text, or the text has changed since"
    return None


def _check_tokenizer(
    written: dict[str, Any], inputs: dict[str, Any], tokenizer: Tokenizer | NewTokenizerConfig, out: Path
) -> None:
    if isinstance(tokenizer, Tokenizer):
        same = tokenizer.fingerprint() == written["tokenizer"]
    else:
        same = written["inputs"]["new_tokenizer"] == inputs["new_tokenizer"]
    if not same:
        raise TokenizerError("this folder was prepared with another tokenizer", str(out), _ELSEWHERE)


def _write(source: Source, tokenizer: Tokenizer, out: Path, journal: dict[str, Any]) -> None:
    size = tokenizer.vocabulary_size
    dtype = np.dtype("<u2" if size <= 2**16 else "<u4")
    writers = {split: _Writer(out, split, dtype, tokenizer, journal) for split in SPLITS}
    skipped = Skipped()
    plain: AbstractContextManager[Waiting | None] = nullcontext()
    if not console.err.is_terminal:
        plain = waiting("preparing text, in MB", round(source.size() / 1e6))
    done = 0
    with console.progress() as progress, plain as told:
        bar = progress.add_task("preparing (MB)", total=source.size() / 1e6)
        for batch in _batches(source.documents(skipped), writers):
            for (number, document), ids in zip(
                batch, tokenizer.encode_batch([d.text for _, d in batch]), strict=True
            ):
                written = len(document.text.encode())
                writers[document.split].add(number, ids, written)
                progress.advance(bar, written / 1e6)
                done += written
                if told is not None:
                    told.done = done // 10**6
        for writer in writers.values():
            writer.close()
    if skipped.counts:
        console.say(f"left out: {skipped}")
    shards = sorted(journal["shards"], key=lambda entry: entry["name"])
    index = {
        "format": FORMAT,
        "inputs": journal["inputs"],
        "tokenizer": journal["tokenizer"],
        "vocabulary": size,
        "separator": tokenizer.separator_id,
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "skipped": skipped.counts,
        "shards": [{key: entry[key] for key in Shard.__annotations__} for entry in shards],
    }
    _write_json(out / INDEX, {**index, "sha256": index_checksum(index)})
    (out / JOURNAL).unlink()


def _batches(
    documents: Iterator[Document], writers: dict[str, _Writer]
) -> Iterator[list[tuple[int, Document]]]:
    """(number, document) in groups worth encoding at once; those in whole shards are left out."""
    batch: list[tuple[int, Document]] = []
    size = 0
    for number, document in enumerate(documents):
        if number < writers[document.split].next_document:
            continue
        batch.append((number, document))
        size += len(document.text)
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends documents of one split to its open shard."""

    def __init__(
        self, out: Path, split: str, dtype: np.dtype, tokenizer: Tokenizer, journal: dict[str, Any]
    ) -> None:
        self._out, self._split, self._dtype, self._journal = out, split, dtype, journal
        self._separator, self._vocabulary = tokenizer.separator_id, tokenizer.vocabulary_size
        self._limit = journal["inputs"]["settings"]["shard_tokens"]
        whole = [entry for entry in journal["shards"] if entry["split"] == split]
        for entry in whole:
            check_size(out / f"{entry['name']}.bin", entry["tokens"] * dtype.itemsize)
        self._count = len(whole)
        self.next_document = whole[-1]["next_document"] if whole else 0
        self._file: Any = None

    def add(self, number: int, ids: list[int], size: int) -> None:
        """ids and text bytes of document `number`."""
        if ids and max(ids) >= self._vocabulary:
            raise TokenizerError(
                f"the tokenizer gives the id {max(ids)}, beyond its {self._vocabulary:,} tokens"
            )
        if self._file is None:
            self._name = f"{self._split}-{self._count:05d}"
            self._partial = self._out / f".{self._name}.bin.partial"
            self._file = open(self._partial, "wb")
            self._digest = hashlib.sha256()
            self._begins = [(0, 0)]
        content = np.array([self._separator, *ids], self._dtype).tobytes()
        self._file.write(content)
        self._digest.update(content)
        tokens, text = self._begins[-1]
        self._begins.append((tokens + 1 + len(ids), text + size))
        self.next_document = number + 1
        if self._begins[-1][0] >= self._limit:
            self.close()

    def close(self) -> None:
        """Make the open shard whole, and enter it in the journal."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        os.replace(self._partial, self._out / f"{self._name}.bin")
        offsets = np.array(self._begins, "<i8").T.tobytes()
        with atomic_write(self._out / f"{self._name}.offsets", "wb") as file:
            file.write(offsets)
        tokens, text = self._begins[-1]
        shard = Shard(
            self._name,
            self._split,
            tokens,
            len(self._begins) - 1,
            text,
            self._digest.hexdigest(),
            hashlib.sha256(offsets).hexdigest(),
        )
        self._journal["shards"].append({**asdict(shard), "next_document": self.next_document})
        _write_json(self._out / JOURNAL, self._journal)
        self._count += 1


def _write_json(file: Path, content: dict[str, Any]) -> None:
    with atomic_write(file) as opened:
        opened.write(json.dumps(content, indent=1) + "\n")
