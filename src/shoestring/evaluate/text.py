"""Text as windows to be measured: each token is scored once, with as much of what precedes it as fits.

A document opens with the tokenizer's bos, or eos where it has none, as the harnesses do: so its first token is scored
too. A document longer than the context T is read in windows that end `stride` tokens apart; a window scores only what
is new in it, so that every token but the first T has at least T − stride tokens before it. Its end is not scored: a
text cut from a longer one has none. Windows become examples of a `SupervisedDataset`, whose batches pack short ones
into one row, apart from each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from shoestring.core.errors import ConfigError, DataError
from shoestring.data.sources import Skipped, Source
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.supervised.dataset import DatasetBuilder, SupervisedDataset
from shoestring.data.supervised.rows import ExampleSource, are_rows
from shoestring.data.tokenizer import Tokenizer

_AT_ONCE = 64  # documents tokenized together


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each window over ids 0..tokens: inputs [begin, end), labels (first, end] are scored."""
    end = first = 0
    while end < tokens:
        end = min(end + stride if end else context, tokens)
        yield max(end - context, 0), first, end
        first = end


def text_windows(
    texts: Iterator[str], tokenizer: Tokenizer, source: str, context: int, stride: int, specials: bool = False
) -> tuple[SupervisedDataset, int]:
    """The windows of all texts as one dataset, and the number of texts. Raises DataError when nothing is left.

    specials: whether names of special tokens in a text become these tokens.
    """
    opening = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    prefix = [] if opening is None else [opening]
    builder = DatasetBuilder(source, "text", tokenizer, frozenset(), context)
    documents = 0
    while some := list(itertools.islice(texts, _AT_ONCE)):
        for ids in tokenizer.encode_batch(some, specials):
            ids_N = np.array([*prefix, *ids], np.int64)
            documents += 1
            for begin, first, end in windows(len(ids_N) - 1, context, stride):
                window = ids_N[begin : end + 1]
                builder.add(window, np.arange(begin, end + 1) > first, len(window), f"{source}: text {documents}")
    dataset = builder.build(Skipped())
    if not len(dataset):
        raise DataError("no text of two tokens or more", source, "give a text file, a folder or rows with a text")
    return dataset, documents


def rows_of(
    source: str,
    on_bad_line: OnBadLine = "stop",
    say: Callable[[str], None] | None = None,
    columns: Mapping[str, str] | None = None,
) -> ExampleSource | None:
    """Of a source that is made of rows: texts, conversations or questions. None of one that is text itself.

    columns: as in fine-tuning. Raises ConfigError for columns of what has no rows.
    """
    if are_rows(source):
        return ExampleSource(source, "auto", on_bad_line, say, columns)
    if columns:
        raise ConfigError(f"{source} has no columns: it is text, not rows", hint="leave columns out")
    return None


def texts_of(source: str, rows: ExampleSource | None, on_bad_line: OnBadLine = "stop") -> Iterator[str]:
    """The texts of a source, or of its rows where they are texts."""
    if rows is None:
        return (document.text for document in Source(source, validation=0.0, on_bad_line=on_bad_line).documents())
    plain = (example.plain for example in rows.examples(Skipped()))
    return (pair[0] + pair[1] for pair in plain if pair is not None)
