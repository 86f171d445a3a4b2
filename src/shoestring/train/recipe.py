"""The base of every run's recipe: what pretraining, fine-tuning and later jobs share, each setting with one meaning.

A job's recipe adds its own sections (`model`, `data`, `adapter`, ...) and refuses, with a reason, what it cannot do.
Torch-free. A recipe is complete: resolved and saved beside the run's results, it says everything.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from shoestring.core.config import Config
from shoestring.core.extras import need
from shoestring.core.units import Seconds
from shoestring.nn.config import Recompute
from shoestring.train.config import BudgetConfig, LogConfig
from shoestring.train.optimizer_config import OptimizerConfig
from shoestring.train.other_names import meant
from shoestring.train.parallel_config import ParallelConfig
from shoestring.train.precision_config import PrecisionConfig
from shoestring.train.quantize_config import QuantizeSection, switched
from shoestring.train.schedule_config import CosineConfig, ScheduleConfig


def _recompute(value: Any) -> Any:
    """true and false, as the setting's name suggests."""
    return {True: "full", False: "selective"}[value] if isinstance(value, bool) else value


class TrainSection(Config):
    """How long, in what portions. Builds `train.loop.train` and the pace of a run."""

    lengths: ClassVar[tuple[str, ...]] = ("steps", "time")  # of which exactly one is given
    renamed: ClassVar[dict[str, str]] = {"checkpoint_blocks": "activation_checkpointing"}

    steps: int | None = Field(None, gt=0, description="optimizer steps")
    time: Seconds | None = Field(None, description='wall clock, as "3m"; fixes the steps from the first ones')
    batch_tokens: int = Field(gt=0, description="tokens of one optimizer step")
    sequence_length: int | None = Field(None, gt=0, description="tokens of one row")
    microbatch: int | None = Field(None, gt=0, description="rows computed at once; null: as many as are fast")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null: none")
    evaluate_every: int | None = Field(None, gt=0, description="steps; null: ten times over the run")
    checkpoint_every: int | None = Field(None, gt=0, description="steps; null: four times over the run")
    keep: int = Field(1, gt=0, description="newest checkpoints kept")
    explosion: float | None = Field(
        5.0,
        gt=0,
        description="a step whose loss is so many nats above the median of the last 100 changes nothing; null: no such"
        " limit",
    )
    rollbacks: int = Field(
        3, ge=0, description="times that a run goes back to its last checkpoint after ten steps that changed nothing"
    )
    activation_checkpointing: Annotated[Recompute, BeforeValidator(_recompute)] = Field(
        "selective",
        description="what going backward computes again: none, selective (what is cheap), or full (whole blocks: least"
        " memory, slower; also true)",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        given = [name for name in self.lengths if getattr(self, name) is not None]
        if len(given) != 1:
            names = f"{', '.join(self.lengths[:-1])} and {self.lengths[-1]}"
            raise ValueError(f"give exactly one of {names}, found {' and '.join(given) or 'none of them'}")
        return self


class RunRecipe(Config):
    """What every job's recipe has; `job` is the verb that runs it. Run by `train.run.execute`."""

    writes_samples: ClassVar[bool] = False  # whether the job has the model continue texts on the way
    divides: ClassVar[bool] = False  # whether the job's model may lie in parts (parallel.kind fsdp)

    job: str
    description: str = ""
    base: str | None = Field(None, description="the recipe that a run began with, before what was changed for it")
    model: Any  # each job says what may stand in these two
    data: Any
    train: TrainSection
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = CosineConfig()
    precision: PrecisionConfig = PrecisionConfig()
    quantize: Annotated[QuantizeSection | None, BeforeValidator(switched)] = Field(
        None,
        description="train weights as they will be kept in few bits; true: 4 bits in groups of 32; null: as they are",
    )
    parallel: ParallelConfig = ParallelConfig()
    budget: BudgetConfig = BudgetConfig()
    log: LogConfig = LogConfig()
    out: str | None = Field(None, description="run folder; null: runs/NAME-N")
    seed: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(None, gt=0, le=1024, description="CPU threads; null: torch's own choice")

    @model_validator(mode="after")
    def _predicted(self) -> RunRecipe:
        if self.budget.memory is not None and (self.precision.fp8 is not None or self.precision.compile):
            what = "compile" if self.precision.compile else "fp8"
            raise ValueError(f"budget.memory cannot be promised with precision.{what}, whose memory is not predicted")
        return self

    @model_validator(mode="after")
    def _can_write(self) -> RunRecipe:
        if self.log.samples and not self.writes_samples:
            raise ValueError(f"log.samples: pretraining and fine-tuning write samples, {self.job} does not")
        if self.log.samples and (self.precision.fp8 is not None or self.precision.compile):
            what = "compiled" if self.precision.compile else "in FP8"
            raise ValueError(f"log.samples: blocks that are {what} take the rows of training, and do not decode")
        return self

    @model_validator(mode="after")
    def _can_move_in_backward(self) -> RunRecipe:
        if self.optimizer.in_backward and self.train.clip is not None:
            raise ValueError(
                "optimizer.in_backward moves weights before the norm of all gradients is known: set train.clip null"
            )
        if self.optimizer.in_backward and self.precision.compute == "float16":
            raise ValueError(
                "optimizer.in_backward: in float16 a step is skipped when any gradient overflows, and by then others"
                " have moved"
            )
        return self

    @model_validator(mode="after")
    def _can_be_rounded(self) -> RunRecipe:
        if self.quantize is None:
            return self
        precision = self.precision
        for setting, given in (("fp8", precision.fp8 is not None), ("compile", precision.compile)):
            if given:
                raise ValueError(f"quantize and precision.{setting} both replace the blocks' products: use one of them")
        if precision.compute == "int8":
            raise ValueError("quantize rounds weights by itself, and precision.compute int8 rounds them otherwise")
        if precision.saved not in ("auto", "float32"):
            raise ValueError(
                f"precision.saved {precision.saved} would round the weights before they are quantized, to codes that"
                " were not trained: leave it auto"
            )
        if self.budget.memory is not None:
            raise ValueError("budget.memory cannot be promised with quantize, whose codes are not counted")
        if self.budget.engine == "streamed":
            raise ValueError("quantize is for models in memory: streamed layers are not rounded by it")
        return self

    @model_validator(mode="after")
    def _can_be_divided(self) -> RunRecipe:
        if self.parallel.kind != "fsdp":
            return self
        if not self.divides:
            raise ValueError(f"parallel.kind fsdp: pretraining divides a model among processes, {self.job} does not")
        optimizer, precision = self.optimizer, self.precision
        reasons = {
            f"optimizer.kind {optimizer.kind} needs whole matrices": optimizer.kind in ("muon", "adafactor"),
            "optimizer.state 8bit shares scales among numbers that would be parted": (
                optimizer.kind == "adamw" and optimizer.state == "8bit"
            ),
            "precision.fp8 replaces the blocks' products": precision.fp8 is not None,
            "precision.compile makes graphs of whole blocks": precision.compile,
            "precision.compute int8 keeps codes of whole weights": precision.compute == "int8",
            "quantize rounds whole weights": self.quantize is not None,
        }
        for reason, given in reasons.items():
            if given:
                raise ValueError(f"parallel.kind fsdp: {reason}; take ddp, or leave it out")
        return self

    @classmethod
    def called_elsewhere(cls, name: str, keys: list[str]) -> str | None:
        found = meant(name, keys)
        return None if found is None else found.hint()

    def check_packages(self) -> None:
        """Raises ConfigError for a package that the settings need and that is not installed."""
        if self.log.tensorboard:
            need("tensorboard", "log.tensorboard", "train")
        if self.log.wandb:
            need("wandb", "log.wandb", "train")
        if self.optimizer.kind == "lion":
            need("lion_pytorch", "optimizer.kind lion", "train")
