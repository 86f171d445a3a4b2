"""The verdict on each document: kept, or why it is left out.

It has two halves. `examine` looks at a text alone, so that any process can do it, in any order. `Reviewer.decide`
then takes what it found in the order of the source, the same for any number of processes: the first of several that
are equal or alike is kept. A document's own faults come first, and only documents that are kept are remembered. So
all that a run needs to go on is the marks of the documents it has kept: nothing that was left out could have changed
a verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from shoestring.core.errors import DataError
from shoestring.data.quality import filters
from shoestring.data.quality.config import QualityConfig
from shoestring.data.quality.duplicates import Seen, text_hash
from shoestring.data.quality.near_duplicates import NearDuplicates, bucket_keys, need_rensa, probe
from shoestring.data.quality.words import words_of
from shoestring.data.sources import Skipped

EXACT, NEAR, SHORT = "exact duplicates", "near duplicates", "near-empty documents"
_VISIBLE = re.compile(r"\S")


@dataclass(frozen=True)
class Findings:
    """fault: the reason to leave a text out, whatever the others are. marks: uint64 [1 + buckets], by which it is
    compared: its hash and the keys of its buckets, zeros where it is left out or nothing asks for them."""

    fault: str | None
    marks: np.ndarray


def examine(text: str, config: QualityConfig) -> Findings:
    """What a text shows by itself. Raises ConfigError where near-duplicates are asked for without their library."""
    minhash = config.minhash
    marks = np.zeros(marks_width(config), np.uint64)
    fault = fault_of(text, config)
    if fault is None:
        if config.exact_duplicates:
            marks[0] = text_hash(text)
        if minhash is not None:
            need_rensa()
            marks[1:] = bucket_keys(text, minhash)
    return Findings(fault, marks)


def fault_of(text: str, config: QualityConfig) -> str | None:
    """The first rule that a text breaks."""
    if sum(1 for _ in islice(_VISIBLE.finditer(text), config.shortest)) < config.shortest:
        return SHORT
    if not config.filters:
        return None
    words = words_of(text)
    fault = None
    if config.gopher_quality:
        fault = filters.gopher_quality(text, words)
    if fault is None and config.gopher_repetition:
        fault = filters.gopher_repetition(text, words)
    if fault is None and config.fineweb:
        fault = filters.fineweb(text, words)
    return fault


def marks_width(config: QualityConfig) -> int:
    """Numbers in the marks of a document."""
    return 1 + (config.minhash.buckets if config.minhash is not None else 0)


class Reviewer:
    """left_out: how many documents, by reason, with the first place of each.

    Raises ConfigError where near-duplicates are asked for without their library.
    """

    def __init__(self, config: QualityConfig) -> None:
        self.config = config
        self.left_out = Skipped()
        self._seen = Seen()
        self._near = None if config.minhash is None else NearDuplicates(config.minhash)

    def verdict(self, text: str, where: str = "") -> str | None:
        """Why the next document of the source is left out, as the name of a count; None where it is kept."""
        return self.decide(examine(text, self.config), where)

    def decide(self, findings: Findings, where: str = "") -> str | None:
        """The same, of what `examine` found."""
        reason = findings.fault or self._like(findings.marks)
        if reason is not None:
            self.left_out.add(reason, where)
        else:
            if self.config.exact_duplicates:
                self._seen.add(int(findings.marks[0]))
            if self._near is not None:
                self._near.keep(findings.marks[1:])
        return reason

    def _like(self, marks: np.ndarray) -> str | None:
        if self.config.exact_duplicates and int(marks[0]) in self._seen:
            return EXACT
        return NEAR if self._near is not None and self._near.like(marks[1:]) else None

    # Going on

    def remember(self, marks: np.ndarray) -> None:
        """Documents that were kept before: uint64 [n, 1 + buckets]."""
        if self.config.exact_duplicates:
            self._seen.update(marks[:, 0])
        if self._near is not None:
            self._near.update(marks[:, 1:])

    def state(self) -> dict[str, Any]:
        """JSON: the counts, and by what signatures of near-duplicates are made."""
        minhash = self.config.minhash
        return {
            "counts": {**self.left_out.counts},
            "first": {**self.left_out.first},
            "signatures": None if minhash is None else probe(minhash),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """What belongs to the state: uint64 [n] each."""
        near = np.zeros(0, np.uint64) if self._near is None else self._near.dump()
        return {"hashes": self._seen.dump(), "buckets": near}

    def restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
        """Go on from what `state` and `arrays` gave; without arrays, `remember` gives them.

        Raises DataError for a state that is damaged, or of signatures that are made otherwise now.
        """
        minhash = self.config.minhash
        try:
            counts = {str(reason): int(count) for reason, count in state["counts"].items()}
            first = {reason: str(state["first"][reason]) for reason in counts}
            signatures = state["signatures"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError("the counts of documents that were left out are damaged", hint="prepare again") from error
        if signatures != (None if minhash is None else probe(minhash)):
            message = "the signatures of near-duplicates were made with other settings, or by another version of rensa"
            raise DataError(message, hint="prepare again, or install the version that made them")
        self.left_out = Skipped(counts, first)
        if arrays is not None:
            self._seen.update(arrays["hashes"])
            if self._near is not None:
                self._near.update(arrays["buckets"])
