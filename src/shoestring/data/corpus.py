"""What a run trains on and is measured with, whatever it is read from: shards, several of them in shares, or text
itself."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from shoestring.core.errors import DataError
from shoestring.data.held_out import Listed, Passes, SequentialPass, TextPass
from shoestring.data.loader import ExternalVectors
from shoestring.data.rows.best_fit import BestFit
from shoestring.data.rows.concatenated import Concatenated
from shoestring.data.rows.mixture import Mixture
from shoestring.data.rows.on_the_fly import OnTheFly
from shoestring.data.rows.row import Rows
from shoestring.data.shards import ShardDocument, ShardFolder
from shoestring.data.sources import Skipped, Source
from shoestring.data.stored import StoredDocuments
from shoestring.data.tokenizer import Tokenizer

Packing = Literal["concatenate", "best_fit"]
HELD_OUT_TOKENS = 2**18  # of text that is tokenized on the fly, where nothing else is said
_AT_ONCE = 64  # documents tokenized together


class HeldOutPass(Protocol):
    """As `train.evaluation` measures it."""

    tokens: int
    bytes: int
    documents: int

    def __iter__(self): ...


class Corpus(Protocol):
    """tokenizer: that made its ids. digest: by which a run that goes on knows its text again."""

    digest: str

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def vocabulary_size(self) -> int: ...

    def token_count(self, split: str) -> int | None:
        """Tokens of a split, separators counted; None where nobody has counted them."""
        ...

    def rows(self, length: int, seed: int, lanes: int | None = None) -> Rows: ...

    def held_out(
        self, length: int, microbatch: int, separate: bool, tokens: int | None, rank: int, world: int,
        external: ExternalVectors | None = None,
    ) -> HeldOutPass: ...  # fmt: skip

    def held_out_documents(self) -> Iterator[ShardDocument]: ...


class Prepared:
    """Folders of shards, made with one tokenizer, and the share of each."""

    def __init__(self, folders: Sequence[ShardFolder], weights: Sequence[float], packing: Packing) -> None:
        self.folders, self._weights, self._packing = list(folders), list(weights), packing
        digests = [folder.index["sha256"] for folder in folders]
        key = json.dumps([digests, self._weights])
        self.digest = digests[0] if len(digests) == 1 else hashlib.sha256(key.encode()).hexdigest()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.folders[0].tokenizer

    @property
    def vocabulary_size(self) -> int:
        return self.folders[0].vocabulary_size

    def token_count(self, split: str) -> int | None:
        return sum(folder.token_count(split) for folder in self.folders)

    def document_count(self, split: str) -> int:
        return sum(folder.document_count(split) for folder in self.folders)

    def rows(self, length: int, seed: int, lanes: int | None = None) -> Rows:
        parts: list[Rows] = []
        for folder in self.folders:
            stored = StoredDocuments(folder, "train")
            if self._packing == "best_fit":
                parts.append(BestFit(stored, length, seed))
            else:
                parts.append(Concatenated(stored, length, seed, lanes))
        return parts[0] if len(parts) == 1 else Mixture(parts, self._weights)

    def held_out(
        self, length: int, microbatch: int, separate: bool, tokens: int | None, rank: int, world: int,
        external: ExternalVectors | None = None,
    ) -> HeldOutPass:  # fmt: skip
        """tokens: of all folders together, in their shares."""
        passes, total = [], sum(self._weights)
        for folder, weight in zip(self.folders, self._weights, strict=True):
            most = None if tokens is None else max(round(tokens * weight / total), 1)
            passes.append(
                SequentialPass(folder, "validation", length, microbatch, separate, most, rank, world, external)
            )
        return passes[0] if len(passes) == 1 else Passes(passes)

    def held_out_documents(self) -> Iterator[ShardDocument]:
        return itertools.chain.from_iterable(folder.documents_of("validation") for folder in self.folders)


class Untouched:
    """Sources whose text is tokenized as it is read, and the share of each. Held out is what is found first of it."""

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], tokenizer: Tokenizer, packing: Packing
    ) -> None:
        self._sources, self._weights, self._packing = list(sources), list(weights), packing
        self.tokenizer = tokenizer
        key = json.dumps([[source.fingerprint() for source in sources], self._weights, tokenizer.fingerprint()])
        self.digest = hashlib.sha256(key.encode()).hexdigest()

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.vocabulary_size

    def token_count(self, split: str) -> int | None:
        return None

    def rows(self, length: int, seed: int, lanes: int | None = None) -> Rows:
        assert lanes is None
        encode = self.tokenizer.encoder()

        def ids(texts: Sequence[str]) -> list[np.ndarray]:
            return [np.array(found, np.int64) for found in encode(texts)]

        parts: list[Rows] = [
            OnTheFly(_TrainingText(source), ids, self.tokenizer.separator_id, length, seed, self._packing)
            for source in self._sources
        ]
        return parts[0] if len(parts) == 1 else Mixture(parts, self._weights)

    def held_out(
        self, length: int, microbatch: int, separate: bool, tokens: int | None, rank: int, world: int,
        external: ExternalVectors | None = None,
    ) -> HeldOutPass:  # fmt: skip
        assert external is None
        documents = self._first_held_out(tokens or HELD_OUT_TOKENS)
        separator = self.tokenizer.separator_id
        ids = [np.concatenate([[separator], document.tokens]) for document in documents]
        text = Listed(ids, sum(document.bytes for document in documents))
        return TextPass(text, separator, length, microbatch, separate, rank, world)

    def held_out_documents(self) -> Iterator[ShardDocument]:
        return iter(self._first_held_out(HELD_OUT_TOKENS))

    def _first_held_out(self, most: int) -> list[ShardDocument]:
        """Whole documents, until they have that many tokens."""
        found: list[ShardDocument] = []
        total = sum(self._weights)
        for source, weight in zip(self._sources, self._weights, strict=True):
            wanted, tokens = most * weight / total, 0
            texts = (d.text for d in source.documents() if d.split == "validation")
            while tokens < wanted and (some := list(itertools.islice(texts, _AT_ONCE))):
                for text, ids in zip(some, self.tokenizer.encode_batch(some), strict=True):
                    if tokens < wanted:
                        found.append(ShardDocument(np.array(ids, np.int64), len(text.encode())))
                        tokens += 1 + len(ids)
        if not found:
            raise DataError("no text is held out", self._sources[0].source, "use more text, or another data.validation")
        return found


class _TrainingText:
    """The files of a source as `OnTheFly` reads them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count, self.fingerprint = len(source.files), source.fingerprint()

    def texts(self, number: int) -> Iterator[str]:
        for _, documents in self._source.by_file(Skipped(), number):
            return (document.text for document in documents if document.split == "train")
        return iter(())
