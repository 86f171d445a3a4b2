"""Learned absolute positions, added to the embedding (GPT-2; Vaswani et al., arXiv 1706.03762, section 3.5).

(x_BTD, context) -> x_BTD. A table of `context` rows of width D, read at each token's position within its
document, so packed documents start at row 0. Usable alone or together with rotary positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.nn.context import Context


class LearnedPositions(nn.Module):
    """Raises ValueError when a position is beyond the table: there is nothing to extrapolate with."""

    def __init__(self, positions: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(positions, width))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        positions_BT = context.positions_BT
        if positions_BT.device.type == "cpu" and int(positions_BT.max()) >= self.weight.shape[0]:
            raise ValueError(
                f"position {int(positions_BT.max())} is beyond the {self.weight.shape[0]} learned positions"
            )
        return x_BTD + F.embedding(positions_BT, self.weight)
