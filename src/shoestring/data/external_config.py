"""Where external embeddings come from: sections of the model's input adapter. Torch-free.

They belong to the model, not to the data: whoever decodes with it must make the vectors of new tokens the same way.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shoestring.core.config import Config


class SpanEmbeddingsConfig(Config):
    """One vector for each finished span of text, from an encoder that sees both ways. See `data.external`."""

    kind: Literal["span"] = "span"
    encoder: str = Field("minilm", min_length=1, description="a name that `shoestring get` knows, or a folder")
    span: int = Field(64, gt=0, description="tokens of a span, counted from the document's beginning")


class TokenEmbeddingsConfig(Config):
    """One vector for each token, from a causal model such as Qwen3-Embedding. See `data.external_tokens`."""

    kind: Literal["token"] = "token"
    encoder: str = Field(min_length=1, description="a model that generates text or was made from one")


ExternalConfig = Annotated[SpanEmbeddingsConfig | TokenEmbeddingsConfig, Field(discriminator="kind")]
