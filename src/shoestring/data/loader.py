"""From token shards to packed batches, with exact resume.

The documents of a split, permuted by (seed, epoch), form one stream: separator, tokens, separator, tokens,
... Cut k of it is its tokens kT .. (k+1)T, of which the last is only a label; the stream ends with one more
separator, the label of its last token. The cuts are permuted as well, because neighbours come from the same
document, and a batch of them is nearly one example: its gradient is so noisy that training barely moves. A
batch takes the next samples of this global order, so nothing but (seed, epoch, next_sample) has to be kept,
and any number of ranks continues where any other number stopped.

A run whose first stages have shorter rows reads the same cuts piece by piece (`PackedLoader.cut`): each row of a step
opens a cut of its own, the next step has the cuts' second pieces, and so on. So a batch still comes from as many places
as it has rows, no token is read twice, and where the length changes, only what is left of the open cuts is passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from shoestring.core.errors import DataError
from shoestring.data.batch import IGNORED, PADDING_SEGMENT, Batch
from shoestring.data.shards import ShardFolder

_CUTS = 2**63  # added to the seed: cuts are not permuted as documents are
_MOST_SAMPLES = 2**31  # that any run takes
# (number of a document in its split, its tokens, start, stop) -> vectors [stop - start, E] of those tokens.
ExternalVectors = Callable[[int, np.ndarray, int, int], np.ndarray]


class PackedLoader:
    """An endless iterator of Batch [microbatch, sequence_length] over a split.

    Row b of rank r is sample `next_sample + b * world + r` of the global order; an epoch's samples end
    where the next epoch's begin, and the few tokens after the last whole sample of an epoch are left out.
    separate_documents: positions and segments restart at each document, otherwise a row is one segment.
    prefetch: batches made ahead by a thread. external: gives Batch.external_BTE. lanes: rows of one optimizer
    step; each then reads its own stretch of the stream from cut to cut, so a document goes on in the same row of
    the next step, and so do its positions. Raises DataError when the split has fewer tokens than one sample (of
    each lane). `cut` gives shorter rows.
    """

    def __init__(
        self,
        shards: ShardFolder,
        split: str,
        sequence_length: int,
        microbatch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        separate_documents: bool = True,
        prefetch: int = 0,
        external: ExternalVectors | None = None,
        lanes: int | None = None,
    ) -> None:
        assert 0 <= rank < world and sequence_length > 0 and microbatch > 0
        self._documents = _Documents(shards, split)
        self._lanes = lanes
        self._external = external
        self._length, self._rows, self._seed = sequence_length, microbatch, seed
        self._rank, self._world, self._separate = rank, world, separate_documents
        self.samples_per_epoch = self._documents.tokens // sequence_length
        self.samples_per_epoch -= self.samples_per_epoch % (lanes or 1)
        if self.samples_per_epoch == 0:
            raise DataError(
                f"{self._documents.tokens:,} tokens in {split}, less than {_rows(lanes)} of {sequence_length:,}",
                str(shards.folder),
                "use more text or a shorter train.sequence_length",
            )
        self._next = 0  # the next sample, counted over all epochs
        self._pieces = self._group = 1  # of a sample that is cut; samples whose pieces are read in turn
        self._taken = 0  # pieces of the open group
        self._epochs: dict[int, tuple[_Stream, np.ndarray]] = {}
        self._prefetch = prefetch
        self._ahead: deque[Future[Batch]] = deque()
        self._thread = ThreadPoolExecutor(1, "loader") if prefetch else None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def cut(self, sequence_length: int, rows: int, microbatch: int) -> None:
        """From the next batch on, give batches [microbatch, sequence_length], a divisor of the whole length.

        rows: of an optimizer step, over all ranks: so many samples are open at a time. Between steps alone; what is
        left of samples that were open is passed over.
        """
        assert self._length % sequence_length == 0 and self._lanes is None
        for future in self._ahead:  # the thread must not see the change halfway
            if not future.cancel():
                future.result()
        self._ahead.clear()
        if self._taken:  # the rest of the open group
            self._next, self._taken = self._next + self._group, 0
        self._rows, self._pieces = microbatch, self._length // sequence_length
        self._group = rows if self._pieces > 1 else 1

    def __next__(self) -> Batch:
        step = self._rows * self._world
        if self._thread is None:
            batch = self._batch(self._next, self._taken)
        else:
            while len(self._ahead) <= self._prefetch:
                taken = self._taken + len(self._ahead) * step
                self._ahead.append(self._thread.submit(self._batch, self._next, taken))
            batch = self._ahead.popleft().result()
        groups, self._taken = divmod(self._taken + step, self._group * self._pieces)
        self._next += groups * self._group
        return batch

    def state(self) -> dict[str, Any]:
        """JSON: where the next batch begins. It depends on batches taken, not on batches made ahead."""
        epoch, sample = divmod(self._next, self.samples_per_epoch)
        pieces = {"pieces": self._pieces, "group": self._group, "taken": self._taken} if self._pieces > 1 else {}
        return {
            "seed": self._seed,
            "epoch": epoch,
            "next_sample": sample,
            "sequence_length": self._length,
            "samples_per_epoch": self.samples_per_epoch,
            "lanes": self._lanes,
            **pieces,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, with any microbatch and number of ranks, and the same `cut`.

        Raises DataError for other data.
        """
        own = self.state()
        for key in ("seed", "sequence_length", "samples_per_epoch", "lanes", "pieces", "group"):
            if state.get(key) != own.get(key):
                raise DataError(
                    f"the stream to resume has {key} {state.get(key)}, this one {own.get(key)}",
                    hint="resume with the data, seed and sequence length of the run",
                )
        self._ahead.clear()
        self._next = resumed_sample(state, self.samples_per_epoch)
        self._taken = _resumed_piece(state, self._pieces * self._group) if self._pieces > 1 else 0

    def close(self) -> None:
        """End the prefetch thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._ahead.clear()

    def _batch(self, first: int, taken: int) -> Batch:
        """first: sample of the open group. taken: pieces of it, and of groups behind it, that were read before."""
        length = self._length // self._pieces
        shape = (self._rows, length + 1)
        tokens, starts = np.empty(shape, np.int64), np.zeros(shape, bool)
        external: list[np.ndarray] = []
        offsets = np.zeros(self._rows, np.int64)
        for row in range(self._rows):
            number = taken + row * self._world + self._rank
            group, within = divmod(number, self._group * self._pieces)
            piece, member = divmod(within, self._group)
            epoch, sample = divmod(first + group * self._group + member, self.samples_per_epoch)
            stream, cuts = self._epoch(epoch)
            position = int(cuts[sample]) * self._length + piece * length
            stream.read(position, tokens[row], starts[row])
            if self._lanes is not None:  # a document cut by the lane's beginning starts at position 0 as well
                offsets[row] = min(stream.offset(position), sample // self._lanes * self._length)
            if self._external is not None:
                external.append(stream.external(position, length, self._external))
        return _to_batch(tokens, starts, self._separate, external=external, offsets=offsets)

    def _epoch(self, epoch: int) -> tuple[_Stream, np.ndarray]:
        """The documents of an epoch in its order, and the order of the cuts."""
        if epoch not in self._epochs:
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            documents = permutation(self._seed, epoch, self._documents.count)
            if self._lanes is None:
                cuts = permutation(self._seed + _CUTS, epoch, self.samples_per_epoch)
            else:
                cuts = np.arange(self.samples_per_epoch).reshape(self._lanes, -1).T.flatten()
            self._epochs[epoch] = _Stream(self._documents, documents), cuts
        return self._epochs[epoch]


class SequentialPass:
    """One pass over a split for measuring: every token is a label exactly once, in the order of the source.

    Iterating gives Batch [<= microbatch, T]; the last row is padded with segment -1 and label -100.
    `tokens` is the number of labels and `bytes` the text they stand for, so that bits per byte = sum of
    losses / ln 2 / bytes. max_tokens: keep whole documents, chosen by hash, until they have that many. Rank
    r takes every world-th row. external: gives Batch.external_BTE.
    """

    def __init__(
        self,
        shards: ShardFolder,
        split: str,
        sequence_length: int,
        microbatch: int,
        separate_documents: bool = True,
        max_tokens: int | None = None,
        rank: int = 0,
        world: int = 1,
        external: ExternalVectors | None = None,
    ) -> None:
        documents = _Documents(shards, split)
        order = np.arange(documents.count)
        if max_tokens is not None and documents.tokens > max_tokens:
            chosen = permutation(0, 0, documents.count)
            enough = int(np.searchsorted(np.cumsum(documents.lengths[chosen]), max_tokens)) + 1
            order = np.sort(chosen[:enough])
        self._stream = _Stream(documents, order)
        self._length, self._rows, self._separate = sequence_length, microbatch, separate_documents
        self._rank, self._world, self._external = rank, world, external
        self.tokens = self._stream.tokens
        self.bytes = int(documents.bytes[order].sum())
        self.documents = len(order)

    def __iter__(self) -> Iterator[Batch]:
        rows = range(self._rank, -(-self.tokens // self._length), self._world)
        for first in range(0, len(rows), self._rows):
            group = rows[first : first + self._rows]
            shape = (len(group), self._length + 1)
            tokens, starts = np.zeros(shape, np.int64), np.zeros(shape, bool)
            used = np.empty(len(group), np.int64)
            for n, row in enumerate(group):
                used[n] = self._stream.read(row * self._length, tokens[n], starts[n]) - 1
            external = []
            if self._external is not None:
                external = [self._stream.external(row * self._length, self._length, self._external) for row in group]
            yield _to_batch(tokens, starts, self._separate, used, external)


class _Documents:
    """Where each document of a split lies. lengths count the separator; all arrays int64 [documents]."""

    def __init__(self, shards: ShardFolder, split: str) -> None:
        parts = shards.of(split)
        offsets = [shards.offsets(part) for part in parts]
        self.data = [shards.tokens(part) for part in parts]
        self.separator_id = shards.separator_id
        self.shard = np.repeat(np.arange(len(parts)), [part.documents for part in parts])
        self.start = _join([o[0, :-1] for o in offsets])
        self.lengths = _join([np.diff(o[0]) for o in offsets])
        self.bytes = _join([np.diff(o[1]) for o in offsets])
        self.count = len(self.start)
        self.tokens = int(self.lengths.sum())


class _Stream:
    """The documents in one order, as if they were one long array."""

    def __init__(self, documents: _Documents, order: np.ndarray) -> None:
        self._documents = documents
        self._order = order
        self._begins = np.concatenate([[0], np.cumsum(documents.lengths[order])])
        self.tokens = int(self._begins[-1])

    def read(self, position: int, tokens: np.ndarray, starts: np.ndarray) -> int:
        """Fill tokens [n] from a position on; mark in starts [n] where documents begin.

        The stream ends with one separator beyond its documents; what lies behind is left as it is. Gives the
        number filled.
        """
        documents, begins = self._documents, self._begins
        end = min(position + len(tokens), self.tokens)
        first = int(np.searchsorted(begins, position, "right")) - 1
        last = int(np.searchsorted(begins, end, "left"))
        for n in range(first, last):
            document, begin = self._order[n], int(begins[n])
            low, high = max(position, begin), min(end, int(begins[n + 1]))
            source = int(documents.start[document]) - begin
            tokens[low - position : high - position] = documents.data[documents.shard[document]][
                source + low : source + high
            ]
            starts[low - position] |= low == begin
        filled = end - position
        if filled < len(tokens):
            tokens[filled] = documents.separator_id
            starts[filled] = True
            filled += 1
        return filled

    def offset(self, position: int) -> int:
        """Tokens of the document at `position` that stand before it."""
        return position - int(self._begins[int(np.searchsorted(self._begins, position, "right")) - 1])

    def external(self, position: int, length: int, of_document: ExternalVectors) -> np.ndarray:
        """float32 [length, E]: the vectors of `read`'s tokens, zeros behind the stream's end."""
        documents, begins = self._documents, self._begins
        end = min(position + length, self.tokens)
        first = int(np.searchsorted(begins, position, "right")) - 1
        last = int(np.searchsorted(begins, end, "left"))
        parts = []
        for n in range(first, last):
            document, begin = int(self._order[n]), int(begins[n])
            low, high = max(position, begin), min(end, int(begins[n + 1]))
            start, size = int(documents.start[document]), int(documents.lengths[document])
            ids = documents.data[documents.shard[document]][start : start + size]
            parts.append(of_document(document, ids, low - begin, high - begin))
        joined = np.concatenate(parts)
        return np.pad(joined, ((0, length - len(joined)), (0, 0)))


def _to_batch(
    tokens: np.ndarray,
    starts: np.ndarray,
    separate: bool,
    used: np.ndarray | None = None,
    external: Sequence[np.ndarray] = (),
    offsets: np.ndarray | None = None,
) -> Batch:
    """tokens, starts [B, T + 1] -> Batch [B, T]. used [B]: labels in each row, the rest is padding.

    external: [T, E] for each row, or nothing. offsets [B]: positions at which the rows begin, 0 by default.
    """
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    labels = tokens[:, 1:]
    positions = np.broadcast_to(np.arange(length), (rows, length))
    segments = np.zeros((rows, length), np.int64)
    if separate:
        starts = starts[:, :length].copy()
        starts[:, 0] = True  # a document cut by the row's beginning starts at position 0 as well
        segments = np.cumsum(starts, axis=1) - 1
        positions = positions - np.maximum.accumulate(np.where(starts, positions, 0), axis=1)
        if offsets is not None:
            positions = positions + np.where(segments == 0, offsets[:, None], 0)
    inputs, labels, positions = tokens[:, :length].copy(), labels.copy(), positions.copy()
    if used is not None:
        padding = np.arange(length) >= used[:, None]
        inputs[padding], labels[padding], positions[padding] = 0, IGNORED, 0
        segments[padding] = PADDING_SEGMENT
    vectors = torch.from_numpy(np.stack(external)) if len(external) else None
    tokens_BT, labels_BT, positions_BT, segments_BT = map(torch.from_numpy, (inputs, labels, positions, segments))
    return Batch(tokens_BT, labels_BT, positions_BT, segments_BT, vectors)


def _rows(lanes: int | None) -> str:
    return "a sequence" if lanes is None else f"{lanes} sequences"


def resumed_sample(state: dict[str, Any], samples_per_epoch: int) -> int:
    """The next sample of all epochs, by the state of a stream. Raises DataError where there is none."""
    numbers = [state.get("epoch"), state.get("next_sample")]
    epoch, sample = (n if type(n) is int and 0 <= n < _MOST_SAMPLES else -1 for n in numbers)
    if epoch < 0 or not 0 <= sample < samples_per_epoch:
        raise DataError("the stream to resume says no place in its data", hint="remove this checkpoint folder")
    return epoch * samples_per_epoch + sample


def _resumed_piece(state: dict[str, Any], pieces: int) -> int:
    taken = state.get("taken")
    if type(taken) is not int or not 0 <= taken < pieces:
        raise DataError("the stream to resume says no place in its samples", hint="remove this checkpoint folder")
    return taken


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` things in an epoch: sorted by a hash (splitmix64) of (seed, epoch, thing).

    Not numpy's generators: their streams may change between versions, and a resumed run must not.
    """
    keys = _splitmix(_splitmix(np.full(1, seed % 2**64, np.uint64)) + np.uint64(epoch))
    return np.argsort(_splitmix(_splitmix(np.arange(count, dtype=np.uint64)) ^ keys), kind="stable")


def _splitmix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *arrays])
