"""Batches of supervised examples, as an endless stream with exact resume, and as one pass for measuring.

An epoch's samples stand in an order that (seed, epoch) decide. A sample is one row: several examples (packed) or
one (padded, flat); grouped, a sample is a whole batch. A batch takes the next samples of that order, so that (seed,
epoch, next_sample) is all the state there is, and any number of ranks and any microbatch goes on where others stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from shoestring.core.errors import DataError
from shoestring.data.batch import IGNORED, PADDING_SEGMENT, Batch
from shoestring.data.external import External
from shoestring.data.order import permutation
from shoestring.data.supervised.config import Layout
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.packing import best_fit_decreasing

_MOST = 2**31  # epochs, and samples of one
_GROUP = 16  # samples of an optimizer step when none is given
_WINDOW = 32  # groups among which examples of like length are brought together
_OTHER_SHUFFLE = 2**32  # added to the epoch, so that rows are not shuffled as their examples were
_MULTIPLES = (16, 32)  # of rows up to 128 tokens and of longer ones: oneDNN keeps 13 MB for each length that it meets


class SupervisedStream:
    """An endless iterator of Batch over a split. rows: samples in a batch (the microbatch).

    group: samples of one optimizer step over all ranks. layout "packed": examples share rows of
    sequence_length; "padded": one in a row, groups made of like lengths, rows padded to the longest of the batch;
    "flat": like padded, but a batch's examples stand end to end in one row [1, T]; "grouped": like padded, but a batch
    has as many rows as fit into rows · sequence_length tokens. longest_first: the first group is the one that needs
    most memory. Row b of rank r is sample `next_sample + b * world + r`. Raises DataError when the split is empty.
    """

    def __init__(
        self,
        dataset: SupervisedDataset,
        sequence_length: int | None = None,
        rows: int = 1,
        group: int | None = None,
        layout: Layout = "packed",
        seed: int = 1,
        split: str = "train",
        rank: int = 0,
        world: int = 1,
        longest_first: bool = True,
    ) -> None:
        assert rows > 0 and 0 <= rank < world
        self._dataset, self._rows, self._seed, self._layout = dataset, rows, seed, layout
        self._rank, self._world, self._longest_first = rank, world, longest_first
        self._group = group or _GROUP
        self._examples = dataset.indices(split)
        if not len(self._examples):
            raise DataError(f"the {split} split has no examples", dataset.source, "use more data, or data.validation")
        longest = int(dataset.lengths[self._examples].max())
        self._length = max(sequence_length or dataset.sequence_length or longest, longest)
        self._split, self._budget = split, rows * padded_length(self._length)
        self._epochs: dict[int, list[list[int]]] = {}
        self.samples_per_epoch = len(self._epoch(0))  # grouped, other epochs may have a few more or less
        self._next = 0, 0  # epoch, and the next sample of it

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        samples = []
        taken = 1 if self._layout == "grouped" else self._rows
        for row in range(taken):
            epoch, sample = self._after(row * self._world + self._rank)
            samples.append(self._epoch(epoch)[sample])
        self._next = self._after(taken * self._world)
        if self._layout == "grouped":
            return to_batch(self._dataset, [[example] for example in samples[0]])
        return to_batch(self._dataset, _flattened(samples) if self._layout == "flat" else samples)

    @property
    def epoch(self) -> float:
        """Passes over the data that the batches taken amount to."""
        epoch, sample = self._next
        return epoch + sample / len(self._epoch(epoch))

    def state(self) -> dict[str, Any]:
        """JSON: where the next batch begins."""
        epoch, sample = self._next
        return {"epoch": epoch, "next_sample": sample, **self._identity()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, with any microbatch and number of ranks.

        Raises DataError for other data.
        """
        for key, own in self._identity().items():
            if state.get(key) != own:
                raise DataError(
                    f"the stream to resume has {key} {state.get(key)}, this one {own}",
                    hint="resume with the data and settings of the run",
                )
        self._next = resumed_place(state, lambda epoch: len(self._epoch(epoch)))

    def _after(self, samples: int) -> tuple[int, int]:
        """The place of a sample that comes so many later than the next one."""
        epoch, sample = self._next
        sample += samples
        while sample >= (count := len(self._epoch(epoch))):
            epoch, sample = epoch + 1, sample - count
        return epoch, sample

    def _identity(self) -> dict[str, Any]:
        """All that decides the order of samples."""
        return {
            "seed": self._seed,
            "layout": self._layout,
            "sequence_length": self._length,
            "group": self._group,
            "longest_first": self._longest_first,
            "split": self._split,
            "data": self._dataset.fingerprint,
            **({"budget": self._budget} if self._layout == "grouped" else {}),
        }

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The samples of an epoch, each a list of examples."""
        if epoch not in self._epochs:
            self._epochs = {e: samples for e, samples in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = self._order(epoch)
        return self._epochs[epoch]

    def _order(self, epoch: int) -> list[list[int]]:
        lengths = self._dataset.lengths[self._examples]
        shuffled = permutation(self._seed, epoch, len(lengths))
        if self._layout == "packed":
            rows = best_fit_decreasing(lengths, self._length, shuffled)
            order = permutation(self._seed, epoch + _OTHER_SHUFFLE, len(rows))
            if self._longest_first and epoch == 0:
                sizes = np.array([lengths[rows[n]].sum() for n in order])
                fullest = np.argsort(-sizes, kind="stable")[: self._group]
                order = np.concatenate([order[fullest], np.delete(order, fullest)])
            samples = [rows[n] for n in order]
        elif self._layout == "grouped":
            samples = _within(lengths, _like_lengths(lengths, shuffled, _WINDOW * self._group), self._budget)
            samples = [samples[n] for n in permutation(self._seed, epoch + _OTHER_SHUFFLE, len(samples))]
            if self._longest_first and epoch == 0:
                areas = [len(sample) * padded_length(int(lengths[sample[0]])) for sample in samples]
                samples.insert(0, samples.pop(int(np.argmax(areas))))
        else:
            groups = _like_lengths(lengths, shuffled, self._group)
            whole = len(lengths) // self._group  # a last, smaller group stays last, or it would shift all others
            order = permutation(self._seed, epoch + _OTHER_SHUFFLE, whole)
            groups = [groups[n] for n in order] + groups[whole:]
            if self._longest_first and epoch == 0:
                largest = max(range(len(groups)), key=lambda n: int(lengths[groups[n]].max()))
                groups.insert(0, groups.pop(largest))
            samples = [[int(n)] for group in groups for n in group]
        return [[int(self._examples[n]) for n in sample] for sample in samples]


class SupervisedPass:
    """One pass over a split for measuring: every supervised token is a label exactly once.

    Rank r takes every world-th row. tokens: labels; bytes: text they stand for (0 if the tokenizer is not
    byte-level); documents: examples.
    max_examples: measure only so many, chosen by hash. external: gives Batch.external_BTE, an example being a document.
    """

    def __init__(
        self,
        dataset: SupervisedDataset,
        split: str = "validation",
        sequence_length: int | None = None,
        rows: int = 1,
        layout: Layout = "packed",
        max_examples: int | None = None,
        rank: int = 0,
        world: int = 1,
        external: External | None = None,
    ) -> None:
        examples = dataset.indices(split)
        if max_examples is not None and len(examples) > max_examples:
            examples = np.sort(examples[permutation(0, 0, len(examples))[:max_examples]])
        lengths = dataset.lengths[examples]
        longest = int(lengths.max()) if len(lengths) else 1
        if layout == "packed":
            capacity = max(sequence_length or dataset.sequence_length or longest, longest)
            packed = best_fit_decreasing(lengths, capacity, np.arange(len(examples)))
        else:
            packed = [[int(n)] for n in np.argsort(-lengths, kind="stable")]
        self._samples = [[int(examples[n]) for n in row] for row in packed]
        self._dataset, self._rows, self._layout = dataset, rows, layout
        self._rank, self._world, self._external = rank, world, external
        labels = [ids[1:][mask[1:]] for ids, mask in map(dataset.example, examples.tolist())]
        self.tokens = sum(map(len, labels))
        byte_level = dataset.tokenizer.is_byte_level
        sizes = dataset.tokenizer.token_sizes() if byte_level else np.zeros(dataset.tokenizer.vocabulary_size, np.int32)
        self.bytes = int(sum(sizes[part].sum() for part in labels))
        self.documents = len(examples)

    def __iter__(self) -> Iterator[Batch]:
        own = self._samples[self._rank :: self._world]
        for first in range(0, len(own), self._rows):
            samples = own[first : first + self._rows]
            rows = _flattened(samples) if self._layout == "flat" else samples
            yield to_batch(self._dataset, rows, self._external)


def padded_length(tokens: int) -> int:
    """Tokens of a row that must hold so many."""
    multiple = _MULTIPLES[tokens > 128]
    return -(-tokens // multiple) * multiple


def row_sizes(dataset: SupervisedDataset, layout: Layout, sequence_length: int) -> Counter[tuple[int, int]]:
    """(tokens, examples) of the rows that there will be, in whatever order examples come, and how many are so."""
    lengths = dataset.lengths[dataset.indices("train")]
    if layout != "packed":
        each, counts = np.unique(lengths, return_counts=True)
        return Counter({(int(tokens), 1): int(count) for tokens, count in zip(each, counts, strict=True)})
    rows = best_fit_decreasing(lengths, max(sequence_length, int(lengths.max())), np.arange(len(lengths)))
    return Counter((int(lengths[row].sum()), len(row)) for row in rows)


def padded_shares(sizes: Counter[tuple[int, int]]) -> tuple[float, ...]:
    """Which share of the rows has each padded length, the shortest first. sizes: as `row_sizes` has them."""
    found: Counter[int] = Counter()
    for (tokens, _), count in sizes.items():
        found[padded_length(tokens)] += count
    return tuple(found[length] / found.total() for length in sorted(found))


def to_batch(dataset: SupervisedDataset, rows: Sequence[Sequence[int]], external: External | None = None) -> Batch:
    """Each row's examples one after another -> Batch [rows, T], T the longest row, padded.

    An example is its own segment, and its positions begin at 0; it needs `dataset.lengths` inputs.
    """
    width = max(int(dataset.lengths[list(row)].sum()) for row in rows)
    shape = (len(rows), padded_length(width))
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, segments = np.full(shape, IGNORED, np.int64), np.full(shape, PADDING_SEGMENT, np.int64)
    vectors = None if external is None else np.zeros((*shape, external.width), np.float32)
    for r, row in enumerate(rows):
        at = 0
        for segment, index in enumerate(row):
            ids, supervised = dataset.example(index)
            n = int(dataset.lengths[index])
            place = slice(at, at + n)
            tokens[r, place] = ids[:n]
            labels[r, place] = np.where(supervised[1 : n + 1], ids[1 : n + 1], IGNORED)
            positions[r, place] = np.arange(n)
            segments[r, place] = segment
            if external is not None and vectors is not None:
                vectors[r, place] = external.vectors(ids[:n], 0, n)
            at += n
    external_BTE = None if vectors is None else torch.from_numpy(vectors)
    tokens_BT, labels_BT, positions_BT, segments_BT = map(torch.from_numpy, (tokens, labels, positions, segments))
    return Batch(tokens_BT, labels_BT, positions_BT, segments_BT, external_BTE)


def _like_lengths(lengths: np.ndarray, shuffled: np.ndarray, group: int) -> list[np.ndarray]:
    """Groups of like length, longest first inside each: within windows, so that the order stays random."""
    groups: list[np.ndarray] = []
    for first in range(0, len(shuffled), _WINDOW * group):
        window = shuffled[first : first + _WINDOW * group]
        window = window[np.argsort(-lengths[window], kind="stable")]
        groups += [window[n : n + group] for n in range(0, len(window), group)]
    return groups


def _within(lengths: np.ndarray, windows: list[np.ndarray], budget: int) -> list[list[int]]:
    """Batches of neighbours in windows that are sorted, longest first, as large as `budget` tokens allow, padding
    included; one example at least."""
    batches: list[list[int]] = []
    for window in windows:
        batches.append([])
        for n in window.tolist():
            batch = batches[-1]
            if batch and (len(batch) + 1) * padded_length(int(lengths[batch[0]])) > budget:
                batches.append(batch := [])
            batch.append(n)
    return batches


def resumed_place(state: dict[str, Any], samples: Callable[[int], int]) -> tuple[int, int]:
    """(epoch, sample) of a stream's state. samples: how many an epoch has. Raises DataError for no such place."""
    epoch, sample = (
        n if type(n) is int and 0 <= n < _MOST else -1 for n in (state.get("epoch"), state.get("next_sample"))
    )
    if epoch < 0 or not 0 <= sample < samples(epoch):
        raise DataError("the stream to resume says no place in its data", hint="remove this checkpoint folder")
    return epoch, sample


def _flattened(samples: list[list[int]]) -> list[list[int]]:
    return [[index for sample in samples for index in sample]]
