"""Supervised examples for the eye: the text as the model reads it, with what it learns marked.

Supervised tokens are bold and stand between ‹ and ›, so that they are seen without colour too; a newline in the
text is ⏎. Newlines are not followed by a line break: what is shown is one line, as the tokens are one row.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from shoestring.core.units import counted, format_count
from shoestring.data.supervised.dataset import SupervisedDataset

if TYPE_CHECKING:
    from rich.text import Text

OPENING, CLOSING, NEWLINE = "‹", "›", "⏎"


def header_line(dataset: SupervisedDataset) -> str:
    """Counts: form, examples, tokens, share supervised, longest before the cut, how many were cut."""
    counts = dataset.counts
    parts = [
        dataset.form,
        counted(counts.examples, "example"),
        f"{format_count(counts.tokens)} tokens",
        f"{counts.supervised_share:.0%} supervised",
        f"longest {counts.longest:,}",
        f"{counts.truncated:,} truncated" + (f" to {dataset.sequence_length:,}" if counts.truncated else ""),
    ]
    if dataset.skipped.counts:
        parts.append(f"left out: {dataset.skipped}")
    return f"{dataset.source}: {', '.join(parts)}"


def runs(dataset: SupervisedDataset, index: int) -> list[tuple[str, bool]]:
    """An example as pieces of text, alternately supervised or not."""
    ids, supervised = dataset.example(index)
    pieces = []
    for learned, group in itertools.groupby(zip(ids.tolist(), supervised.tolist(), strict=True), lambda pair: pair[1]):
        pieces.append((dataset.tokenizer.decode([i for i, _ in group], skip_specials=False), learned))
    return pieces


def example_text(dataset: SupervisedDataset, index: int) -> Text:
    """An example ready for the console."""
    from rich.text import Text

    text = Text()
    for piece, learned in runs(dataset, index):
        shown = piece.replace("\n", NEWLINE)
        text.append(f"{OPENING}{shown}{CLOSING}" if learned else shown, style="bold green" if learned else None)
    return text


def example_json(dataset: SupervisedDataset, index: int) -> dict[str, Any]:
    """An example for `--json`: where it stands, its ids and mask, its text in pieces."""
    ids, supervised = dataset.example(index)
    return {
        "where": dataset.where[index],
        "split": "validation" if dataset.held_out[index] else "train",
        "tokens": ids.tolist(),
        "supervised": supervised.astype(int).tolist(),
        "text": [{"text": piece, "supervised": learned} for piece, learned in runs(dataset, index)],
    }
