"""Sections that every run's recipe shares: optimizer, schedule, precision, budget, log. Torch-free.

The class or function that each section builds is named in its docstring. `train.recipe` puts them together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shoestring.core.config import Config, usual_kind
from shoestring.core.units import Bytes


class AdamWConfig(Config):
    """AdamW (arXiv 1711.05101), built by `train.optimizer.build_optimizer`."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="on matrices only; norms and biases are not decayed")


OptimizerConfig = AdamWConfig  # a union by `kind` once there is a second


class CosineConfig(Config):
    """Linear warmup, then half a cosine down to `final` (arXiv 1608.03983), built by `train.schedule`."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(0.02, ge=0, description="steps, or a share of the run when below 1")
    final: float = Field(0.1, ge=0, le=1, description="last learning rate as a share of the highest")


class CosineRestartsConfig(Config):
    """Linear warmup, then the cosine several times, each from the highest rate (SGDR, arXiv 1608.03983)."""

    kind: Literal["cosine_restarts"] = "cosine_restarts"
    warmup: float = Field(0.02, ge=0, description="steps, or a share of the run when below 1")
    final: float = Field(0.1, ge=0, le=1, description="last learning rate of each cycle as a share of the highest")
    cycles: int = Field(4, gt=0, le=1000, description="how often the cosine is walked")
    growth: float = Field(1.0, ge=1, le=10, description="length of a cycle over that of the one before")


class WSDConfig(Config):
    """Warmup, stable, decay (MiniCPM, arXiv 2404.06395), built by `train.schedule`."""

    kind: Literal["wsd"] = "wsd"
    warmup: float = Field(0.02, ge=0, description="steps, or a share of the run when below 1")
    decay: float = Field(0.2, ge=0, description="steps, or a share of the run when below 1")
    final: float = Field(0.0, ge=0, le=1, description="last learning rate as a share of the highest")


ScheduleConfig = Annotated[
    Annotated[CosineConfig | CosineRestartsConfig | WSDConfig, Field(discriminator="kind")], usual_kind("cosine")
]


class PrecisionConfig(Config):
    """Number formats. Trained weights and the optimizer stay in float32; `compute` is what matmuls run in, `saved` what
    whole models are rounded to when they are written (`train.exact_weights`)."""

    compute: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "float32",
        description="auto: the faster of float32 and bfloat16 on this machine, measured; int8: matmuls of frozen"
        " weights, kept in int8",
    )
    saved: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of models that are written; auto: as in the model that the run began from, else float32"
    )

    @property
    def settled(self) -> Literal["float32", "bfloat16", "int8"]:
        """`compute` of a run that has begun, which knows what `auto` is (`train.precision`)."""
        assert self.compute != "auto"
        return self.compute

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Of everything that is not a matmul in int8."""
        return "float32" if self.settled == "int8" else self.settled


class BudgetConfig(Config):
    """What the run may use, and how it keeps to that. The same result whatever the engine, up to rounding."""

    memory: Bytes | None = Field(None, description="the whole process's memory at most, as 1GB; null: no limit")
    engine: Literal["auto", "resident", "checkpointed", "streamed"] = Field(
        "auto",
        description="resident; checkpointed: blocks are computed again; streamed: frozen layers come from disk; auto:"
        " the fastest that fits",
    )


class LogConfig(Config):
    """What is written while training. Built by `train.metrics` and `train.loggers`."""

    every: int = Field(1, gt=0, description="steps between lines of metrics.jsonl")
    tensorboard: bool = False
    wandb: str | None = Field(None, description="project to report to")
