"""The text of a run: what chooses, what is trained on to recover, and what is measured, of one reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from shoestring.compression.calibration import Calibration, read_calibration
from shoestring.compression.prune.config import PruneConfig
from shoestring.core.waiting import waiting
from shoestring.data.batch import PADDING_SEGMENT, Batch
from shoestring.data.order import permutation
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.resolve import Say

STEP_TOKENS = 2048  # of an optimizer step, about
MOST_TOKENS = 2_000_000  # that are read to train on; then they come again


@dataclass(frozen=True)
class Text:
    """choosing: a part of the calibrating batches, of which all are trained on. The others are of what is read."""

    read: Calibration
    choosing: list[Batch]

    @property
    def training(self) -> list[Batch]:
        return self.read.calibrating

    @property
    def tokens(self) -> int:
        """That choose."""
        return sum(map(tokens_of, self.choosing))

    @property
    def examples(self) -> int:
        return sum(int((batch.segments_BT.max(1).values + 1).sum()) for batch in self.choosing)


def tokens_of(batch: Batch) -> int:
    return int((batch.segments_BT != PADDING_SEGMENT).sum())


def tokens_to_train_on(settings: PruneConfig) -> int:
    """That are read to recover by."""
    if settings.recover is None:
        return 0
    steps, _ = settings.recovering
    return MOST_TOKENS if steps is None else min(steps * settings.rounds * STEP_TOKENS, MOST_TOKENS)


def read_text(
    settings: PruneConfig, tokenizer: Tokenizer, longest: int, together: Callable[[], int], say: Say | None
) -> Text:
    """together: called once the text has been read; -> tokens in a batch, unless it is trained on. Raises what
    `read_calibration` does."""
    if settings.recover is None:
        found = read_calibration(settings, tokenizer, longest, say, together)
        return Text(found, found.calibrating if settings.by_text else [])
    context = min(settings.context, longest)
    more = settings.model_copy(
        update={"rows": max(settings.rows, -(-tokens_to_train_on(settings) // context))}
    )

    def of_a_step() -> int:
        together()
        return STEP_TOKENS

    with waiting("reading   text to train on"):
        found = read_calibration(more, tokenizer, longest, say, of_a_step)
    # The longest examples stand first.
    shuffled = [found.calibrating[n] for n in permutation(settings.seed, 0, len(found.calibrating))]
    found = replace(found, calibrating=shuffled)
    choosing, left = [], settings.rows * context if settings.by_text else 0
    for batch in shuffled:
        if left <= 0:
            break
        choosing.append(batch)
        left -= tokens_of(batch)
    return Text(found, choosing)
