"""The statistics of a corpus, from text or from shards, in one pass and bounded memory: 11 to 21 bytes a document.

Text is what `prepare` would read: tokens with a tokenizer, else bytes. Shards are not decoded unless filters ask for
text: documents are equal where their tokens are, and near-empty where their tokens hold too few visible characters.
There a character that several tokens share counts in each, so that a near-empty document may be missed; none is named
that is not one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoestring.core import console
from shoestring.core.waiting import Waiting, waiting
from shoestring.data.quality.config import QualityConfig
from shoestring.data.quality.duplicates import bytes_hash
from shoestring.data.quality.review import EXACT, SHORT, Findings, Reviewer
from shoestring.data.shards import SPLITS, Shard, ShardFolder
from shoestring.data.sources import Skipped, Source
from shoestring.data.stats.lengths import Lengths
from shoestring.data.stats.rows import RowCounts
from shoestring.data.tokenizer import Tokenizer

_BATCH_BYTES, _BATCH_DOCUMENTS = 2_000_000, 1024
_AT_ONCE = 2**20  # tokens of shards in memory


@dataclass
class Part:
    """tokens count the separators; None where no tokenizer was given. bytes are of text."""

    documents: int = 0
    tokens: int | None = None
    bytes: int = 0


@dataclass
class Statistics:
    """parts: by source, or by split of a folder of shards. lengths: in tokens without the separator, else in bytes.

    rows: None where there are no tokens. left_out: what `prepare` would leave out; unread: what could not be read.
    """

    unit: str
    rows: RowCounts | None
    lengths: Lengths = field(default_factory=Lengths)
    parts: dict[str, Part] = field(default_factory=dict)
    left_out: Skipped = field(default_factory=Skipped)
    unread: Skipped = field(default_factory=Skipped)

    @property
    def total(self) -> Part:
        parts = self.parts.values()
        tokens = sum(part.tokens or 0 for part in parts) if self.unit == "tokens" else None
        return Part(sum(part.documents for part in parts), tokens, sum(part.bytes for part in parts))

    def add(self, part: str, sizes: np.ndarray, tokens: np.ndarray | None) -> None:
        """Documents of a part, int64 [n]: bytes of text, and tokens with the separator."""
        own = self.parts.setdefault(part, Part())
        own.documents += len(sizes)
        own.bytes += int(sizes.sum())
        if tokens is None:
            self.lengths.add(sizes)
            return
        own.tokens = (own.tokens or 0) + int(tokens.sum())
        self.lengths.add(tokens - 1)
        if self.rows is not None:
            self.rows.add(tokens)

    def figures(self) -> dict[str, Any]:
        """JSON."""
        lengths, rows, left_out = self.lengths, self.rows, self.left_out
        return {
            **_figures(self.total),
            "parts": {name: _figures(part) for name, part in self.parts.items()},
            "lengths": {
                "unit": self.unit,
                "shortest": lengths.shortest,
                "median": lengths.quantile(0.5),
                "mean": round(lengths.mean, 1),
                "p95": lengths.quantile(0.95),
                "longest": lengths.longest,
                "bins": [list(bin) for bin in lengths.bins()],
            },
            "left_out": {
                name: {"documents": left_out.counts.get(name, 0), "first": left_out.first.get(name)}
                for name in dict.fromkeys((EXACT, SHORT, *left_out.counts))
            },
            "unread": {**self.unread.counts},
            "rows": None if rows is None else {
                "length": rows.length,
                "best_fit_padding": round(rows.padding, 6),
                "cut_by_concatenation": share(rows.cut, rows.documents),
                "longer_than_a_row": share(rows.longer, rows.documents),
            },
        }  # fmt: skip


def share(count: int, of: int) -> float:
    return round(count / of, 6) if of else 0.0


def bytes_per_token(part: Part) -> float | None:
    """Separators not counted among the tokens."""
    tokens = 0 if part.tokens is None else part.tokens - part.documents
    return part.bytes / tokens if tokens else None


def _figures(part: Part) -> dict[str, Any]:
    ratio = bytes_per_token(part)
    return {
        "documents": part.documents,
        "tokens": part.tokens,
        "bytes": part.bytes,
        "bytes_per_token": None if ratio is None else round(ratio, 4),
    }


def text_statistics(
    sources: dict[str, Source], tokenizer: Tokenizer | None, sequence_length: int, quality: QualityConfig
) -> Statistics:
    """Of what a source holds, or several, by their names. Raises DataError as they do, ConfigError as Reviewer does."""
    rows = None if tokenizer is None else RowCounts(sequence_length)
    found = Statistics("bytes" if rows is None else "tokens", rows)
    reviewer = Reviewer(quality)
    found.left_out = reviewer.left_out
    with _told("reading (MB)", sum(source.size() for source in sources.values()) / 1e6) as advance:
        for part, source in sources.items():
            for batch in _batches((d.name, d.text) for d in source.documents(found.unread)):
                sizes = np.array([len(text.encode()) for _, text in batch], np.int64)
                tokens = None
                if tokenizer is not None:
                    ids = tokenizer.encode_batch([text for _, text in batch])
                    tokens = np.array([1 + len(each) for each in ids], np.int64)
                found.add(part, sizes, tokens)
                for name, text in batch:
                    reviewer.verdict(text, name if len(sources) == 1 else f"{part}: {name}")
                advance(float(sizes.sum()) / 1e6)
    return found


def shard_statistics(folders: dict[str, ShardFolder], sequence_length: int, quality: QualityConfig) -> Statistics:
    """Of folders of prepared shards, by their names. Raises DataError for damage, ConfigError as Reviewer does."""
    found = Statistics("tokens", RowCounts(sequence_length))
    reviewer = Reviewer(quality)
    found.left_out = reviewer.left_out
    shards = [
        (name if len(folders) == 1 else f"{folder}: {name}", opened, shard)
        for folder, opened in folders.items() for name in SPLITS for shard in opened.of(name)
    ]  # fmt: skip
    decode = quality.filters or quality.minhash is not None
    visible = {opened: _visible(opened.tokenizer) for opened in folders.values() if not decode}
    with _told("reading (million tokens)", sum(shard.tokens for _, _, shard in shards) / 1e6) as advance:
        for part, opened, shard in shards:
            number = 0
            for sizes, lengths, ids in _blocks(opened, shard):
                found.add(part, sizes, lengths)
                begins = np.cumsum(lengths) - lengths
                places = (f"{shard.name}: document {number + n + 1:,}" for n in range(len(lengths)))
                if decode:
                    ends = begins + lengths
                    for place, begin, end in zip(places, begins.tolist(), ends.tolist(), strict=False):
                        text = opened.tokenizer.decode(ids[begin + 1 : end].tolist(), skip_specials=False)
                        reviewer.verdict(text, place)
                else:
                    for place, findings in zip(places, _by_tokens(ids, begins, visible[opened], quality), strict=False):
                        reviewer.decide(findings, place)
                number += len(lengths)
                advance(len(ids) / 1e6)
    return found


def _blocks(opened: ShardFolder, shard: Shard) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Some documents at a time: bytes of text and tokens of each, int64 [n], and all their tokens, separators first."""
    begins, texts = opened.offsets(shard)
    tokens = opened.tokens(shard)
    first = 0
    while first < shard.documents:
        last = int(np.searchsorted(begins, begins[first] + _AT_ONCE, "right")) - 1
        last = min(max(last, first + 1), shard.documents)
        ids = np.asarray(tokens[int(begins[first]) : int(begins[last])])
        yield np.diff(texts[first : last + 1]), np.diff(begins[first : last + 1]), ids
        first = last


def _by_tokens(ids: np.ndarray, begins: np.ndarray, visible: np.ndarray, quality: QualityConfig) -> Iterator[Findings]:
    """What `examine` would find in the text of each document, as near as tokens tell."""
    characters = np.add.reduceat(visible[ids], begins)
    content, size = np.ascontiguousarray(ids).data.cast("B"), ids.itemsize
    bounds = [*(begins * size).tolist(), len(content)]
    for n, seen in enumerate(characters.tolist()):
        fault = SHORT if seen < quality.shortest else None
        mark = bytes_hash(content[bounds[n] : bounds[n + 1]]) if fault is None else 0
        yield Findings(fault, np.array([mark], np.uint64))


def _visible(tokenizer: Tokenizer) -> np.ndarray:
    """int64 [V]: characters of each token that are not white space, none of special ones."""
    if tokenizer.is_byte_level:
        texts: Iterable[str] = (piece.decode("utf-8", "replace") for piece in tokenizer.token_bytes())
    else:
        texts = (tokenizer.decode([i]) for i in range(tokenizer.vocabulary_size))
    return np.array([len("".join(text.split())) for text in texts], np.int64)


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """(name, text) in groups worth encoding at once."""
    batch: list[tuple[str, str]] = []
    size = 0
    for name, text in documents:
        batch.append((name, text))
        size += len(text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _told(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Progress with the time left; where there is no terminal, a line now and then."""
    plain: AbstractContextManager[Waiting | None] = nullcontext()
    if not console.err.is_terminal:
        plain = waiting(what, round(total))
    done = 0.0
    with console.progress() as progress, plain as told:
        bar = progress.add_task(what, total=total)

        def advance(count: float) -> None:
            nonlocal done
            done += count
            progress.update(bar, completed=min(done, total))
            if told is not None:
                told.done = int(done)

        yield advance
