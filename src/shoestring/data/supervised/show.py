"""Supervised examples for the eye: the text as the model reads it, with what it learns marked.

Supervised tokens are bold and stand between ‹ and ›, so that they are seen without colour too; a newline in the
text is ⏎. Newlines are not followed by a line break: what is shown is one line, as the tokens are one row. Special
tokens are dim; a name of one that is letters to the model has a \\ before it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from shoestring.core.units import counted, format_count
from shoestring.data.plain_names import PlainNames
from shoestring.data.supervised.columns import described
from shoestring.data.supervised.dataset import SupervisedDataset

if TYPE_CHECKING:
    from rich.text import Text

OPENING, CLOSING, NEWLINE = "‹", "›", "⏎"
LETTERS = "\\"  # before the name of a special token that is only text
_PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {10: NEWLINE, 9: "\t", 127: "\u2421"}
_PICTURES |= dict.fromkeys(range(128, 160), "\ufffd")


def header_line(dataset: SupervisedDataset) -> str:
    """Counts: form, examples, tokens, share supervised, longest before the cut, how many were cut."""
    counts = dataset.counts
    parts = [
        dataset.form + (f" ({described(dataset.columns)})" if dataset.columns else ""),
        counted(counts.examples, "example"),
        f"{format_count(counts.tokens)} tokens",
        f"{counts.supervised_share:.0%} supervised",
        f"longest {counts.longest:,}",
        f"{counts.truncated:,} truncated" + (f" to {dataset.sequence_length:,}" if counts.truncated else ""),
    ]
    if dataset.skipped.counts:
        parts.append(f"left out: {dataset.skipped}")
    return f"{dataset.source}: {', '.join(parts)}"


def note_lines(dataset: SupervisedDataset) -> list[str]:
    """What a person should know of the data, a line each."""
    return [f"note: {note}" for note in dataset.notes]


def runs(dataset: SupervisedDataset, index: int) -> list[tuple[str, bool, bool]]:
    """An example as pieces of text, each with whether it is supervised and whether it is a special token."""
    ids, supervised = dataset.example(index)
    special, stream = dataset.tokenizer.special_ids, dataset.tokenizer.stream(skip_specials=False)
    pieces = [(stream.add(i), bool(learned), i in special) for i, learned in zip(ids.tolist(), supervised, strict=True)]
    pieces.append((stream.finish(), bool(supervised[-1]), ids[-1] in special))
    grouped = itertools.groupby(pieces, lambda piece: piece[1:])
    found = [("".join(text for text, *_ in group), *kind) for kind, group in grouped]
    return [(text, learned, is_special) for text, learned, is_special in found if text]


def example_text(dataset: SupervisedDataset, index: int) -> Text:
    """An example ready for the console."""
    from rich.text import Text

    text, names = Text(), PlainNames(dataset.tokenizer)
    for learned, group in itertools.groupby(runs(dataset, index), lambda run: run[1]):
        text.append(OPENING if learned else "", style="bold green")
        for piece, _, special in group:
            shown = visible(piece if special else LETTERS.join(_split(piece, names.find(piece))))
            text.append(shown, style=" ".join(["bold green"] * learned + ["dim"] * special) or None)
        text.append(CLOSING if learned else "", style="bold green")
    return text


def has_letters(dataset: SupervisedDataset, index: int) -> bool:
    """Whether a special token's name stands in an example as letters."""
    names = PlainNames(dataset.tokenizer)
    return any(names.find(text) for text, _, special in runs(dataset, index) if not special)


def visible(text: str) -> str:
    """A newline as ⏎, and other control characters as Unicode's pictures of them, so that none acts on a terminal."""
    return text.translate(_PICTURES)


def _split(text: str, places: list[int]) -> list[str]:
    borders = [0, *places, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(borders)]


def example_json(dataset: SupervisedDataset, index: int) -> dict[str, Any]:
    """An example for `--json`: where it stands, its ids and mask, its text in pieces."""
    ids, supervised = dataset.example(index)
    special = dataset.tokenizer.special_ids
    return {
        "where": dataset.where[index],
        "split": "validation" if dataset.held_out[index] else "train",
        "tokens": ids.tolist(),
        "supervised": supervised.astype(int).tolist(),
        "special": [int(i in special) for i in ids.tolist()],
        "text": [
            {"text": "".join(piece for piece, *_ in group), "supervised": learned}
            for learned, group in itertools.groupby(runs(dataset, index), lambda run: run[1])
        ],
    }
