"""From rows to batches, with exact resume: any number of ranks continues where any other number stopped.

`data.rows` say which rows there are and in which order; a batch takes the next ones. Nothing but a place in that order
has to be kept, and it is that of batches taken, not of batches made ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch

from shoestring.core.errors import DataError
from shoestring.data.batch import IGNORED, PADDING_SEGMENT, Batch
from shoestring.data.rows.concatenated import Concatenated
from shoestring.data.rows.row import DocumentRows, Place, Rows
from shoestring.data.shards import ShardFolder
from shoestring.data.stored import StoredDocuments

# (number of a document in its split, its tokens, start, stop) -> vectors [stop - start, E] of those tokens.
ExternalVectors = Callable[[int, np.ndarray, int, int], np.ndarray]


class RowLoader:
    """An endless iterator of Batch [microbatch, rows.length]: row b of rank r is the (b · world + r)-th one from here.

    separate_documents: positions and segments restart at each document, otherwise a row is one segment.
    prefetch: batches made ahead by a thread. external: gives Batch.external_BTE, of `DocumentRows`.
    """

    def __init__(
        self,
        rows: Rows,
        microbatch: int,
        rank: int = 0,
        world: int = 1,
        separate_documents: bool = True,
        prefetch: int = 0,
        external: ExternalVectors | None = None,
    ) -> None:
        assert 0 <= rank < world and microbatch > 0
        self.rows = rows
        self._microbatch, self._rank, self._world = microbatch, rank, world
        self._separate, self._external = separate_documents, external
        self._place: Place = rows.first()
        self._prefetch = prefetch
        self._ahead: deque[Future[tuple[Batch, Place]]] = deque()
        self._thread = ThreadPoolExecutor(1, "loader") if prefetch else None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            batch, self._place = self._batch(self._place)
            return batch
        while len(self._ahead) <= self._prefetch:
            if self._ahead:  # the thread makes one after another: this one is done when its follower is begun
                self._ahead.append(self._thread.submit(self._following, self._ahead[-1]))
            else:
                self._ahead.append(self._thread.submit(self._batch, self._place))
        batch, self._place = self._ahead.popleft().result()
        return batch

    def cut(self, sequence_length: int, rows: int, microbatch: int) -> None:
        """From the next batch on, give batches [microbatch, sequence_length], a divisor of the whole length.

        rows: of an optimizer step, over all ranks. Between steps alone.
        """
        self._forget()  # the thread must not see the change halfway
        self._microbatch = microbatch
        if isinstance(self.rows, Concatenated):
            self._place = self.rows.cut(self._place, sequence_length, rows)
        else:
            assert sequence_length == self.rows.length

    def state(self) -> dict[str, Any]:
        """JSON: where the next batch begins. It depends on batches taken, not on batches made ahead."""
        return {**self.rows.identity(), "place": self._place}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, with any microbatch and number of ranks, and the same `cut`.

        Raises DataError for other data.
        """
        own = self.rows.identity()
        for key in (*own, *(key for key in state if key not in own and key not in ("place", "shards"))):
            if state.get(key) != own.get(key):
                raise DataError(
                    f"the stream to resume has {key} {state.get(key)}, this one {own.get(key)}",
                    hint="resume with the data, seed and sequence length of the run",
                )
        self._forget()
        self._place = self.rows.checked(state.get("place"))

    def close(self) -> None:
        """End the prefetch thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._ahead.clear()

    def _forget(self) -> None:
        """What was made ahead."""
        ahead, self._ahead = self._ahead, deque()
        for future in reversed(ahead):  # the last first, or the thread would go on with it
            future.cancel()
        for future in ahead:
            if not future.cancelled():
                future.result()

    def _following(self, before: Future[tuple[Batch, Place]]) -> tuple[Batch, Place]:
        return self._batch(before.result()[1])

    def _batch(self, place: Place) -> tuple[Batch, Place]:
        """The batch at a place, and the place that comes after all ranks' ones."""
        shape = (self._microbatch, self.rows.length)
        tokens, labels, starts = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
        used, offsets = np.empty(self._microbatch, np.int64), np.empty(self._microbatch, np.int64)
        external: list[np.ndarray] = []
        for number in range(self._microbatch * self._world):
            row, rank = divmod(number, self._world)
            if rank == self._rank:
                used[row], offsets[row] = self.rows.read(place, tokens[row], labels[row], starts[row])
                if self._external is not None:
                    external.append(external_of(cast(DocumentRows, self.rows), place, self._external))
            place = self.rows.after(place)
        return to_batch(tokens, labels, starts, self._separate, used, external, offsets), place


class PackedLoader(RowLoader):
    """Rows cut from the stream of a split's documents. lanes: as `Concatenated` has them."""

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
        rows = Concatenated(StoredDocuments(shards, split), sequence_length, seed, lanes)
        super().__init__(rows, microbatch, rank, world, separate_documents, prefetch, external)
        self.samples_per_epoch = rows.samples_per_epoch


def external_of(rows: DocumentRows, place: Place, of_document: ExternalVectors) -> np.ndarray:
    """float32 [length, E]: the vectors of a row's inputs, zeros where it is padding."""
    parts = [of_document(n, rows.ids(n), low, high) for n, low, high in rows.spans(place)]
    joined = np.concatenate(parts)
    return np.pad(joined, ((0, rows.length - len(joined)), (0, 0)))


def to_batch(
    tokens: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
    separate: bool,
    used: np.ndarray,
    external: Sequence[np.ndarray] = (),
    offsets: np.ndarray | None = None,
) -> Batch:
    """tokens, labels, starts [B, T], which it changes, -> Batch [B, T]. used [B]: labels of each row, the rest is
    padding.

    external: [T, E] for each row, or nothing. offsets [B]: positions at which the rows begin, 0 by default.
    """
    rows, length = tokens.shape
    positions = np.broadcast_to(np.arange(length), (rows, length)).copy()
    segments = np.zeros((rows, length), np.int64)
    if separate:
        starts[:, 0] = True  # a document cut by the row's beginning starts at position 0 as well
        segments = np.cumsum(starts, axis=1) - 1
        positions = positions - np.maximum.accumulate(np.where(starts, positions, 0), axis=1)
        if offsets is not None:
            positions = positions + np.where(segments == 0, offsets[:, None], 0)
    padding = np.arange(length) >= used[:, None]
    if padding.any():
        tokens[padding], labels[padding], positions[padding] = 0, IGNORED, 0
        segments[padding] = PADDING_SEGMENT
    vectors = torch.from_numpy(np.stack(external)) if len(external) else None
    tokens_BT, labels_BT, positions_BT, segments_BT = map(torch.from_numpy, (tokens, labels, positions, segments))
    return Batch(tokens_BT, labels_BT, positions_BT, segments_BT, vectors)
