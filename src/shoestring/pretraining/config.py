"""The recipe of a pretraining run: what every run has, a model's shapes or a model to continue from, and text.

Torch-free, so that a mistake is told within a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from shoestring.core.config import Config
from shoestring.core.extras import need
from shoestring.core.yaml_document import YamlDocument
from shoestring.data.config import DataConfig
from shoestring.models.config import ModelConfig
from shoestring.train.optimizer_config import AdamWConfig, OptimizerConfig
from shoestring.train.recipe import RunRecipe, TrainSection
from shoestring.train.recipe_files import load_run_recipe

# Settings that are given often have a flag, and a keyword in Python, of their own.
SHORT = {"time": "train.time", "memory": "budget.memory", "fp8": "precision.fp8", "out": "out"}


class InitFrom(Config):
    """Continue from a model: its shapes, weights and tokenizer."""

    init: str = Field(description="a model folder, a run, or a name that `shoestring get` knows")


def _model_section(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "init" if "init" in keys else "shape"


ModelSection = Annotated[
    Annotated[InitFrom, Tag("init")] | Annotated[ModelConfig, Tag("shape")], Discriminator(_model_section)
]


class PretrainTrainSection(TrainSection):
    """How long, in what portions, and how much held-out text is read."""

    lengths: ClassVar[tuple[str, ...]] = ("steps", "tokens", "time")

    tokens: int | None = Field(None, gt=0, description="training tokens, rounded up to whole steps")
    most_epochs: float = Field(20.0, gt=0, description="passes over the text; a run of more asks before it begins")
    sequence_length: int = Field(gt=0, description="tokens of one row")  # type: ignore[assignment]
    keep: int = Field(2, gt=0, description="newest checkpoints kept")
    evaluate_tokens: int | None = Field(None, gt=0, description="held-out tokens read each time; null: all")
    final_evaluate_tokens: int | None = Field(
        None, gt=0, description="held-out tokens read after the last step; null: all"
    )

    @model_validator(mode="after")
    def _portions(self) -> PretrainTrainSection:
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_length ({self.sequence_length})"
            )
        if self.microbatch is not None and self.rows % self.microbatch:
            raise ValueError(f"microbatch ({self.microbatch}) must divide the {self.rows} rows of a batch")
        return self

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_tokens // self.sequence_length

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of a run bounded by steps or tokens; None for one bounded by time."""
        return self.steps if self.tokens is None else -(-self.tokens // self.batch_tokens)


class PretrainRecipe(RunRecipe):
    """One run. Run by `pretraining.job.pretrain`."""

    job: Literal["pretrain"] = "pretrain"
    model: ModelSection
    data: DataConfig
    train: PretrainTrainSection
    optimizer: OptimizerConfig = AdamWConfig()

    @model_validator(mode="after")
    def _possible(self) -> PretrainRecipe:
        if self.precision.compute == "int8" and self.budget.memory is not None:
            raise ValueError("budget.memory cannot be promised with trained weights in int8: codes are not counted")
        if self.budget.engine == "streamed":
            raise ValueError("budget.engine: streamed layers are frozen, and pretraining trains them all")
        if isinstance(self.model, ModelConfig) and self.train.sequence_length > self.model.context:
            raise ValueError(
                f"train.sequence_length ({self.train.sequence_length}) is longer than model.context"
                f" ({self.model.context})"
            )
        return self

    def check_packages(self) -> None:
        """Also what searches a memory larger than what is searched exactly."""
        super().check_packages()
        memory = self.model.memory if isinstance(self.model, ModelConfig) else None
        if memory is not None and memory.scope == "persistent" and memory.capacity > memory.exact_entries:
            need("faiss", "model.memory.capacity beyond model.memory.exact_entries", "memory")


def load_pretrain_recipe(
    name_or_path: str | Path | YamlDocument | PretrainRecipe, overrides: dict[str, Any] | None = None
) -> PretrainRecipe:
    """A recipe by name, file or run folder, with overrides; a model to start from replaces the recipe's shapes.

    Raises ConfigError.
    """
    overrides = dict(overrides or {})
    if overrides.get("model.init") is not None:
        overrides["model"] = {"init": overrides.pop("model.init")}
    return load_run_recipe(PretrainRecipe, name_or_path, overrides)
