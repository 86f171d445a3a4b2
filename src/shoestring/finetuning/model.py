"""The model of a fine-tuning run: its base as the plan keeps it, frozen, with its adapter; its shape for that plan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from shoestring.core.speeds import file_read_speed
from shoestring.data.supervised.batches import SupervisedStream, padded_length
from shoestring.finetuning.before_after import ANSWER, choose_questions
from shoestring.finetuning.config import FinetuneRecipe
from shoestring.finetuning.material import Material
from shoestring.finetuning.preserve import KEPT_BYTES
from shoestring.models.adapters import HalvedBases, attach, halve_bases
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import read_quantization
from shoestring.models.folder import load_model
from shoestring.models.peft_folder import load_adapter
from shoestring.models.weight_files import WeightFiles, weight_paths
from shoestring.offload.config import StoreFormat
from shoestring.offload.model import open_streamed, unstreamed
from shoestring.offload.packed_layers import block_linears
from shoestring.offload.pipeline.load import load_part, load_trained_part, open_streamed_part
from shoestring.offload.pipeline.place import Place
from shoestring.offload.pipeline.planned import config_of_part, filling_microbatch, refuse
from shoestring.plan.choose import usual_microbatch
from shoestring.plan.constants import MICROBATCH_TOKENS
from shoestring.plan.ranges import Stage
from shoestring.plan.shapes import EngineSpec, JobShape, Options, Packed, Training, WeightFormat
from shoestring.plan.tape import FLOAT
from shoestring.train import parallel
from shoestring.train.exact_weights import load_trained
from shoestring.train.optimizer_config import moving
from shoestring.train.planning import engines
from shoestring.train.run import say


@dataclass(frozen=True)
class Portions:
    """What a plan asks of a run's material. rows: of a step, of `padded` tokens; lengths: as `JobShape` has them;
    documents: whether a row holds several examples, or ends early. asked: questions before and after, tokens of the
    longest, and of an answer. ordinary: rows of ordinary examples that come by at most. source: the dtype of the
    model's files; packed: what all blocks have in few bits, where the model is quantized. stage: among processes that
    hold a part of the model each, where config is of a part."""

    config: ModelConfig
    rows: int
    padded: int
    lengths: tuple[float, ...] = (1.0,)
    documents: bool = True
    held_out: bool = True
    asked: tuple[int, int, int] = (0, 0, 0)
    ordinary: int = 1 << 30
    source: str = "float32"
    packed: Packed = frozenset()
    quantized: bool = False
    stage: Stage | None = None


def portions_of(recipe: FinetuneRecipe, material: Material, place: Place | None = None) -> Portions:
    """place: of the layers that this process has, where it has not all."""
    config, here = material.config, None
    if place is not None:
        config, here = config_of_part(config, place), place.holds(config, recipe.adapter.method == "full")
    return Portions(
        config, material.rows, material.padded, material.lengths, material.documents, material.held_out,
        _asked(recipe, material), _kept_rows(recipe, material), source_dtype(material.base, here),
        packed_linears_of(material.base, here), read_quantization(material.base) is not None,
        None if place is None else Stage(place.rank, place.stages),
    )  # fmt: skip


def job_shape(recipe: FinetuneRecipe, portions: Portions) -> JobShape:
    """As the plan sees the run."""
    adapter, config, held = recipe.adapter, portions.config, recipe.preserve
    lora, training = adapter.lora(), Training()
    if lora is not None:
        linears = attach(build(config, device="meta"), lora, modules=adapter.modules)
        names = frozenset(linear.split(".", 2)[2] for linear in linears)  # without blocks.NUMBER
        frozen: WeightFormat = "bfloat16" if recipe.halves_base() else recipe.frozen_kind() or "float32"
        integers = recipe.precision.compute == "int8"
        training = Training(False, lora.rank, names, lora.dora, lora.dropout > 0, frozen, integers, portions.packed)
    compared = padded_length(held.tokens) if held.source is not None else 0
    return JobShape(
        config, portions.rows, portions.padded, training, portions.source, ignored=True,
        compute=recipe.precision.settled, documents=portions.documents, compared=compared,
        kept=min(portions.ordinary * compared * config.width * FLOAT, KEPT_BYTES),
        measured=portions.held_out, asked=portions.asked, lengths=portions.lengths,
        alike=recipe.data.layout != "packed", steps=recipe.train.steps or 0, moving=moving(recipe.optimizer),
    )  # fmt: skip


def _asked(recipe: FinetuneRecipe, material: Material) -> tuple[int, int, int]:
    """Questions of the interview, tokens of the longest, and of an answer."""
    questions = choose_questions(material.dataset, recipe.data, recipe.train.answers)
    longest = max((len(question.ids) for question in questions), default=0)
    return len(questions), min(longest, max(material.config.context - ANSWER, 1)), ANSWER


def _kept_rows(recipe: FinetuneRecipe, material: Material) -> int:
    """At most so many rows of ordinary examples come by."""
    steps, every = recipe.train.steps, recipe.preserve.every
    rows = None if material.ordinary is None else len(material.ordinary.lengths)
    found = [count for count in (None if steps is None else -(-steps // every), rows) if count is not None]
    return min(found, default=1 << 30)


def options(recipe: FinetuneRecipe, portions: Portions) -> Options:
    """What the recipe leaves to the plan."""
    budget, full = recipe.budget, recipe.adapter.method == "full"
    packed = portions.quantized
    plain = recipe.preserve.source is None and recipe.quantize is None
    streams = not full and plain and not unstreamed(portions.config)
    chosen = engines(recipe, streams)
    if budget.weights != "source":
        chosen = ("streamed",)
    advice: tuple[str, ...] = ()
    if full:
        advice = ("LoRA (--method lora) takes much less than training every weight",)
    elif recipe.frozen_kind() is None and not packed:
        advice = ("so does --budget.weights int4, which rounds the frozen weights",)
    return Options(
        chosen,
        usual=usual_microbatch(portions.rows, portions.padded, MICROBATCH_TOKENS)
        if portions.stage is None
        else filling_microbatch(portions.rows, portions.padded, MICROBATCH_TOKENS, portions.stage.stages),
        microbatch=recipe.train.microbatch,
        recompute=recipe.train.activation_checkpointing,
        weights="packed" if packed else recipe.frozen_kind() or budget.weights,
        slots=budget.slots,
        spilled=None if budget.inputs == "auto" else budget.inputs == "disk",
        stage=portions.stage,
        advice=advice,
    )


def check_split(recipe: FinetuneRecipe) -> None:
    """Raises ConfigError for what is not done over several machines."""
    refuse(
        recipe,
        {
            "preserve": recipe.preserve.source is not None,
            "precision.compute int8 with adapter.method full":
                recipe.precision.compute == "int8" and recipe.adapter.method == "full",
        },
    )  # fmt: skip


def stream_of(recipe: FinetuneRecipe, material: Material, microbatch: int) -> SupervisedStream:
    """The training examples of this process, in the order of the run."""
    world = parallel.shares()
    return SupervisedStream(
        material.dataset, material.length, microbatch, material.rows * world, recipe.data.layout, recipe.seed, "train",
        parallel.share(), world, recipe.data.longest_first,
    )  # fmt: skip


def steps_of(recipe: FinetuneRecipe, material: Material, stream: SupervisedStream, microbatch: int) -> int | None:
    """Optimizer steps of the run, None where `train.time` bounds it."""
    if recipe.train.epochs is None:
        return recipe.train.steps
    rows = material.rows
    each = rows // microbatch if recipe.data.layout == "grouped" else rows  # samples of a step
    return max(round(recipe.train.epochs * stream.samples_per_epoch / (each * parallel.shares())), 1)


def adapted_model(
    recipe: FinetuneRecipe, spec: EngineSpec, material: Material, checkpoint: Path | None, device: torch.device,
    place: Place | None = None,
) -> Decoder:  # fmt: skip
    """The model of the plan, fresh or from a checkpoint; frozen with its adapter, or whole. place: of the layers of it
    that this process has, where it has not all."""
    config, base = recipe.adapter.lora(), material.base
    if config is None:
        if place is not None:
            return load_trained_part(checkpoint or base, place, device)
        return load_model(base, device, torch.float32) if checkpoint is None else load_trained(checkpoint, device)
    if spec.engine == "streamed":
        weights: StoreFormat = "source" if spec.weights == "packed" else spec.weights
        compute: Literal["int8", "float"] = "int8" if recipe.precision.compute == "int8" else "float"
        how: dict[str, Any] = {"slots": spec.slots, "device": device, "say": say, "compute": compute}
        decoder: Decoder = (
            open_streamed(base, weights, **how)
            if place is None
            else open_streamed_part(base, place, weights, **how, keeps=spec.keeps)
        )
    elif place is not None:
        decoder = load_part(base, place, device, torch.float32, recipe.frozen_config(), say=say)
    elif recipe.halves_base():
        halved = HalvedBases(material.config, recipe.adapter.modules)
        decoder = load_model(base, device, torch.float32, as_read=halved)
    else:
        decoder = load_model(base, device, torch.float32, recipe.frozen_config())
    if checkpoint is not None:
        load_adapter(decoder, checkpoint)
    else:
        attach(decoder, config, recipe.seed, recipe.adapter.modules)
    if recipe.halves_base() and spec.engine != "streamed":
        halve_bases(decoder)
    return decoder


@functools.cache
def read_speed(base: Path) -> float:
    """Of the disk that holds the model, in bytes per second."""
    return file_read_speed(max(weight_paths(base), key=lambda path: path.stat().st_size))


def source_dtype(base: Path, held: Callable[[str], bool] | None = None) -> str:
    """The dtype of the model's embedding on disk, or of its scales. held: of which parameters the folder has, where it
    may lack some; then of its first tensor."""
    with WeightFiles(base, packed=True, held=held) as files:
        first = "embedding.weight" if held is None else next(iter(files.places))
        return str(files.dtype_of(first)).removeprefix("torch.")


def packed_linears_of(base: Path, held: Callable[[str], bool] | None = None) -> Packed:
    """Those that the model's files have in few bits."""
    with WeightFiles(base, packed=True, held=held) as files:
        return frozenset(block_linears(files).items())
