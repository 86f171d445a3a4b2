"""A bottleneck for transfer (Houlsby, arXiv 1902.00751): y_BTD -> y_BTD + up(silu(down(y_BTD))).

It stands behind a sublayer, before the sum with the residual stream. `up` begins as zeros, so a fresh one changes
nothing, and a model can be given bottlenecks after pretraining and have only them trained.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.nn.adapter_config import BottleneckConfig
from shoestring.nn.linear import Linear


class Bottleneck(nn.Module):
    """[..., D] -> [..., D]."""

    def __init__(self, config: BottleneckConfig, width: int):
        super().__init__()
        self.down = Linear(width, config.width)
        self.up = Linear(config.width, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y_BTD: Tensor) -> Tensor:
        return y_BTD + self.up(F.silu(self.down(y_BTD)))
