"""The body of /v1/completions, of /v1/embeddings and of /tokenize: texts, or token ids."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shoestring.serve.http.chat_request import Message
from shoestring.serve.http.fields import MOST_TEXTS, Asking, Body, Name

MOST_INPUTS = 2048  # of one request for vectors, as OpenAI has it
_DEFAULT_TOKENS = 16  # OpenAI's, for this endpoint

Ids = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Texts = str | Ids | Annotated[tuple[str, ...], Field(min_length=1)] | Annotated[tuple[Ids, ...], Field(min_length=1)]


class CompletionRequest(Asking):
    prompt: Texts
    max_tokens: int = Field(default=_DEFAULT_TOKENS, ge=1, description="new tokens at most")
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="log-probabilities of the tokens, and of so many of the likeliest"
    )
    echo: bool = Field(default=False, description="whether the text begins with the prompt")

    @model_validator(mode="after")
    def _possible(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo cannot be combined with logprobs: a prompt's own are not computed")
        if len(self.prompts) * self.n > MOST_TEXTS:
            raise ValueError(f"{len(self.prompts)} prompts with n {self.n} are more than {MOST_TEXTS} texts")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each by itself."""
        return each(self.prompt)


class EmbeddingRequest(Body):
    model: Name
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = Field(
        default="mean", description="of the hidden states: their mean, or that of the last token"
    )
    user: str | None = None

    @model_validator(mode="after")
    def _possible(self) -> EmbeddingRequest:
        if len(self.inputs) > MOST_INPUTS:
            raise ValueError(f"{len(self.inputs):,} inputs are more than {MOST_INPUTS:,}")
        return self

    @property
    def inputs(self) -> list[str | tuple[int, ...]]:
        return each(self.input)


class TokenizeRequest(Body):
    """Either a text or a conversation."""

    model: Name
    prompt: str | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give one of prompt and messages")
        return self


def each(given: Any) -> list[str | tuple[int, ...]]:
    """Texts and lists of ids, whether one or several were given."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return list(given)
