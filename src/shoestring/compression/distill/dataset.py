"""What a student reads, as one supervised dataset whatever the source is: windows of text, or examples in rows.

Text opens with the tokenizer's bos, or eos where it has none, and ends with eos; it is cut into windows of a row that
follow one another, every token of which is learned once. Short ones share a row, apart from each other. So a token
has the same tokens before it in every epoch and every batch, and what the teacher says of it can be kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from shoestring.compression.distill.config import OF_ROWS, DistillDataConfig
from shoestring.core.errors import ConfigError, DataError
from shoestring.core.waiting import waiting
from shoestring.data.sources import Skipped, Source
from shoestring.data.supervised.dataset import DatasetBuilder, SupervisedDataset
from shoestring.data.supervised.rows import ExampleSource, are_rows
from shoestring.data.supervised.supervise import ModelSide, build_dataset, fraction
from shoestring.evaluate.text import windows

TEXT_ROW, LONGEST_ROW = 512, 2048  # tokens, where the recipe leaves the length open
_AT_ONCE = 64  # documents tokenized together
_ENDLESS = 1 << 62
_LEAST = 2  # windows or examples: one to learn from, one to measure with

Say = Callable[[str], None]
Text = tuple[str, float, bool]  # a document, the hash that it is split by, whether it is held out already


def open_dataset(
    config: DistillDataConfig, side: ModelSide, sequence_length: int | None, longest: int, say: Say | None = None
) -> tuple[SupervisedDataset, bool]:
    """The dataset, and whether it is text. longest: tokens that both models can look at.

    Raises DataError for what is empty or unreadable, ConfigError for settings that the source has no use for.
    """
    rows = None
    if config.source is not None and are_rows(config.source):
        rows = ExampleSource(config.source, config.format, config.on_bad_line, say, config.columns)
    if config.source is None or (rows is not None and rows.form != "text"):
        if config.tokens is not None:
            raise ConfigError(
                "data.tokens is of text, and this source is made of examples", hint="train.steps bounds the run"
            )
        dataset = build_dataset(config, side, sequence_length or min(longest, LONGEST_ROW), say)
        return dataset, False
    _check_settings(config, rows is not None)
    length = sequence_length or min(longest, TEXT_ROW)
    skipped = Skipped()
    texts = _given(config, skipped) if rows is None else _of_rows(rows, skipped)
    with waiting("reading   text, in documents") as told:
        dataset = _windows(config, side, length, texts, rows is not None, skipped, told.advance)
    if len(dataset.indices("train")) == 0 or len(dataset) < _LEAST:
        raise DataError(
            f"{dataset.counts.tokens:,} tokens are too few to learn from and to measure with", str(config.source),
            f"give more text, at least {_LEAST} windows of {length:,} tokens or {_LEAST} documents",
        )  # fmt: skip
    return dataset, True


def _check_settings(config: DistillDataConfig, rows: bool) -> None:
    fields = type(config).model_fields
    unused = set(OF_ROWS) - ({"columns", "format", "special_tokens"} if rows else set())
    for name in sorted(unused):
        if name in config.model_fields_set and getattr(config, name) != fields[name].default:
            raise ConfigError(
                f"data.{name} is of rows with questions or conversations, and {config.source} is text",
                hint="leave it out",
            )


def _given(config: DistillDataConfig, skipped: Skipped) -> Iterator[Text]:
    """Documents of text, split as preparing does."""
    share = 0.0 if config.validation_source else config.validation
    source = Source(str(config.source), validation=share, on_bad_line=config.on_bad_line)
    for document in source.documents(skipped):
        yield document.text, 1.0, document.split == "validation"


def _of_rows(rows: ExampleSource, skipped: Skipped) -> Iterator[Text]:
    for example in rows.examples(skipped):
        if example.plain is not None:
            text = example.plain[0] + example.plain[1]
            yield text, fraction(text), False


def _measured_on(config: DistillDataConfig) -> Iterator[Text]:
    """The held-out text that has a source of its own."""
    if config.validation_source is None:
        return
    for document in Source(config.validation_source, validation=0.0, on_bad_line=config.on_bad_line).documents():
        yield document.text, 1.0, True


def _windows(
    config: DistillDataConfig, side: ModelSide, length: int, texts: Iterator[Text], rows: bool,
    skipped: Skipped, read: Callable[[int], object],
) -> SupervisedDataset:  # fmt: skip
    tokenizer = side.tokenizer
    opening = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    before = [] if opening is None else [opening]
    behind = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    builder = DatasetBuilder(str(config.source), "text", tokenizer, side.stop_ids, length)
    specials = rows and config.special_tokens == "read"
    most = config.tokens if config.tokens is not None else _ENDLESS
    held = _ENDLESS if config.tokens is None else max(round(most * config.validation), length)

    def add(texts: Iterator[Text], left: dict[bool, int]) -> None:
        """Until there is enough to learn from and, by its own measure, enough that is held out."""
        while max(left.values()) > 0 and (some := list(itertools.islice(texts, _AT_ONCE))):
            some = [text for text in some if left[text[2]] > 0]
            encoded = tokenizer.encode_batch([text for text, _, _ in some], specials)
            for ids, (_, at, held_out) in zip(encoded, some, strict=True):
                ids_N = np.array([*before, *ids, *behind][: max(left[held_out], 0)], np.int64)
                left[held_out] -= len(ids_N)
                for begin, first, end in windows(len(ids_N) - 1, length, length):
                    window = ids_N[begin : end + 1]
                    learned = np.arange(begin, end + 1) > first
                    builder.add(window, learned, len(window), str(config.source), at, held_out)
            read(len(some))

    of_its_own = rows or config.validation_source is not None or config.validation == 0
    add(texts, {False: most, True: 0 if of_its_own else held})
    if rows and not config.validation_source:
        builder.split(config.validation)
    add(_measured_on(config), {False: 0, True: _ENDLESS})
    return builder.build(skipped)
