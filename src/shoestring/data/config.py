"""The recipe's section `data`: which text, which tokenizer, how it is split.

Torch-free, so that a mistake in a recipe is reported before anything heavy is imported.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config
from shoestring.data.quality.config import QualityConfig


class NewTokenizerConfig(Config):
    """A tokenizer to be trained on the training split."""

    vocabulary: int = Field(4096, ge=257, le=2**20, description="size, special tokens included")
    min_frequency: int = Field(2, ge=1, description="pairs seen less often are not merged")


class PartConfig(Config):
    """One source of a mixture."""

    source: str = Field(min_length=1, description="as data.source")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="share of the tokens read, in any unit")
    text_field: str | None = Field(None, min_length=1, description="as data.text_field")


class DataConfig(Config):
    """Documents to token shards, or straight, to packed batches."""

    source: str | None = Field(
        "stdlib",
        min_length=1,
        description="stdlib (the running Python's source), a file of text or rows, a folder or a glob of them,"
        " fineweb-edu, falcon-refinedweb, hf:OWNER/NAME, or a folder that `shoestring prepare` wrote",
    )
    mixture: tuple[PartConfig, ...] = Field(
        (), description="several sources instead of one: [{source: stdlib, weight: 1}, {source: notes/, weight: 3}]"
    )
    text_field: str | None = Field(
        None,
        min_length=1,
        description="the field of a row that holds the text; null: that of a named source, else text",
    )
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
    packing: Literal["concatenate", "best_fit"] = Field(
        "concatenate",
        description="concatenate: rows are cut from one stream, nothing is padded; best_fit: a document that fits into"
        " a row is never cut",
    )
    on_the_fly: bool = Field(
        False, description="tokenize while training, and write nothing; wants a tokenizer that exists"
    )
    quality: QualityConfig = Field(default_factory=QualityConfig, description="which documents are left out")
    separate_documents: bool = Field(True, description="documents packed into one sequence do not see each other")
    continue_documents: bool = Field(
        False,
        description="a document longer than a sequence goes on in the same row of the next step, where a memory bank"
        " finds what came before",
    )
    max_documents: int | None = Field(
        None, gt=0, description="of each source that is prepared: those kept first, the rest is left; null: all"
    )
    shard_tokens: int = Field(
        2**26, ge=1, description="tokens in a shard file, at least; the last document is kept whole"
    )
    compress: bool = Field(False, description="compress shards with zstd, in blocks that are read one by one")
    prefetch: int = Field(2, ge=0, le=64, description="batches made ahead by a thread")

    @model_validator(mode="before")
    @classmethod
    def _several(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mixture"):
            return {"source": None, **values}
        return values

    @model_validator(mode="after")
    def _together(self) -> DataConfig:
        if bool(self.mixture) == (self.source is not None):
            raise ValueError("give either data.source or data.mixture, and null for the other")
        if self.mixture and self.text_field is not None:
            raise ValueError("text_field stands beside each source of data.mixture")
        if self.continue_documents and not self.separate_documents:
            raise ValueError("continue_documents needs separate_documents: rows of one segment have none to continue")
        if self.continue_documents and (self.packing != "concatenate" or self.on_the_fly or self.mixture):
            raise ValueError("continue_documents needs packing concatenate of one source that is prepared")
        if self.packing == "best_fit" and not self.separate_documents:
            raise ValueError("packing best_fit needs separate_documents: its rows are made of unrelated documents")
        if self.on_the_fly and not isinstance(self.tokenizer, str):
            raise ValueError("on_the_fly wants data.tokenizer to name a tokenizer: training one reads all text first")
        if self.on_the_fly and self.compress:
            raise ValueError("compress is for shards, and on_the_fly writes none")
        if self.on_the_fly and self.max_documents is not None:
            raise ValueError("max_documents is for text that is prepared: on_the_fly takes every document")
        if self.on_the_fly and self.quality != QualityConfig():
            raise ValueError("quality is for text that is prepared: on_the_fly takes every document")
        return self

    @property
    def parts(self) -> tuple[PartConfig, ...]:
        """What is read: the mixture, or the one source."""
        if self.source is None:
            return self.mixture
        return (PartConfig(source=self.source, text_field=self.text_field),)

    @property
    def named(self) -> str:
        """What is read, for a person."""
        return " + ".join(part.source for part in self.parts)
