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
from shoestring.pretraining import stages_config
from shoestring.pretraining.stages_config import Portion, StageConfig
from shoestring.train.optimizer_config import AdamWConfig, OptimizerConfig
from shoestring.train.parallel_config import why_whole
from shoestring.train.precision_config import TRANSFORMER_ENGINE
from shoestring.train.recipe import RunRecipe, TrainSection
from shoestring.train.recipe_files import load_run_recipe
from shoestring.train.stages import stage_steps, steps_for

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
    keep_best: bool = Field(False, description="keep the checkpoint of the lowest held-out loss too, as OUT/best")
    evaluate_tokens: int | None = Field(None, gt=0, description="held-out tokens read each time; null: all")
    final_evaluate_tokens: int | None = Field(
        None, gt=0, description="held-out tokens read after the last step; null: all"
    )
    stages: tuple[StageConfig, ...] = Field(
        (),
        description="first stages, cheaper ones: [{until: 0.3, sequence_length: 256, batch_tokens: 2048, layers: 6}]",
    )

    @model_validator(mode="after")
    def _portions(self) -> PretrainTrainSection:
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_length ({self.sequence_length})"
            )
        if self.microbatch is not None and self.rows % self.microbatch:
            raise ValueError(f"microbatch ({self.microbatch}) must divide the {self.rows} rows of a batch")
        if self.stages:
            stages_config.check_portions(self.stages, self.portions[-1])
            stages_config.check_order(self.stages, self.planned_steps)
        return self

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.batch_tokens // self.sequence_length

    @property
    def portions(self) -> list[Portion]:
        """What each stage takes, the recipe's own last; that one alone where there are no others."""
        own = Portion(self.sequence_length, self.batch_tokens, self.microbatch, None)
        return stages_config.portions(self.stages, own)

    @property
    def stage_ends(self) -> tuple[float, ...]:
        """As `train.stages` takes them."""
        return tuple(stage.until for stage in self.stages)

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of a run bounded by steps or tokens; None for one bounded by time."""
        if self.tokens is None:
            return self.steps
        return steps_for(self.tokens, self.stage_ends, [portion.batch_tokens for portion in self.portions])

    @property
    def planned_tokens(self) -> int | None:
        """All that is read in these steps."""
        steps = self.planned_steps
        if steps is None:
            return None
        counts = stage_steps(self.stage_ends, steps)
        return sum(n * portion.batch_tokens for n, portion in zip(counts, self.portions, strict=True))


class PretrainRecipe(RunRecipe):
    """One run. Run by `pretraining.job.pretrain`."""

    writes_samples: ClassVar[bool] = True
    divides: ClassVar[bool] = True

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
        if isinstance(self.optimizer, AdamWConfig) and self.optimizer.scaling == "mup":
            self._scales()
        if isinstance(self.model, ModelConfig) and self.train.sequence_length > self.model.context:
            raise ValueError(
                f"train.sequence_length ({self.train.sequence_length}) is longer than model.context"
                f" ({self.model.context})"
            )
        cut = any(portion.sequence_length != self.train.sequence_length for portion in self.train.portions)
        if cut and (self.data.packing != "concatenate" or self.data.on_the_fly or self.data.mixture):
            raise ValueError(
                "train.stages with another sequence_length cut rows of data.packing concatenate, of one source that is"
                " prepared: give all stages the same"
            )
        if self.parallel.kind == "fsdp":
            self._divides()
        if self.train.stages:
            stages_config.check_depth(self.train.stages, self.model if isinstance(self.model, ModelConfig) else None)
            self._stages_possible()
        return self

    def _divides(self) -> None:
        if isinstance(self.model, ModelConfig) and (why := why_whole(self.model)):
            raise ValueError(f"parallel.kind fsdp: {why}; take ddp")
        if any(stage.layers is not None for stage in self.train.stages):
            raise ValueError("parallel.kind fsdp: a model that is in parts does not grow; leave out layers of stages")

    def _scales(self) -> None:
        model = self.model
        if isinstance(model, InitFrom):
            raise ValueError("optimizer.scaling mup says how fresh weights begin, and model.init has weights")
        others = {
            f"attention of kind {model.attention.kind}": model.attention.kind != "gqa",
            "a mixture of experts": model.feed_forward.kind == "moe",
            f"linears of kind {model.linear.kind}": model.linear.kind != "dense",
            "model.memory": model.memory is not None,
            "model.bottleneck": model.bottleneck is not None,
            "model.input_adapter": model.input_adapter is not None,
        }
        if found := [name for name, there in others.items() if there]:
            raise ValueError(f"optimizer.scaling mup is not worked out for {found[0]}: its widths do not grow alike")

    def _stages_possible(self) -> None:
        if self.data.continue_documents:
            raise ValueError(
                "data.continue_documents keeps each document in its row, and train.stages change the rows: use one"
            )
        memory = self.model.memory if isinstance(self.model, ModelConfig) else None
        if memory is not None and memory.scope == "persistent":
            raise ValueError("a persistent model.memory is kept for rows that stay the same: leave out train.stages")
        grows = any(stage.layers is not None for stage in self.train.stages)
        scaled = self.precision.fp8 is not None and self.precision.fp8.recipe in TRANSFORMER_ENGINE
        if grows and (self.precision.compile or scaled or self.quantize is not None):
            what = "precision.compile" if self.precision.compile else "precision.fp8 by TransformerEngine"
            what = "quantize" if self.quantize is not None else what
            raise ValueError(f"{what} makes blocks that cannot be copied: leave it out, or the layers of stages")

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
