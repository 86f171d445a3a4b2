"""What a study is, beside its recipe and its space: `study.yaml` in its folder. Torch-free and optuna-free."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config
from shoestring.core.units import Bytes, Seconds
from shoestring.evaluate.suite.question import ITEMS

Objective = Literal["loss", "bits_per_byte", "suite", "bytes", "seconds", "memory"]
OBJECTIVES: dict[str, str] = {
    "loss": "held-out loss, nats per label",
    "bits_per_byte": "held-out bits per byte",
    "suite": "share of the suite's questions answered right",
    "bytes": "of the weights that a run leaves",
    "seconds": "of training",
    "memory": "peak of the whole process, in bytes",
}
QUALITY = ("loss", "bits_per_byte", "suite")
MAXIMIZED = ("suite",)
EVALUATIONS = 10  # of a run without `train.evaluate_every`, as `train.evaluation` has it


class TrialBudget(Config):
    """How long each trial trains: by tokens, by time, or as long as the recipe says. With both, tokens are the length
    and time is the most that they may take."""

    tokens: int | None = Field(None, gt=0, description="training tokens, rounded to whole steps")
    time: Seconds | None = Field(None, description="wall clock of training")


class SuiteConfig(Config):
    """Which questions the objective `suite` asks: those of the side on which settings are chosen."""

    items: int = Field(ITEMS, ge=1, le=ITEMS, description="questions of each category")
    only: tuple[str, ...] = Field((), description="categories or groups; none named: all")


class StudyConfig(Config):
    """One study. Run by `search.run.search`."""

    recipe: str = Field(description="the recipe that it began with, by name")
    job: str
    objectives: tuple[Objective, ...] = Field(description="one, or two for a front")
    sampler: Literal["tpe", "random", "grid", "cmaes"] = Field("tpe", description="who proposes the next trial")
    pruner: Literal["hyperband", "median", "none"] = Field("hyperband", description="who ends hopeless trials early")
    trials: int = Field(20, gt=0, le=100_000, description="in all, those that failed or were pruned included")
    budget: TrialBudget = TrialBudget()
    baseline: bool = Field(True, description="whether the first trial is the recipe as it is")
    memory: Bytes | None = Field(None, description="of each trial's process")
    suite: SuiteConfig = SuiteConfig()
    keep: Literal["best", "all", "none"] = Field("best", description="whose weights stay on the disk")
    seed: int = Field(1, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _together(self) -> StudyConfig:
        if not 1 <= len(self.objectives) <= 2 or len(set(self.objectives)) != len(self.objectives):
            raise ValueError("objectives: give one, or two different ones for a front")
        if not set(self.objectives) & set(QUALITY):
            raise ValueError(f"objectives: one of them must be of quality: {', '.join(QUALITY)}")
        if len(self.objectives) == 2 and self.pruner != "none":
            raise ValueError(
                f"pruner {self.pruner}: with two objectives nobody can say early which trials are hopeless"
            )
        if "suite" in self.objectives and self.pruner != "none":
            raise ValueError(
                f"pruner {self.pruner}: the suite is asked at the end of a run, and pruning goes by its loss"
            )
        if len(self.objectives) == 2 and self.sampler == "cmaes":
            raise ValueError("sampler cmaes follows one objective: take tpe, random or grid for two")
        if self.suite != SuiteConfig() and "suite" not in self.objectives:
            raise ValueError("suite: items and only are of the objective suite")
        return self

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        return ["maximize" if name in MAXIMIZED else "minimize" for name in self.objectives]


def better(objective: str, first: float, second: float) -> bool:
    """Whether the first value is."""
    return first > second if objective in MAXIMIZED else first < second


def shown(objective: str, value: float) -> str:
    """A value with its unit."""
    from shoestring.core.units import format_bytes, format_seconds

    if objective in ("bytes", "memory"):
        return format_bytes(value)
    if objective == "seconds":
        return format_seconds(value)
    return f"{value:.1%} right" if objective == "suite" else f"{value:.4f} {_UNITS[objective]}"


_UNITS = {"loss": "nats/label", "bits_per_byte": "bits/byte"}


def from_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in given.items() if value is not None}
