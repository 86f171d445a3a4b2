"""Text that a model is calibrated with, and other text that it is measured on, of any source of `data`.

Text is cut into windows of `context` tokens; conversations are written in the model's own chat template, and measured
by what the assistant says in them. Windows or examples are drawn by a hash of their place; those measured on are never
calibrated with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from shoestring.compression.text_config import LONGEST, TOGETHER, TextConfig
from shoestring.core.errors import DataError
from shoestring.core.units import counted
from shoestring.data.batch import Batch
from shoestring.data.order import permutation
from shoestring.data.supervised.batches import to_batch
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.packing import best_fit_decreasing
from shoestring.data.supervised.supervise import ModelSide, build_dataset
from shoestring.data.tokenizer import Tokenizer
from shoestring.evaluate.text import rows_of, text_windows, texts_of
from shoestring.models.resolve import Say

LEAST = 256  # tokens
_READ = 16  # characters of text for each token that is wanted: four times as much text, to draw from
_MEASURED = 5  # where there is little text, one part of so many is measured on


@dataclass(frozen=True)
class Calibration:
    """calibrating: with so many tokens, padding left out, of so many windows or examples. measured: batches whose
    `labels` stand for `label_bytes` of text (0 where ids do not stand for bytes)."""

    source: str
    form: str
    calibrating: list[Batch]
    tokens: int
    examples: int
    measured: list[Batch]
    labels: int
    label_bytes: int

    def digest(self) -> str:
        """Of all that is computed with."""
        found = hashlib.sha256()
        for batch in (*self.calibrating, *self.measured):
            for numbers in (batch.tokens_BT, batch.labels_BT, batch.positions_BT, batch.segments_BT):
                found.update(repr(tuple(numbers.shape)).encode() + numbers.contiguous().numpy().tobytes())
        return found.hexdigest()


def read_calibration(
    settings: TextConfig, tokenizer: Tokenizer, longest: int, say: Say | None,
    together: int | Callable[[], int] = TOGETHER,
) -> Calibration:  # fmt: skip
    """longest: tokens that the model can look at. together: tokens in a batch, or one row; or what says so, called once
    the text has been read. Raises DataError for a source that is empty, too short or unreadable, ConfigError for
    columns that no row has."""
    assert settings.calibrate is not None
    context = min(settings.context, longest)
    dataset = _dataset(settings, tokenizer, context, longest, say)
    source, lengths = settings.calibrate, dataset.lengths
    total = int(lengths.sum())
    kind = "window" if dataset.form == "text" else "example"
    if total < LEAST or len(dataset) < 2:
        raise DataError(
            f"{counted(total, 'token')} in {counted(len(dataset), kind)} are too few to calibrate with and to measure",
            source, f"give {LEAST:,} tokens at least, in two {kind}s of up to {context:,}",
        )  # fmt: skip
    order = permutation(settings.seed, 0, len(dataset))
    held_out = _until(lengths[order], min(settings.held_out * context, total // _MEASURED))
    chosen = order[held_out:]
    chosen = chosen[: _until(lengths[chosen], settings.rows * context, at_least_left=0)]
    measured = order[:held_out]
    labels, label_bytes = _labels(dataset, measured)
    tokens = together if isinstance(together, int) else together()
    return Calibration(
        source, dataset.form, _batches(dataset, chosen, context, tokens), int(lengths[chosen].sum()), len(chosen),
        _batches(dataset, measured, context, tokens), labels, label_bytes,
    )  # fmt: skip


def _dataset(
    settings: TextConfig, tokenizer: Tokenizer, context: int, longest: int, say: Say | None
) -> SupervisedDataset:
    source, bad = str(settings.calibrate), settings.on_bad_line
    rows = rows_of(source, bad, say, settings.columns)
    if rows is None or rows.form == "text":
        wanted = max(settings.rows + settings.held_out, settings.read or 0) * context * _READ
        some = _first(texts_of(source, rows, bad), wanted)
        return text_windows(some, tokenizer, source, context, context, specials=rows is not None)[0]
    given = {"format": rows.form, "validation": 0.0, "on_bad_line": bad, "columns": settings.columns}
    return build_dataset(source, ModelSide.of(tokenizer), max(context, min(LONGEST, longest)), say, **given)


def _first(texts: Iterator[str], characters: int) -> Iterator[str]:
    """Texts until so many characters have come."""
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _until(lengths: np.ndarray, tokens: int, at_least_left: int = 1) -> int:
    """How many of the first make so many tokens: one at least, and not the last ones."""
    needed = int(np.searchsorted(np.cumsum(lengths), tokens)) + 1
    return max(min(needed, len(lengths) - at_least_left), 1)


def _batches(dataset: SupervisedDataset, chosen: np.ndarray, context: int, together: int) -> list[Batch]:
    lengths = dataset.lengths[chosen]
    room = max(context, int(lengths.max()))
    rows, together = best_fit_decreasing(lengths, room, np.arange(len(chosen))), max(together // room, 1)
    return [
        to_batch(dataset, [[int(chosen[n]) for n in row] for row in rows[first : first + together]])
        for first in range(0, len(rows), together)
    ]


def _labels(dataset: SupervisedDataset, chosen: np.ndarray) -> tuple[int, int]:
    """The number of tokens that are measured, and of the bytes that they stand for."""
    tokenizer = dataset.tokenizer
    sizes = tokenizer.token_sizes() if tokenizer.is_byte_level else np.zeros(tokenizer.vocabulary_size, np.int32)
    labels = [ids[1:][mask[1:]] for ids, mask in map(dataset.example, chosen.tolist())]
    return sum(map(len, labels)), int(sum(sizes[part].sum() for part in labels))
