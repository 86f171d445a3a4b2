"""How weights are moved, in a recipe: `optimizer.kind` and what each kind takes. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shoestring.core.config import Config


class AdamWConfig(Config):
    """AdamW (arXiv 1711.05101), built by `train.optimizer.build_optimizer`."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="on matrices only; norms and biases are not decayed")


OptimizerConfig = AdamWConfig  # a union by `kind` once there is a second
