"""The recipe of a fine-tuning run: what every run has, and the method, the examples, what is preserved. Torch-free.

`finetune_recipe` fills in what depends on the method (the learning rate) before anything is checked, so that the recipe
saved beside the results says everything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config, load_config
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.yaml_document import YamlDocument
from shoestring.data.supervised.config import SupervisedDataConfig
from shoestring.evaluate.suite.question import ITEMS
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config
from shoestring.train.config import BudgetConfig
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.recipe import RunRecipe, TrainSection
from shoestring.train.recipe_files import is_built_in, load_run_recipe, recipe_job
from shoestring.train.schedule_config import CosineConfig, ScheduleConfig

Method = Literal["lora", "dora", "qlora", "full"]
Base = Literal["nf4", "int4", "int8"]
Weights = Literal["source", "float32", "bfloat16", "int8", "int4", "nf4"]

# Adapters start from zero and bear about ten times the rate of whole weights.
_LEARNING_RATES: dict[str, float] = {"lora": 5e-4, "dora": 5e-4, "qlora": 5e-4, "full": 5e-5}
DEFAULT_EPOCHS = 3.0
EVERYDAY = "everyday"  # in the place of preserve.source: examples that the model makes (`finetuning.everyday`)
STREAMED = "asks thousands of tokens of the model, each of which would read streamed layers from disk"
# Settings that are given often have a flag, and a keyword in Python, of their own.
SHORT = {
    "method": "adapter.method", "rank": "adapter.rank", "batch_size": "train.batch_rows", "steps": "train.steps",
    "epochs": "train.epochs", "time": "train.time", "columns": "data.columns", "on_bad_line": "data.on_bad_line",
    "preserve": "preserve.source", "memory": "budget.memory", "compute": "precision.compute",
    "evaluate": "evaluate.suite", "out": "out",
}  # fmt: skip


class AdapterSection(Config):
    """What is trained. Builds `nn.lora_config.LoRAConfig` and, for qlora, the quantized base."""

    method: Method = Field("lora", description="lora, dora, qlora (LoRA on a quantized base) or full (every weight)")
    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha/rank; null: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    rank_stabilized: bool = Field(False, description="scale by alpha/√rank instead")
    modules: tuple[str, ...] | None = Field(None, description="linears to adapt, as q_proj; null: all of the blocks")
    base: Base = Field("int4", description="how qlora keeps the frozen weights: nf4 is smallest, int8 closest")

    def lora(self) -> LoRAConfig | None:
        """None for full."""
        if self.method == "full":
            return None
        return LoRAConfig(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            rank_stabilized=self.rank_stabilized,
            dora=self.method == "dora",
        )


class FinetuneTrainSection(TrainSection):
    """How long, in what portions, and how many examples are looked at on the way."""

    lengths: ClassVar[tuple[str, ...]] = ("steps", "epochs", "time")

    epochs: float | None = Field(None, gt=0, description="passes over the training examples")
    batch_tokens: int = Field(1024, gt=0, description="tokens of one optimizer step, rounded up to whole rows")
    batch_rows: int | None = Field(
        None, gt=0, description="rows of an optimizer step, in place of batch_tokens; with data.layout padded, examples"
    )
    sequence_length: int | None = Field(
        None, gt=0, description="tokens of a row; longer examples are cut; null: the longest example, 256 to 2048"
    )
    microbatch: int | None = Field(None, gt=0, description="rows computed at once; null: about 512 tokens")
    evaluate_examples: int | None = Field(128, gt=0, description="held-out examples read each time; null: all")
    patience: int | None = Field(3, gt=0, description="evaluations without a better one that end the run; null: none")
    keep: int = Field(1, gt=0, description="newest checkpoints kept, beside the best")
    answers: int = Field(3, ge=0, description="held-out questions answered before and after")


class FinetuneBudgetConfig(BudgetConfig):
    """And how layers are streamed."""

    weights: Weights = Field("source", description="how streamed layers are kept on disk; source: as in the model")
    inputs: Literal["auto", "memory", "disk"] = Field(
        "auto", description="where streaming keeps the inputs of layers; auto: on disk only if memory does not suffice"
    )
    slots: int | None = Field(
        None, ge=2, description="layers in memory while streaming; null: as many as fit, 2 if no memory is given"
    )


class PreserveConfig(Config):
    """Ordinary examples on which the model's predictions are held near the base's. Built by `finetune.preserve`."""

    source: str | None = Field(
        None,
        min_length=1,
        description="examples as in data.source; everyday: what the model says to everyday questions; null: none",
    )
    weight: float = Field(1.0, gt=0, description="of KL(base ‖ tuned), in nats per token, beside the loss")
    tokens: int = Field(256, gt=0, description="of these examples at a time, in each process")
    every: int = Field(1, gt=0, description="optimizer steps from one with these examples to the next")


class EvaluateConfig(Config):
    """What the model can do, before and after. Asked by `finetuning.suite_scores`."""

    suite: Literal["core"] | None = Field(None, description="questions put to the model before and after; null: none")
    items: int = Field(ITEMS, ge=1, le=ITEMS, description="questions of each category of the suite")
    only: tuple[str, ...] = Field((), description="categories or groups of the suite; none named: all")

    @model_validator(mode="after")
    def _known(self) -> EvaluateConfig:
        if self.suite is None and (self.only or self.items != ITEMS):
            raise ValueError("items and only are of a suite, and evaluate.suite is null: give --evaluate core")
        if self.only:
            from shoestring.evaluate.suite.categories.every import CATEGORIES, GROUPS

            for name in self.only:
                if name not in GROUPS and name not in {category.name for category in CATEGORIES}:
                    groups = ", ".join(GROUPS)
                    raise ValueError(f"only: no category or group {name!r}; the groups are {groups}")
        return self


class FinetuneRecipe(RunRecipe):
    """One run. Run by `finetuning.job.finetune`."""

    writes_samples: ClassVar[bool] = True

    job: Literal["finetune"] = "finetune"
    model: str = Field(min_length=1, description="a model folder, a run, or a name that `shoestring get` knows")
    data: SupervisedDataConfig
    train: FinetuneTrainSection
    schedule: ScheduleConfig = CosineConfig(warmup=0.05)
    budget: FinetuneBudgetConfig = FinetuneBudgetConfig()
    adapter: AdapterSection = AdapterSection()
    preserve: PreserveConfig = PreserveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @classmethod
    def called_elsewhere(cls, name: str, keys: list[str]) -> str | None:
        if name == "stages":
            return "stages are of pretraining recipes: fine-tuning reads whole examples, with a model that is there"
        return super().called_elsewhere(name, keys)

    @model_validator(mode="after")
    def _possible(self) -> FinetuneRecipe:
        method, budget = self.adapter.method, self.budget
        if method == "full" and (budget.engine == "streamed" or budget.weights != "source"):
            raise ValueError("budget: only adapters train while layers are streamed, not every weight (adapter.method)")
        if budget.engine in ("resident", "checkpointed") and budget.weights != "source":
            raise ValueError(f"budget.weights is for streamed layers, and budget.engine is {budget.engine}")
        if method == "qlora" and budget.weights not in ("source", self.adapter.base):
            raise ValueError(f"budget.weights {budget.weights} and adapter.base {self.adapter.base} differ")
        streams = budget.engine == "streamed" or budget.weights != "source"
        if self.evaluate.suite is not None and streams:
            raise ValueError(f"evaluate.suite {STREAMED}")
        if isinstance(self.optimizer, AdamWConfig) and self.optimizer.scaling == "mup":
            raise ValueError("optimizer.scaling mup is for weights that begin fresh, in pretraining")
        if self.preserve.source is not None and (method == "full" or streams):
            raise ValueError("preserve needs the base in memory beside an adapter: not full, nor streamed layers")
        if self.preserve.source is not None and self.optimizer.in_backward:
            raise ValueError("optimizer.in_backward takes one pass backward, and preserve adds another to a step")
        if self.preserve.source == EVERYDAY and self.preserve.tokens < 96:
            raise ValueError("preserve.tokens must be 96 or more for everyday questions and answers")
        if method != "full" and self.precision.saved != "auto":
            raise ValueError("precision.saved is for whole models (adapter.method full); merge has its own --dtype")
        if self.precision.fp8 is not None and method != "full":
            raise ValueError(f"precision.fp8 is for weights that are trained, and adapter.method {method} freezes them")
        if self.precision.compute == "float16" and streams:
            raise ValueError("precision.compute float16 is for models in memory: streamed layers take bfloat16")
        if self.precision.around != "float32":
            raise ValueError("precision.around is for weights that are trained: beside frozen ones in int8 is float32")
        if self.precision.compute == "int8" and self.frozen_kind() != "int8":
            raise ValueError("precision.compute int8 needs frozen weights in int8: not full, nor another adapter.base")
        if self.quantize is not None:
            self._can_be_quantized()
        return self

    def _can_be_quantized(self) -> None:
        """Raises ValueError."""
        adapter = self.adapter
        if adapter.method in ("qlora", "dora"):
            why = {
                "qlora": "rounds the base alone: take method lora, where base and adapter are rounded together",
                "dora": "learns lengths of rows that are no longer there once they are rounded: take method lora",
            }
            raise ValueError(f"quantize: adapter.method {adapter.method} {why[adapter.method]}")
        if adapter.method == "lora" and adapter.dropout:
            raise ValueError("quantize rounds base and adapter together, where adapter.dropout has no place of its own")
        if self.budget.weights != "source":
            raise ValueError("quantize is for models in memory: budget.weights is for streamed layers")
        if self.evaluate.suite is not None:
            raise ValueError(
                "evaluate.suite would be asked of weights that are not rounded: quantize the model first, and then"
                " evaluate it"
            )

    def frozen_kind(self) -> Base | None:
        """How the blocks' frozen weights are kept in memory: int8, int4, nf4, or None for floats."""
        if self.adapter.method == "full":
            return None
        if self.adapter.method == "qlora":
            return self.adapter.base
        if self.budget.weights in ("int8", "int4", "nf4"):
            return self.budget.weights
        return "int8" if self.precision.compute == "int8" else None

    def halves_base(self) -> bool:
        """Whether frozen weights are kept in bfloat16. DoRA's lengths are of the weights in float32, and so are codes
        that are trained."""
        plain = self.adapter.method == "lora" and self.frozen_kind() is None and self.quantize is None
        return plain and self.precision.compute == "bfloat16"

    def frozen_config(self) -> Int8Config | Int4Config | NF4Config | None:
        """What the blocks' frozen linears become, None for floats."""
        kind = self.frozen_kind()
        if kind == "int8":
            return Int8Config(compute="int8" if self.precision.compute == "int8" else "float")
        return None if kind is None else Int4Config() if kind == "int4" else NF4Config()


def is_finetune_recipe(text: str | Path) -> bool:
    """Whether what stands in a MODEL's place names a recipe: a built-in one for fine-tuning, or a YAML file."""
    if is_built_in(text):
        return recipe_job(text) == "finetune"
    return str(text).endswith((".yaml", ".yml"))


def finetune_recipe(model: str, source: str | None = None, settings: dict[str, Any] | None = None) -> FinetuneRecipe:
    """A whole recipe from a model, a data source and dotted settings (text is read as YAML). Raises ConfigError.

    model: or a recipe, by name or file, which the source and the settings change.
    """
    settings = {key: value for key, value in (settings or {}).items() if value is not None}
    if "train.batch_rows" in settings and "train.batch_tokens" in settings:
        raise ConfigError(
            f"train.batch_rows and train.batch_tokens are both sizes of a step {GIVEN.get()}", hint="give one of them"
        )
    if is_finetune_recipe(model):
        if source is not None:
            settings["data.source"] = json.dumps(source)  # a string, whatever else it looks like in YAML
        return load_finetune_recipe(model, settings)
    method = str(settings.get("adapter.method", "lora"))
    values: dict[str, Any] = {
        "model": model,
        "data": {} if source is None else {"source": source},
        "train": {},
        "optimizer": {},
    }
    if settings.get("optimizer.kind", "adamw") == "adamw":  # others have usual settings of their own
        values["optimizer"] = {
            "learning_rate": _LEARNING_RATES.get(method, 5e-4), "betas": [0.9, 0.99], "weight_decay": 0.0,
        }  # fmt: skip
    if not any(f"train.{name}" in settings for name in FinetuneTrainSection.lengths):
        values["train"]["epochs"] = DEFAULT_EPOCHS
    return load_config(FinetuneRecipe, YamlDocument(values, name=GIVEN.get()), settings)


def load_finetune_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> FinetuneRecipe:
    """A recipe by name, file or run folder, with overrides; one length given replaces its own. Raises ConfigError."""
    return load_run_recipe(FinetuneRecipe, name_or_path, overrides)
