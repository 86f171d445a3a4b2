"""What every run's recipe says of its budget and its log. Torch-free.

Optimizer, schedule and precision have files of their own beside this one; `train.recipe` puts all together.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config
from shoestring.core.units import Bytes


class BudgetConfig(Config):
    """What the run may use, and how it keeps to that. The same result whatever the engine, up to rounding."""

    memory: Bytes | None = Field(None, description="the whole process's memory at most, as 1GB; null: no limit")
    engine: Literal["auto", "resident", "checkpointed", "streamed"] = Field(
        "auto",
        description="resident; checkpointed: blocks are computed again; streamed: frozen layers come from disk; auto:"
        " the fastest that fits",
    )
    split: tuple[tuple[int, int], ...] | None = Field(
        None,
        description="the layers of each process where they are parts of one model, as [[0, 12], [12, 24]], ends"
        " excluded; null: each has the whole model and a share of the data",
    )


class LogConfig(Config):
    """What is written while training. Built by `train.metrics` and `train.loggers`."""

    every: int = Field(1, gt=0, description="steps between lines of metrics.jsonl")
    everywhere: str | None = Field(
        None, description="a project: the next two at once, TensorBoard and Weights & Biases"
    )
    tensorboard: bool = False
    wandb: str | None = Field(None, description="project to report to")
    samples: int = Field(0, ge=0, le=16, description="texts that the model continues at each evaluation, for reports")

    @model_validator(mode="before")
    @classmethod
    def _everywhere(cls, values: Any) -> Any:
        """Both, but for one that is set apart."""
        if not isinstance(values, dict) or not isinstance(values.get("everywhere"), str):
            return values
        return {"tensorboard": True, "wandb": values["everywhere"], **values}
