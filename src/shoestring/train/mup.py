"""Widths that learn at one rate: the maximal update parametrization for Adam (Tensor Programs V, arXiv 2203.03466).

In a model m times as wide as the base, matrices in blocks begin √m narrower and move at a rate of 1/m, so that what a
layer adds, and what a step changes of it, stays as large as at the base. Embedding and head keep both. Logits are to be
divided by m, which the gain of the last norm does: it begins at 1/m and moves at 1/m. So nothing is computed otherwise
than without, and a saved model is like any other. The decay of a matrix in each step is that of the base. The width of
a head is not scaled: keep it, and let the number of heads grow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from shoestring.models.decoder import Decoder
from shoestring.train.optimizer_config import AdamWConfig


@torch.no_grad()
def scale_fresh(decoder: Decoder, matrices: set[int], base_width: int) -> None:
    """Fresh weights as a width of this ratio begins. matrices: ids of those in blocks."""
    ratio = decoder.config.width / base_width
    for parameter in decoder.parameters():
        if id(parameter) in matrices:
            parameter.div_(math.sqrt(ratio))
    gain = getattr(decoder.norm, "weight", None)
    if gain is not None:  # of a part of a model it may be in another process
        gain.div_(ratio)


def scaled_groups(
    config: AdamWConfig,
    model: nn.Module,
    decayed: list[nn.Parameter],
    undecayed: list[nn.Parameter],
    matrices: set[int],
) -> list[dict[str, Any]]:
    """The optimizer's groups: each parameter in one, those that depend on width at rates of their own."""
    assert config.base_width is not None and isinstance(model, Decoder)
    ratio = model.config.width / config.base_width
    rate = config.learning_rate / ratio
    gain = [parameter for parameter in undecayed if parameter is model.norm.weight]
    groups = [
        {
            "params": [p for p in decayed if id(p) in matrices],
            "lr": rate,
            "weight_decay": config.weight_decay * ratio,  # of which a step takes rate times as much
        },
        {"params": [p for p in decayed if id(p) not in matrices], "weight_decay": config.weight_decay},
        {"params": gain, "lr": rate, "weight_decay": 0.0},
        {"params": [p for p in undecayed if p is not model.norm.weight], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
