"""Configs of the attention kinds that keep latents instead of keys and values. Torch-free.

Widths of a head: content Cn, rotary Cr, value Cv; R is the latent's rank. `linears` lists the matrices that the model's
linear kind replaces; the up-projection from the latent stays dense, it is a low-rank factor already.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config


class _LatentConfig(Config):
    heads: int = Field(gt=0)
    latent_rank: int = Field(gt=0, description="R: width of what is kept of a token besides its rotary key")
    content_width: int = Field(gt=0, description="Cn: query and key components without positions, per head")
    rotary_width: int = Field(gt=0, description="Cr: components that rotary positions turn; one key for all heads")
    value_width: int = Field(gt=0, description="Cv, per head")
    query_rank: int | None = Field(None, gt=0, description="queries through a normed latent of this rank (DeepSeek)")
    bias: bool = Field(False, description="on the projections to the latents and on the output")
    rope_interleave: bool = Field(False, description="rotary pairs are neighbours in the weights (DeepSeek)")
    mscale: float = Field(1.0, gt=0, description="scores are multiplied by mscale² (DeepSeek's YaRN)")
    latent_epsilon: float = Field(1e-6, gt=0, description="of the norms over latents")

    @model_validator(mode="after")
    def _even(self) -> _LatentConfig:
        if self.rotary_width % 2:
            raise ValueError(f"rotary_width ({self.rotary_width}) must be even: rotary positions turn pairs")
        return self

    def linears(self, width: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of the matrices that the model's linear kind may replace."""
        queries = self.heads * (self.content_width + self.rotary_width)
        if self.query_rank is None:
            query = [(width, queries)]
        else:
            query = [(width, self.query_rank), (self.query_rank, queries)]
        return [*query, (width, self.latent_rank + self.rotary_width), (self.heads * self.value_width, width)]

    def parameters(self, width: int) -> int:
        """Of one layer of a model of width D, its matrices dense."""
        matrices = sum(inputs * outputs for inputs, outputs in self.linears(width))
        expand = self.latent_rank * self.heads * (self.content_width + self.value_width)
        norms = self.latent_rank + (self.query_rank or 0)
        biases = (self.query_rank or 0) + self.latent_rank + self.rotary_width + width
        return matrices + expand + norms + biases * self.bias


class MLAConfig(_LatentConfig):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), built by `nn.attention.mla`."""

    kind: Literal["mla"] = "mla"

    def cache_numbers(self) -> float:
        """Numbers that one token takes in one layer's cache."""
        return self.latent_rank + self.rotary_width


class MTLAConfig(_LatentConfig):
    """Multi-head temporal latent attention (arXiv 2505.13544), built by `nn.attention.mtla`."""

    kind: Literal["mtla"] = "mtla"
    stride: int = Field(2, gt=0, description="s: neighbouring tokens that share one place in the cache")
    rotary_scale: bool = Field(False, description="a learned factor on the rotary scores (EfficientLM)")
    part_norms: bool = Field(
        False, description="RMSNorm over the content and the rotary part of queries, and over rotary keys (EfficientLM)"
    )
    rollback: int = Field(16, ge=0, description="tokens that a cache can always be cut back by, exactly")

    @model_validator(mode="after")
    def _quarters(self) -> MTLAConfig:
        if self.latent_rank % 4:
            raise ValueError(f"latent_rank ({self.latent_rank}) must be a multiple of 4: the hypernetwork is R/4 wide")
        return self

    def parameters(self, width: int) -> int:
        """Of one layer of a model of width D, its matrices dense."""
        hypernetwork = 2 * (self.latent_rank + 1) * (self.latent_rank // 4)
        norms = (self.content_width + 2 * self.rotary_width) * self.part_norms
        return super().parameters(width) + hypernetwork + norms + self.rotary_scale

    def cache_numbers(self) -> float:
        """Numbers that one token takes in one layer's cache; the rollback's constant share is not in it."""
        return (self.latent_rank + self.rotary_width) / self.stride
