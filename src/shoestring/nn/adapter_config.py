"""Configs of the two bottlenecks: the input adapter for external embeddings, and the one inside blocks. Torch-free."""

from __future__ import annotations

from pydantic import Field

from shoestring.core.config import Config
from shoestring.data.external_config import ExternalConfig


class InputAdapterConfig(Config):
    """Adds another model's embeddings to ours (EfficientLM), built by `nn.input_adapter.InputAdapter`."""

    external_width: int = Field(gt=0, description="width E of the external embeddings; 384 for all-MiniLM-L6-v2")
    width: int = Field(64, gt=0, description="inner width of the bottleneck")
    source: ExternalConfig | None = Field(
        None, description="the model that gives the vectors; null: whoever calls the decoder gives them"
    )

    def parameters(self, width: int) -> int:
        """Of a model of width D: down E × r, up r × D. No biases: where there is no vector, nothing is added."""
        return self.external_width * self.width + self.width * width


class BottleneckConfig(Config):
    """A transfer adapter behind each sublayer (Houlsby, arXiv 1902.00751), built by `nn.bottleneck.Bottleneck`."""

    width: int = Field(64, gt=0, description="inner width of the bottleneck")

    def parameters(self, width: int) -> int:
        """Of one bottleneck in a model of width D, biases included; a block has two."""
        return 2 * width * self.width + self.width + width
