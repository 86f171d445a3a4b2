"""The section `data` of a fine-tuning recipe: which examples, how they are read, and what is learned from them.

Torch-free, so that a mistake in a recipe is reported before anything heavy is imported.
"""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from shoestring.core.config import Config

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt", "text"]
# What rows may call otherwise (`columns`).
COLUMNS = (
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history", "system", "tools",
    "text",
)  # fmt: skip
Supervise = Literal["assistant", "last", "all"]
OnBadLine = Literal["stop", "skip"]
Layout = Literal["packed", "padded", "flat", "grouped"]


class ExamplesConfig(Config):
    """Some of the examples of a mixture."""

    source: str = Field(min_length=1, description="as data.source")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="share of the tokens of an epoch, in any unit")
    format: Format = Field("auto", description="as data.format")
    columns: dict[str, str] = Field({}, description="as data.columns")


class SupervisedDataConfig(Config):
    """Built by `supervise.build_dataset` and, from `layout` on, by `batches`."""

    source: str | None = Field(
        None,
        min_length=1,
        description="a .jsonl, .json, .csv, .tsv (also .gz, .zst) or .parquet file, a folder or a glob of them, alpaca,"
        " gsm8k, hf:OWNER/NAME, or exercises:KIND, made on the spot (`shoestring data make`)",
    )
    mixture: tuple[ExamplesConfig, ...] = Field(
        (),
        description="several sources instead of one: [{source: sums/, weight: 1}, {source: chat.jsonl, weight: 3}]; an"
        " epoch has every example, those of sources with more weight several times",
    )
    format: Format = Field("auto", description="auto: told from the first rows")
    columns: dict[str, str] = Field(
        {}, description="fields that have other names in the rows, as {prompt: Q, completion: A}; usual names are known"
    )
    template: str = Field(
        "auto",
        min_length=1,
        description="auto: the tokenizer's chat template, or a plain one when it has none;"
        " none: prompt and completion joined as they are; or a .jinja file",
    )
    supervise: Supervise = Field(
        "assistant", description="what is learned: the assistant's turns, the last one, or all"
    )
    special_tokens: Literal["read", "text"] = Field(
        "read",
        description="names of special tokens in text rows, and in prompts and completions joined as they are: read as"
        " the tokens, or text like any other; in messages they are always text",
    )
    system: str | None = Field(None, description="system message for conversations that have none")
    date: str = Field("2024-07-26", description="today's date, for templates that write it: the same on every day")
    validation: float = Field(
        0.05, ge=0, lt=1, description="share of the examples held out, chosen by a hash of the question"
    )
    validation_source: str | None = Field(None, description="a file of held-out examples, instead of a share")
    on_bad_line: OnBadLine = Field("stop", description="rows that cannot be used; skip leaves them out and counts them")
    layout: Layout = Field(
        "packed",
        description="packed: several examples in a row, apart from each other; padded: one in a row;"
        " flat: a whole microbatch end to end in one row; grouped: one in a row, of like lengths, as many as fit into"
        " the tokens of a microbatch",
    )
    longest_first: bool = Field(
        True, description="the largest batch comes first, so that memory runs out at once or not at all"
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> SupervisedDataConfig:
        if bool(self.mixture) == (self.source is not None):
            raise ValueError("give either data.source or data.mixture, and null for the other")
        if self.mixture and (self.format != "auto" or self.columns):
            raise ValueError("format and columns stand beside each source of data.mixture")
        return self

    @property
    def parts(self) -> tuple[ExamplesConfig, ...]:
        """What is read: the mixture, or the one source."""
        if self.source is None:
            return self.mixture
        return (ExamplesConfig(source=self.source, format=self.format, columns=self.columns),)

    @property
    def named(self) -> str:
        """What is read, for a person."""
        return " + ".join(part.source for part in self.parts)

    @field_validator("date")
    @classmethod
    def _is_date(cls, value: str) -> str:
        datetime.date.fromisoformat(value)
        return value
