"""Config of adapters on linears: LoRA, its rank-stabilised form and DoRA. Torch-free."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from shoestring.core.config import Config


class LoRAConfig(Config):
    """A low-rank update beside a frozen linear, built by `nn.lora.LoRALinear` (arXiv 2106.09685).

    rank_stabilized: the update's scale is alpha/√rank, not alpha/rank, so that large ranks learn too (arXiv
    2312.03732). dora: the length of each row of the sum is learned apart from its direction (arXiv 2402.09353).
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha/rank; null: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into the update, while training")
    rank_stabilized: bool = Field(False, description="scale by alpha/√rank instead")
    dora: bool = Field(False, description="learn the lengths of rows apart from their directions")

    @property
    def strength(self) -> float:
        """alpha, with its default."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.strength / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)
