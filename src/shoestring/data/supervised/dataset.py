"""Supervised examples in memory: ids and mask end to end, and where each example begins.

    tokens int32 [N], supervised bool [N], starts int64 [examples + 1], held_out bool [examples]

About five bytes a token: a million examples of 200 tokens take 1 GB.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from shoestring.data.order import permutation
from shoestring.data.sources import Skipped
from shoestring.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class DatasetCounts:
    """examples: kept; train and validation add up to them. tokens, supervised: after the cut to sequence_length.

    longest: tokens of the longest example before the cut. truncated: examples that were cut. stops: supervised
    tokens that end a reply.
    """

    examples: int
    train: int
    validation: int
    tokens: int
    supervised: int
    longest: int
    truncated: int
    stops: int
    skipped: dict[str, int]

    @property
    def supervised_share(self) -> float:
        return self.supervised / max(self.tokens, 1)


@dataclass
class SupervisedDataset:
    """Made by `prepare_dataset`. tokenizer: the model's, with the chat template that was used.

    sequence_length: no example is longer. where: "file:line" of each example. columns: fields of the form that have
    other names in the rows. notes: sentences on what a person should know: fields that are not read, and the like.
    repeats: int64 [examples], how often each comes in an epoch, where sources have weights.
    """

    source: str
    form: str
    tokenizer: Tokenizer
    sequence_length: int | None
    tokens: np.ndarray
    supervised: np.ndarray
    starts: np.ndarray
    held_out: np.ndarray
    where: list[str]
    counts: DatasetCounts
    skipped: Skipped
    columns: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    repeats: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [n] and supervised bool [n] of an example."""
        begin, end = self.starts[index : index + 2]
        return self.tokens[begin:end].astype(np.int64), self.supervised[begin:end]

    def indices(self, split: str) -> np.ndarray:
        """Of the examples of "train" or "validation", in the order of the source; to train on, as often as they
        come."""
        assert split in ("train", "validation")
        found = np.flatnonzero(self.held_out == (split == "validation"))
        return found if self.repeats is None or split == "validation" else np.repeat(found, self.repeats[found])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Inputs that each example needs, int64 [examples]: up to the token before the last one learned.

        Attention is causal: what stands behind, such as the newline after an end token, changes no loss.
        """
        last = np.where(self.supervised, np.arange(len(self.tokens)), -1)
        return np.maximum.reduceat(last, self.starts[:-1]) - self.starts[:-1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids, the mask and the split."""
        digest = hashlib.sha256(json.dumps([len(self), str(self.tokens.dtype)]).encode())
        repeats = () if self.repeats is None else (self.repeats,)
        for part in (self.tokens, self.supervised, self.starts, self.held_out, *repeats):
            digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        return digest.hexdigest()

    def header(self) -> dict[str, Any]:
        """What `data show --json` says of the whole."""
        return {
            "source": self.source,
            "format": self.form,
            "columns": self.columns,
            **asdict(self.counts),
            "supervised_share": round(self.counts.supervised_share, 4),
            "sequence_length": self.sequence_length,
            "notes": list(self.notes),
        }


class DatasetBuilder:
    """Collects examples one at a time."""

    def __init__(
        self, source: str, form: str, tokenizer: Tokenizer, stop_ids: frozenset[int], sequence_length: int | None,
        columns: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._columns = columns or {}
        self._about = (source, form, tokenizer, sequence_length)
        self._stop_ids = stop_ids
        self._tokens, self._supervised = array("i"), bytearray()
        self._starts = array("q", [0])
        self._hashes: list[float] = []
        self._held_out: list[bool] = []
        self._where: list[str] = []
        self._part: list[int] = []
        self._longest = self._truncated = 0

    def add(
        self,
        ids: np.ndarray,
        supervised: np.ndarray,
        full_length: int,
        where: str,
        fraction: float = 1.0,
        held_out: bool = False,
        part: int = 0,
    ) -> None:
        """fraction: the hash in [0, 1) that `split` goes by. part: of a mixture."""
        self._tokens.frombytes(ids.astype(np.int32).tobytes())
        self._supervised += supervised.astype(np.uint8).tobytes()
        self._starts.append(len(self._tokens))
        self._hashes.append(fraction)
        self._held_out.append(held_out)
        self._where.append(where)
        self._part.append(part)
        self._longest = max(self._longest, full_length)
        self._truncated += full_length > len(ids)

    def split(self, share: float) -> None:
        """Hold out what has been added so far with a hash below `share`; at least the lowest, never everything."""
        distinct = sorted(set(self._hashes))
        if share <= 0 or len(distinct) < 2:
            return
        border = min(max(share, np.nextafter(distinct[0], 1)), distinct[-1])
        self._held_out = [fraction < border for fraction in self._hashes]

    def build(
        self, skipped: Skipped, notes: tuple[str, ...] = (), weights: tuple[float, ...] = (1.0,)
    ) -> SupervisedDataset:
        """weights: of the parts."""
        tokens = np.frombuffer(self._tokens, np.int32) if self._tokens else np.zeros(0, np.int32)
        supervised = np.frombuffer(bytes(self._supervised), bool)
        held_out = np.array(self._held_out, bool)
        stops = np.isin(tokens, sorted(self._stop_ids)) & supervised
        counts = DatasetCounts(
            examples=len(self._where),
            train=int((~held_out).sum()),
            validation=int(held_out.sum()),
            tokens=len(tokens),
            supervised=int(supervised.sum()),
            longest=self._longest,
            truncated=self._truncated,
            stops=int(stops.sum()),
            skipped=dict(skipped.counts),
        )
        source, form, tokenizer, length = self._about
        starts = np.array(self._starts, np.int64)
        return SupervisedDataset(
            source, form, tokenizer, length, tokens, supervised, starts, held_out, self._where, counts, skipped,
            self._columns, notes, _repeats(np.array(self._part), np.diff(starts), ~held_out, weights),
        )  # fmt: skip


def _repeats(
    part: np.ndarray, lengths: np.ndarray, trained: np.ndarray, weights: tuple[float, ...]
) -> np.ndarray | None:
    """How often each example comes in an epoch, so that parts have their shares of the tokens trained on; at least
    once.

    What is left of a part's share after whole turns goes to some of its examples, chosen by hash, always the same ones.
    """
    if len(weights) == 1:
        return None
    tokens = [int(lengths[trained & (part == n)].sum()) for n in range(len(weights))]
    turns = [weight / max(count, 1) for weight, count in zip(weights, tokens, strict=True)]
    least = min(turn for turn, count in zip(turns, tokens, strict=True) if count) if any(tokens) else 1.0
    repeats = np.ones(len(part), np.int64)
    for number, count in enumerate(tokens):
        own = np.flatnonzero(trained & (part == number))
        whole, rest = divmod(turns[number] / least, 1)
        repeats[own] = int(whole)
        chosen = own[permutation(number, 0, len(own))]
        more = int(np.searchsorted(np.cumsum(lengths[chosen]), rest * count))
        repeats[chosen[:more]] += 1
    return repeats
