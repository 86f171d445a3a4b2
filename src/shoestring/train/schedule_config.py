"""How the learning rate goes over a run, in a recipe: `schedule.kind` and what each kind takes. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shoestring.core.config import Config, usual_kind


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
    """Warmup, stable, decay (MiniCPM, arXiv 2404.06395), built by `train.schedule`.

    shape sqrt: 1 - sqrt(share of the decay that is done), which falls fast at first (arXiv 2405.18392).
    """

    kind: Literal["wsd"] = "wsd"
    warmup: float = Field(0.02, ge=0, description="steps, or a share of the run when below 1")
    decay: float = Field(0.2, ge=0, description="steps, or a share of the run when below 1")
    shape: Literal["linear", "sqrt"] = Field("linear", description="of the decay: a straight line, or 1 - sqrt")
    final: float = Field(0.0, ge=0, le=1, description="last learning rate as a share of the highest")


class LinearConfig(Config):
    """Linear warmup, then a straight line down to `final` (arXiv 2502.15938), built by `train.schedule`."""

    kind: Literal["linear"] = "linear"
    warmup: float = Field(0.02, ge=0, description="steps, or a share of the run when below 1")
    final: float = Field(0.0, ge=0, le=1, description="where the line ends, a step after the last, as a share")


ScheduleConfig = Annotated[
    Annotated[CosineConfig | CosineRestartsConfig | WSDConfig | LinearConfig, Field(discriminator="kind")],
    usual_kind("cosine"),
]
