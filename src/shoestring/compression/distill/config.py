"""The recipe of a distillation: what every run has, a teacher, a student, what is read, and how the two are compared.

Torch-free. The student is a model that is there, pruned, factorized or quantized perhaps, or shapes of a fresh one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from shoestring.core.config import Config, load_config
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.yaml_document import YamlDocument
from shoestring.data.supervised.config import SupervisedDataConfig
from shoestring.models.config import ModelConfig
from shoestring.nn.lora_config import LoRAConfig
from shoestring.train.config import BudgetConfig
from shoestring.train.optimizer_config import AdamWConfig, OptimizerConfig
from shoestring.train.recipe import RunRecipe, TrainSection
from shoestring.train.recipe_files import is_built_in, load_run_recipe, read_recipe
from shoestring.train.schedule_config import CosineConfig, ScheduleConfig

MOST_SAMPLES = 255  # of a token, whose counts are bytes
DEFAULT_EPOCHS = 1.0
# Settings that are given often have a flag, and a keyword in Python, of their own.
SHORT = {
    "teacher": "teacher", "divergence": "distill.divergence", "beta": "distill.beta",
    "temperature": "distill.temperature", "labels": "distill.labels", "on_policy": "distill.on_policy",
    "cache_samples": "distill.cache_samples", "steps": "train.steps", "epochs": "train.epochs", "time": "train.time",
    "columns": "data.columns", "on_bad_line": "data.on_bad_line", "memory": "budget.memory", "out": "out",
}  # fmt: skip
# What is said about rows, and not about text.
OF_ROWS = ("format", "columns", "template", "supervise", "special_tokens", "system", "date")


class StudentFolder(Config):
    """Continue from a model: its shapes and weights, and its tokenizer where it has one."""

    init: str = Field(min_length=1, description="a model folder, a run, or a name that `shoestring get` knows")


def _student_section(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "init" if "init" in keys else "shape"


StudentSection = Annotated[
    Annotated[StudentFolder, Tag("init")] | Annotated[ModelConfig, Tag("shape")], Discriminator(_student_section)
]


class DistillDataConfig(SupervisedDataConfig):
    """What is read: text, all of which is learned, or rows as fine-tuning has them. Built by `distill.dataset`."""

    source: str | None = Field(
        None,
        min_length=1,
        description="text (files, a folder, stdlib, hf:OWNER/NAME) or rows of texts, questions or conversations, as"
        " prepare and finetune read them",
    )
    tokens: int | None = Field(None, gt=0, description="of text, read at most; null: all of it")


class DistillConfig(Config):
    """How student and teacher are compared. Built by `distill.objective`."""

    divergence: Literal["forward", "reverse", "mixture"] = Field(
        "forward",
        description="forward: KL(teacher ‖ student); reverse: KL(student ‖ teacher); mixture: the generalized"
        " Jensen-Shannon divergence of arXiv 2306.13649",
    )
    beta: float | None = Field(
        None, gt=0, lt=1, description="of mixture: near 0 like forward, near 1 like reverse; null: 0.5"
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="that both sides' logits are divided by; the loss is times its square"
    )
    labels: float = Field(0.0, ge=0, lt=1, description="share of the labels' own cross-entropy in the loss")
    on_policy: float = Field(
        0.0, ge=0, le=1, description="share of batches that the student writes itself, behind prompts of the data"
    )
    prompt_tokens: int = Field(32, gt=0, description="on-policy: beginnings of texts that are continued")
    new_tokens: int = Field(64, gt=0, description="on-policy: tokens that the student writes at most")
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="on-policy: at which the student writes")
    cache_samples: int | None = Field(
        None,
        gt=0,
        le=MOST_SAMPLES,
        description="ask the teacher once, and keep so many tokens drawn from each of its distributions (arXiv"
        " 2503.16870); null: the whole distribution, beside the student",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> DistillConfig:
        if self.beta is not None and self.divergence != "mixture":
            raise ValueError(f"beta is of divergence mixture, and divergence is {self.divergence}")
        if self.cache_samples is not None and self.divergence != "forward":
            raise ValueError(
                f"cache_samples goes with divergence forward: {self.divergence} is not linear in the teacher's"
                " probabilities, so samples of them would bias it"
            )
        if self.cache_samples is not None and self.on_policy:
            raise ValueError("cache_samples are of the data, and on_policy asks about texts that nobody has read yet")
        if not self.on_policy:
            for name in ("prompt_tokens", "new_tokens", "sampling_temperature"):
                if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for what the student writes itself, and on_policy is 0")
        return self

    @property
    def weight(self) -> float:
        """Beta of the mixture."""
        return 0.5 if self.beta is None else self.beta


class StudentAdapterConfig(Config):
    """What of the student is trained."""

    method: Literal["auto", "full", "lora"] = Field(
        "auto", description="full: every weight; lora: an adapter; auto: lora where weights are kept in few bits"
    )
    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha/rank; null: twice the rank")
    modules: tuple[str, ...] | None = Field(None, description="linears to adapt, as q_proj; null: all of the blocks")

    @model_validator(mode="after")
    def _used(self) -> StudentAdapterConfig:
        if self.method == "full" and self.model_fields_set - {"method"}:
            given = [name for name in ("rank", "alpha", "modules") if name in self.model_fields_set]
            if any(getattr(self, name) != type(self).model_fields[name].default for name in given):
                raise ValueError(f"{' and '.join(given)}: of an adapter, and method full trains every weight")
        return self

    def lora(self) -> LoRAConfig:
        return LoRAConfig(rank=self.rank, alpha=self.alpha)


class DistillTrainSection(TrainSection):
    """How long, in what portions, and how many examples are looked at on the way."""

    lengths: ClassVar[tuple[str, ...]] = ("steps", "epochs", "time")

    epochs: float | None = Field(None, gt=0, description="passes over the examples or windows")
    batch_tokens: int = Field(4096, gt=0, description="tokens of one optimizer step, rounded up to whole rows")
    sequence_length: int | None = Field(
        None, gt=0, description="tokens of a row; null: 512 of text, the longest example up to 2048 of rows"
    )
    microbatch: int | None = Field(None, gt=0, description="rows computed at once; null: about 512 tokens")
    evaluate_examples: int | None = Field(128, gt=0, description="held-out examples read each time; null: all")
    patience: int | None = Field(None, gt=0, description="evaluations without a better one that end the run")
    keep: int = Field(1, gt=0, description="newest checkpoints kept, beside the best")


class DistillBudgetConfig(BudgetConfig):
    """And where the teacher is."""

    teacher: Literal["auto", "resident", "streamed"] = Field(
        "auto", description="in memory, or read from disk layer by layer in every step; auto: that if it does not fit"
    )


class DistillRecipe(RunRecipe):
    """One run. Run by `distill.job.distill`."""

    job: Literal["distill"] = "distill"
    teacher: str = Field(min_length=1, description="a model folder, a run, an adapter, or a name that get knows")
    model: StudentSection
    data: DistillDataConfig
    train: DistillTrainSection
    distill: DistillConfig = DistillConfig()
    adapter: StudentAdapterConfig = StudentAdapterConfig()
    optimizer: OptimizerConfig = AdamWConfig(weight_decay=0.01)
    schedule: ScheduleConfig = CosineConfig(warmup=0.05)
    budget: DistillBudgetConfig = DistillBudgetConfig()

    @classmethod
    def called_elsewhere(cls, name: str, keys: list[str]) -> str | None:
        if name == "stages":
            return "stages are of pretraining recipes: distilling compares one student with one teacher"
        return super().called_elsewhere(name, keys)

    @model_validator(mode="after")
    def _possible(self) -> DistillRecipe:
        fresh = isinstance(self.model, ModelConfig)
        if self.budget.engine == "streamed":
            raise ValueError(
                "budget.engine: the student is trained in memory; budget.teacher streamed reads the teacher from disk"
            )
        if isinstance(self.optimizer, AdamWConfig) and self.optimizer.scaling == "mup":
            raise ValueError("optimizer.scaling mup is for weights that begin fresh, in pretraining")
        if self.precision.compute == "int8":
            raise ValueError("precision.compute int8: a comparison of whole distributions needs the head in floats")
        if self.precision.fp8 is not None:
            raise ValueError("precision.fp8 is of pretraining: a teacher's products have no scales of their own")
        if fresh and self.adapter.method == "lora":
            raise ValueError("adapter.method lora adapts a student that has learned something: not a fresh one")
        if self.adapter.method == "lora" and self.precision.saved != "auto":
            raise ValueError("precision.saved is for whole models (adapter.method full); merge has its own --dtype")
        if isinstance(self.model, ModelConfig):
            memory, length = self.model.memory, self.train.sequence_length
            if self.model.input_adapter is not None:
                raise ValueError("model.input_adapter takes another model's vectors, which a teacher does not see")
            if memory is not None and memory.scope == "persistent":
                raise ValueError("a persistent model.memory is kept over batches, whose teacher has none: use document")
            if length is not None and length > self.model.context:
                raise ValueError(
                    f"train.sequence_length ({length}) is longer than model.context ({self.model.context})"
                )
        return self


def is_recipe(text: str | Path) -> bool:
    """Whether what stands in a MODEL's place names a recipe: a built-in one, or a YAML file."""
    return is_built_in(text) or str(text).endswith((".yaml", ".yml"))


def student_section(student: str | Path) -> dict[str, Any]:
    """The section `model` of a student that the command names: a model, or the shapes of a recipe.

    Raises ConfigError for a recipe whose model has no shapes.
    """
    if not is_recipe(student):
        return {"init": str(student)}
    section = read_recipe(student).values.get("model")
    if not isinstance(section, dict) or "init" in section:
        raise ConfigError(
            f"the recipe {student} has no shapes of a model of its own",
            hint="give --student a model, or a recipe of pretraining, such as compact",
        )
    return dict(section)


def distill_recipe(
    recipe: str | Path | None,
    student: str | Path | None = None,
    source: str | Path | None = None,
    settings: dict[str, Any] | None = None,
) -> DistillRecipe:
    """A whole recipe: one by name or file, or none; and what the command says over it. Raises ConfigError.

    settings: dotted ones (text is read as YAML), the teacher's among them.
    """
    settings = {key: value for key, value in (settings or {}).items() if value is not None}
    if "model.init" in settings:
        student = settings.pop("model.init")
    if recipe is not None:
        if source is not None:
            settings["data.source"] = str(source)
        for name in {"data.source", "teacher"} & settings.keys():
            settings[name] = json.dumps(settings[name])  # a string, whatever else it looks like in YAML
        return _over(recipe, student, settings)
    missing = [
        name for name, there in (
            ("--teacher", "teacher" in settings), ("--student", student is not None),
            ("--data", source is not None or "data.mixture" in settings or "data.source" in settings),
        ) if not there
    ]  # fmt: skip
    if missing:
        raise ConfigError(
            f"distill needs {' and '.join(missing)}",
            hint="shoestring distill --teacher MODEL --student MODEL --data SOURCE, a recipe, or --resume OUT",
        )
    assert student is not None
    values: dict[str, Any] = {
        "teacher": settings.pop("teacher"),
        "model": student_section(student),
        "data": {} if source is None else {"source": str(source)},
        "train": {},
    }
    if not any(f"train.{name}" in settings for name in DistillTrainSection.lengths):
        values["train"]["epochs"] = DEFAULT_EPOCHS
    return load_config(DistillRecipe, YamlDocument(values, name=GIVEN.get()), settings)


def _over(recipe: str | Path, student: str | Path | None, settings: dict[str, Any]) -> DistillRecipe:
    if student is None:
        return load_distill_recipe(recipe, settings)
    shapes = {key: settings.pop(key) for key in list(settings) if key.startswith("model.")}
    if shapes:
        raise ConfigError(f"{min(shapes)} and a student are both given", hint="write the shapes into a recipe")
    return load_distill_recipe(recipe, {**settings, "model": student_section(student)})


def load_distill_recipe(
    name_or_path: str | Path | YamlDocument | DistillRecipe, overrides: dict[str, Any] | None = None
) -> DistillRecipe:
    """A recipe by name, file or run folder, with overrides; a model to start from replaces shapes. Raises
    ConfigError."""
    overrides = dict(overrides or {})
    if overrides.get("model.init") is not None:
        overrides["model"] = {"init": overrides.pop("model.init")}
    return load_run_recipe(DistillRecipe, name_or_path, overrides)
