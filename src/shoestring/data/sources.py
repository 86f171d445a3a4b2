"""Where text comes from: the standard library, text files, folders, rows of files, the hub; one document at a time.

A source is opened once: its files are listed and sorted, so that order, names and the split into train and
validation depend on the content alone. Each kind of file is streamed by its reader in `data.reading`, in constant
memory; a text file above a few megabytes becomes several documents, cut at line ends.
"""

from __future__ import annotations

import hashlib
import json
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.errors import DataError
from shoestring.data.built_in import find
from shoestring.data.hub import HubFile
from shoestring.data.reading import kinds, text
from shoestring.data.reading.digests import digests
from shoestring.data.reading.json_list import begins_as_list_of_objects, list_rows
from shoestring.data.reading.listing import Listed, listed
from shoestring.data.reading.row import SKIP_HINT, Row, good
from shoestring.data.reading.streams import is_binary
from shoestring.data.reading.tables import table_names
from shoestring.data.standard_library import MOST_NUMBERS, MOST_REPEATED, is_generated, standard_library

_SOURCES = (
    "data.source is stdlib, a text file, a file of rows (.jsonl, .json, .csv, .parquet), a folder or a glob of these,"
    " fineweb-edu, falcon-refinedweb, or hf:OWNER/NAME"
)
_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list",
          dict: "an object", bytes: "bytes"}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """name: unique and stable within its source. split: "train" or "validation"."""

    name: str
    text: str
    split: str


@dataclass
class Skipped:
    """What was left out while reading, by reason, with the first place of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def __str__(self) -> str:
        return "; ".join(self.sentences())

    def sentences(self) -> list[str]:
        """One for each reason."""
        return [f"{n:,} {reason} (first: {self.first[reason]})" for reason, n in self.counts.items()]


def split(name: str, validation: float) -> str:
    """Which split a document belongs to, by a hash of its name: the same on every machine."""
    return "validation" if _hash(name) < validation else "train"


def documents(
    source: str | Path,
    text_field: str | None = None,
    validation: float = 0.05,
    on_bad_line: str = "stop",
    skipped: Skipped | None = None,
) -> Iterator[Document]:
    """All documents of a source. See Source."""
    return Source(source, text_field, validation, on_bad_line).documents(skipped)


class Source:
    """A listed source: "stdlib", a name of `data.built_in`, hf:OWNER/NAME, or the path or glob of files and folders.

    Files are text or rows, each also with .gz or .zst behind its name. Rows are the lines of JSONL, the rows of
    Parquet, the entries of a .json file that is a list of objects, and the lines of a table (.csv, .tsv); in a folder,
    lists and tables count as rows if they (their first entry) have the field `text_field`, else as text.
    text_field: None for the column that a built-in name has, else "text".

    Raises DataError when there is nothing to read, and while reading for text that cannot be read, unless on_bad_line
    is "skip"; NetworkError for the hub, whose files are fetched when they are reached. In folders, hidden files are
    left out, and binary files are left out and counted.
    """

    def __init__(
        self,
        source: str | Path,
        text_field: str | None = None,
        validation: float = 0.05,
        on_bad_line: str = "stop",
    ) -> None:
        assert on_bad_line in ("stop", "skip")
        self.source = str(source)
        known = find(self.source)[1]
        self.text_field = text_field or (known.column if known else "text")
        self.validation = validation
        self.on_bad_line = on_bad_line
        if self.source == "stdlib":
            self.files = [Listed(name, file) for name, file in standard_library()]
        else:
            self.files = listed(self.source, console.say, _SOURCES)
        self._forced = self._validation_file()
        self._fingerprint: str | None = None

    def documents(self, skipped: Skipped | None = None) -> Iterator[Document]:
        """Each document in a fixed order. Raises DataError if there is none."""
        skipped = Skipped() if skipped is None else skipped
        found = False
        for _, inside in self.by_file(skipped):
            for document in inside:
                found = True
                yield document
        if not found:
            left_out = f"; left out: {skipped}" if skipped.counts else ""
            raise DataError(f"no text in this source{left_out}", self.source, "give files that hold text")

    def by_file(self, skipped: Skipped, first: int = 0) -> Iterator[tuple[int, Iterator[Document]]]:
        """(number of a file, its documents) for each file from number `first` on, in the order of `documents`.

        The documents of a file and their names are the same wherever reading begins. A file is opened, or fetched from
        the hub, when its first document is asked for.
        """
        for number in range(first, len(self.files)):
            yield number, self._file(self.files[number], skipped)

    def size(self) -> int:
        """Bytes of all files as they lie on the disk, or on the hub."""
        try:
            return sum(file.size() for file in self.files)
        except OSError as error:
            raise _unreadable(error, str(error.filename or self.source)) from error

    def fingerprint(self) -> str:
        """SHA-256 over names and contents of all files, and the settings that decide what is read.

        Of files on the hub the hashes that it gives stand for their contents. Those of a large corpus are remembered
        (`reading.digests`), so that a second start reads none of it.
        """
        if self._fingerprint is None:
            self._fingerprint = self._hash_everything()
        return self._fingerprint

    def _hash_everything(self) -> str:
        settings: list[Any] = [self.text_field, self.validation, self.on_bad_line]
        if self.source == "stdlib":
            settings += [MOST_NUMBERS, MOST_REPEATED]
        digest = hashlib.sha256(json.dumps(settings).encode())
        try:
            known = digests(file.at for file in self.files if isinstance(file.at, Path))
            for name, at in self.files:
                content = at.content if isinstance(at, HubFile) else known[at]
                digest.update(f"\0{name}\0{content}".encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise _unreadable(error, str(error.filename or self.source)) from error
        return digest.hexdigest()

    def _validation_file(self) -> str | None:
        """Few text files can miss validation by chance: then the one with the lowest hash goes there."""
        names = [name for name, _ in self.files if kinds.kind_of(Path(name)) not in ("jsonl", "parquet")]
        if self.validation == 0 or len(names) != len(self.files) or len(names) < 2:
            return None
        if any(split(name, self.validation) == "validation" for name in names):
            return None
        return min(names, key=_hash)

    def _split(self, name: str) -> str:
        return "validation" if name == self._forced else split(name, self.validation)

    def _file(self, listed: Listed, skipped: Skipped) -> Iterator[Document]:
        name, file = listed.name, listed.path()
        try:
            if self._has_rows(file):
                yield from self._from_rows(name, file, skipped)
            elif self.source == "stdlib":
                yield from self._python(name, file, skipped)
            elif len(self.files) == 1:
                yield from self._one_file(name, file, skipped)
            elif is_binary(file):
                skipped.add("binary files", str(file))
            else:
                where = self._split(name)
                for n, (_, piece) in enumerate(self._pieces(file, skipped)):
                    yield Document(f"{name}#{n}" if n else name, piece, where)
        except OSError as error:
            raise _unreadable(error, str(file)) from error

    def _python(self, name: str, file: Path, skipped: Skipped) -> Iterator[Document]:
        try:
            with tokenize.open(file) as content:  # obeys the encoding that the file declares
                whole = content.read()
        except (SyntaxError, UnicodeDecodeError):
            skipped.add("files of unknown encoding", str(file))
            return
        if is_generated(whole):
            skipped.add("generated files", str(file))
        elif whole.strip():
            yield Document(name, whole, self._split(name))

    def _one_file(self, name: str, file: Path, skipped: Skipped) -> Iterator[Document]:
        """A single text file is split by position: its last part is held out."""
        if is_binary(file):
            raise DataError(
                "a binary file, not text", str(file), "give a text file, a .jsonl file or a folder"
            )
        border: int | None = None
        if self.validation:
            size = text.text_size(file)
            border = size - round(size * self.validation)
        for n, (offset, piece) in enumerate(self._pieces(file, skipped, border)):
            held_out = border is not None and offset >= border
            yield Document(f"{name}#{n}" if n else name, piece, "validation" if held_out else "train")

    def _pieces(self, file: Path, skipped: Skipped, border: int | None = None) -> Iterator[tuple[int, str]]:
        try:
            yield from text.pieces(file, border)
        except text.NotUtf8 as error:
            if self.on_bad_line == "stop":
                raise
            skipped.add("files that are not UTF-8", error.where or str(file))

    def _has_rows(self, file: Path) -> bool:
        """Whether a file is read as rows: by its name, and lists and tables in a folder by what their first row has."""
        kind, alone = kinds.kind_of(file), len(self.files) == 1
        if kind == "table":
            return alone or self.text_field in _names(file)
        if kind == "json":
            return begins_as_list_of_objects(file) and (alone or self._begins_with_text(file))
        return kind != "text"

    def _begins_with_text(self, file: Path) -> bool:
        try:
            first = next(list_rows(file)).content
        except (DataError, StopIteration):
            return False
        return isinstance(first, dict) and isinstance(first.get(self.text_field), str)

    def _from_rows(self, name: str, file: Path, skipped: Skipped) -> Iterator[Document]:
        for row in kinds.rows(file, (self.text_field, "id")):
            try:
                found, identity = _text_of(row, self.text_field)
            except DataError:
                if self.on_bad_line == "stop":
                    raise
                skipped.add("bad lines", row.where)
                continue
            if found:
                document = f"{name}:{row.number}"
                yield Document(document, found, split(document if identity is None else identity, self.validation))


def _unreadable(error: OSError, where: str) -> DataError:
    return DataError(f"cannot be read: {error.strerror or error}", where)


def _names(file: Path) -> list[str]:
    """Of a table's columns; none where it cannot be read as one, and is text."""
    try:
        return table_names(file)
    except DataError:
        return []


def _text_of(row: Row, text_field: str) -> tuple[str, str | None]:
    """The text of a row, and its `id` when it has one. Raises DataError."""
    entry = row.content
    found = entry.get(text_field) if isinstance(entry, dict) else None
    if not isinstance(found, str):
        raise _no_text(row, text_field)
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise DataError("the text holds half of a surrogate pair", row.where, SKIP_HINT) from error
    identity = entry.get("id")
    return found, str(identity) if isinstance(identity, (str, int)) else None


def _no_text(row: Row, text_field: str) -> DataError:
    """Why there is none. Raises the error that the row is."""
    expected = f'expected {{"{text_field}": "..."}}; --text-field (data.text_field) names another field'
    entry, hint = good(row, expected), f"{expected}\n{SKIP_HINT}"
    if not isinstance(entry, dict):
        is_list = "\na list of all rows goes into a .json file" if isinstance(entry, list) else ""
        return DataError("not a JSON object", row.where, hint + is_list)
    there = ", ".join(map(repr, row.names or entry)) or "none"
    if text_field not in entry:
        return DataError(f"no field {text_field!r}; it has {there}", row.where, hint)
    kind = _KINDS.get(type(entry[text_field]), f"a {type(entry[text_field]).__name__}")
    return DataError(f"the field {text_field!r} is {kind}, not a string; there are {there}", row.where, hint)


def _hash(name: str) -> float:
    """In [0, 1)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
