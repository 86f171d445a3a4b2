"""The recipe's section `data`: which text, which tokenizer, how it is split.

Torch-free, so that a mistake in a recipe is reported before anything heavy is imported.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config


class NewTokenizerConfig(Config):
    """A tokenizer to be trained on the training split."""

    vocabulary: int = Field(4096, ge=257, le=2**20, description="size, special tokens included")
    min_frequency: int = Field(2, ge=1, description="pairs seen less often are not merged")


class DataConfig(Config):
    """Documents to token shards to packed batches."""

    source: str = Field(
        "stdlib",
        min_length=1,
        description="stdlib (the running Python's source), a text file, a .jsonl(.gz, .zst) file or a folder,"
        " or a folder that `shoestring prepare` wrote",
    )
    text_field: str = Field("text", min_length=1, description="the field of a JSONL line that holds the text")
    tokenizer: NewTokenizerConfig | str = Field(
        default_factory=NewTokenizerConfig,  # type: ignore[arg-type]
        description="{vocabulary: N} trains one; a model or tokenizer folder lends its own",
    )
    validation: float = Field(
        0.05, ge=0, lt=1, description="share of the documents held out, chosen by a hash of their names"
    )
    on_bad_line: Literal["stop", "skip"] = Field(
        "stop", description="what to do with text that cannot be read; skip counts"
    )
    separate_documents: bool = Field(
        True, description="documents packed into one sequence do not see each other"
    )
    continue_documents: bool = Field(
        False,
        description="a document longer than a sequence goes on in the same row of the next step, where a memory bank"
        " finds what came before",
    )
    shard_tokens: int = Field(
        2**26, ge=1, description="tokens in a shard file, at least; the last document is kept whole"
    )
    prefetch: int = Field(2, ge=0, le=64, description="batches made ahead by a thread")

    @model_validator(mode="after")
    def _documents(self) -> DataConfig:
        if self.continue_documents and not self.separate_documents:
            raise ValueError("continue_documents needs separate_documents: rows of one segment have none to continue")
        return self
