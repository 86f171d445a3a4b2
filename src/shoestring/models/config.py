"""The config of a decoder: sizes, and one config for each kind of part. Torch-free.

`parameters()` counts from the shapes alone, so that a recipe can be sized and refused before torch is imported;
a test holds it to what the builder really allocates.
"""

from __future__ import annotations

from pydantic import Field

from shoestring.core.config import Config
from shoestring.nn.config import GQAConfig, RopeConfig, SwiGLUConfig


class ModelConfig(Config):
    """A pre-norm decoder, built by `models.builder.build`."""

    vocabulary: int = Field(gt=0, description="rows V of the embedding")
    width: int = Field(gt=0, description="model width D")
    layers: int = Field(gt=0)
    context: int = Field(gt=0, description="longest sequence that the model is meant for, in tokens")
    attention: GQAConfig
    feed_forward: SwiGLUConfig
    position: RopeConfig = RopeConfig()
    norm_epsilon: float = Field(1e-5, gt=0)
    tied_head: bool = Field(True, description="the output head is the embedding matrix")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of fresh weights")

    def parameters(self) -> dict[str, int]:
        """Parameters by part; the values add up to the whole model."""
        d, a, f = self.width, self.attention, self.feed_forward
        queries, keys = a.heads * a.head_width, a.kv_heads * a.head_width
        attention = d * queries * 2 + d * keys * 2
        attention += (queries + 2 * keys) * a.qkv_bias + d * a.output_bias + 2 * a.head_width * a.qk_norm
        feed_forward = 3 * d * f.width + (2 * f.width + d) * f.bias
        return {
            "embedding": self.vocabulary * d,
            "attention": self.layers * attention,
            "feed-forward": self.layers * feed_forward,
            "norms": (2 * self.layers + 1) * d,
            "head": 0 if self.tied_head else self.vocabulary * d,
        }

    def parameter_count(self) -> int:
        return sum(self.parameters().values())
