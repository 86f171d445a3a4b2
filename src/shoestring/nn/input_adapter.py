"""The input adapter: another model's embeddings, aligned to our tokens, added to our own embedding (EfficientLM).

(x_BTD, context) -> x_BTD + up(silu(down(external_BTE))). `up` begins as zeros, so a fresh adapter changes nothing;
there are no biases: a token with a vector of zeros, or a pass without vectors, has nothing added.
What may stand in external_BTE at token t must not have seen the text after t: `data.external` makes such vectors.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.nn.adapter_config import InputAdapterConfig
from shoestring.nn.context import Context
from shoestring.nn.linear import Linear


class InputAdapter(nn.Module):
    """Raises ValueError for vectors of another width or number."""

    def __init__(self, config: InputAdapterConfig, width: int):
        super().__init__()
        self.down = Linear(config.external_width, config.width, bias=False)
        self.up = Linear(config.width, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        external_BTE = context.external_BTE
        if external_BTE is None:
            return x_BTD
        expected = (*x_BTD.shape[:2], self.down.in_features)
        if tuple(external_BTE.shape) != expected:
            raise ValueError(f"external embeddings of shape {tuple(external_BTE.shape)}, expected {expected}")
        return x_BTD + self.up(F.silu(self.down(external_BTE.to(x_BTD.dtype)))).to(x_BTD.dtype)
