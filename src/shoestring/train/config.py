"""The recipe: everything that a training run needs, in one strict, complete, torch-free config.

Sections are the design's: `model`, `data`, `train`, `optimizer`, `schedule`, `precision`, `budget`, `log`,
`out`, `seed`. The class that each section builds is named in its docstring.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from shoestring.core.config import Config
from shoestring.core.units import Bytes, Seconds
from shoestring.data.config import DataConfig
from shoestring.models.config import ModelConfig
from shoestring.nn.config import Recompute


class InitFrom(Config):
    """Continue from a model: its shapes, weights and tokenizer."""

    init: str = Field(description="a model folder, a run, or a name that `shoestring get` knows")


def _model_section(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "init" if "init" in keys else "shape"


ModelSection = Annotated[
    Annotated[InitFrom, Tag("init")] | Annotated[ModelConfig, Tag("shape")], Discriminator(_model_section)
]


def _recompute(value: Any) -> Any:
    """true and false, as the setting's name suggests."""
    return {True: "full", False: "selective"}[value] if isinstance(value, bool) else value


class TrainConfig(Config):
    """How long, in what portions. Builds `train.loop.train` and `train.step.ResidentStep`."""

    steps: int | None = Field(None, gt=0, description="optimizer steps")
    tokens: int | None = Field(None, gt=0, description="training tokens, rounded up to whole steps")
    time: Seconds | None = Field(None, description='wall clock, as "3m"; fixes the steps from the first ones')
    batch_tokens: int = Field(gt=0, description="tokens of one optimizer step")
    sequence_length: int = Field(gt=0, description="tokens of one row")
    microbatch: int | None = Field(None, gt=0, description="rows computed at once; null: the whole batch")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null: none")
    evaluate_every: int | None = Field(None, gt=0, description="steps; null: ten times over the run")
    evaluate_tokens: int | None = Field(None, gt=0, description="held-out tokens read each time; null: all")
    final_evaluate_tokens: int | None = Field(
        None, gt=0, description="held-out tokens read after the last step; null: all"
    )
    checkpoint_every: int | None = Field(None, gt=0, description="steps; null: four times over the run")
    keep: int = Field(2, gt=0, description="newest checkpoints kept")
    checkpoint_blocks: Annotated[Recompute, BeforeValidator(_recompute)] = Field(
        "selective",
        description="what going backward computes again: none, selective (what is cheap), or full (whole blocks:"
        " least memory, slower; also true)",
    )

    @model_validator(mode="after")
    def _portions(self) -> TrainConfig:
        lengths = [name for name in ("steps", "tokens", "time") if getattr(self, name) is not None]
        if len(lengths) != 1:
            found = " and ".join(lengths) or "none of them"
            raise ValueError(f"give exactly one of steps, tokens and time, found {found}")
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple"
                f" of sequence_length ({self.sequence_length})"
            )
        rows = self.batch_tokens // self.sequence_length
        if self.microbatch is not None and rows % self.microbatch:
            raise ValueError(f"microbatch ({self.microbatch}) must divide the {rows} rows of a batch")
        return self

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_tokens // self.sequence_length


class AdamWConfig(Config):
    """AdamW (arXiv 1711.05101), built by `train.optimizer.build_optimizer`."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="on matrices only; norms and biases are not decayed")


class CosineConfig(Config):
    """Linear warmup, then half a cosine down to `final` (arXiv 1608.03983), built by `train.schedule`."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(0.02, ge=0, description="steps, or a share of the run when below 1")
    final: float = Field(0.1, ge=0, le=1, description="last learning rate as a share of the highest")


class WSDConfig(Config):
    """Warmup, stable, decay (MiniCPM, arXiv 2404.06395), built by `train.schedule`."""

    kind: Literal["wsd"] = "wsd"
    warmup: float = Field(0.02, ge=0, description="steps, or a share of the run when below 1")
    decay: float = Field(0.2, ge=0, description="steps, or a share of the run when below 1")
    final: float = Field(0.0, ge=0, le=1, description="last learning rate as a share of the highest")


class PrecisionConfig(Config):
    """Number formats. Weights and optimizer stay in float32; `compute` is what matmuls run in."""

    compute: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="auto: the faster of the two on this machine, measured"
    )


class BudgetConfig(Config):
    """What the run may use."""

    memory: Bytes | None = Field(None, description='peak of the whole process, as "4GB"')


class LogConfig(Config):
    """What is written while training."""

    every: int = Field(1, gt=0, description="steps between lines of metrics.jsonl")
    tensorboard: bool = False
    wandb: str | None = Field(None, description="project to report to")


class Recipe(Config):
    """One run. Built by `train.pretrain.pretrain`."""

    description: str = ""
    model: ModelSection
    data: DataConfig
    train: TrainConfig
    optimizer: AdamWConfig = AdamWConfig()
    schedule: Annotated[CosineConfig | WSDConfig, Field(discriminator="kind")] = CosineConfig()
    precision: PrecisionConfig = PrecisionConfig()
    budget: BudgetConfig = BudgetConfig()
    log: LogConfig = LogConfig()
    out: str | None = Field(None, description="run folder; null: runs/NAME-N")
    seed: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(None, gt=0, description="CPU threads; null: torch's own choice")
