"""The model of a fine-tuning run: its base as the plan keeps it, frozen, with its adapter; its shape for that plan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from shoestring.core.speeds import file_read_speed
from shoestring.data.supervised.batches import padded_length
from shoestring.finetuning.before_after import ANSWER, choose_questions
from shoestring.finetuning.config import FinetuneRecipe
from shoestring.finetuning.material import Material
from shoestring.finetuning.preserve import KEPT_BYTES
from shoestring.models.adapters import attach, halve_bases
from shoestring.models.builder import build
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
from shoestring.plan.shapes import EngineSpec, JobShape, Options, Packed, Training, WeightFormat
from shoestring.plan.tape import FLOAT
from shoestring.train.exact_weights import load_trained
from shoestring.train.optimizer_config import moving
from shoestring.train.planning import engines
from shoestring.train.run import say


def job_shape(recipe: FinetuneRecipe, material: Material, place: Place | None = None) -> JobShape:
    """As the plan sees the run. place: of the layers that this process has, where it has not all."""
    adapter, config, held = recipe.adapter, material.config, recipe.preserve
    here = None
    if place is not None:
        config, here = config_of_part(config, place), place.holds(config, adapter.method == "full")
    lora, training = adapter.lora(), Training()
    if lora is not None:
        linears = attach(build(config, device="meta"), lora, modules=adapter.modules)
        names = frozenset(linear.split(".", 2)[2] for linear in linears)  # without blocks.NUMBER
        frozen: WeightFormat = "bfloat16" if recipe.halves_base() else recipe.frozen_kind() or "float32"
        integers = recipe.precision.compute == "int8"
        packed = packed_linears_of(material.base, here)
        training = Training(False, lora.rank, names, lora.dora, lora.dropout > 0, frozen, integers, packed)
    compared = padded_length(held.tokens) if held.source is not None else 0
    return JobShape(
        config, material.rows, material.padded, training, source_dtype(material.base, here), ignored=True,
        compute=recipe.precision.settled, documents=material.documents, compared=compared,
        kept=min(_kept_rows(recipe, material) * compared * config.width * FLOAT, KEPT_BYTES),
        measured=material.held_out, asked=_asked(recipe, material), lengths=material.lengths,
        moving=moving(recipe.optimizer),
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


def options(recipe: FinetuneRecipe, material: Material, place: Place | None = None) -> Options:
    """What the recipe leaves to the plan."""
    budget, full = recipe.budget, recipe.adapter.method == "full"
    packed = read_quantization(material.base) is not None
    plain = recipe.preserve.source is None and recipe.quantize is None
    streams = not full and plain and not unstreamed(material.config)
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
        usual=usual_microbatch(material.rows, material.padded, MICROBATCH_TOKENS)
        if place is None
        else filling_microbatch(material.rows, material.padded, MICROBATCH_TOKENS, place.stages),
        microbatch=recipe.train.microbatch,
        recompute=recipe.train.activation_checkpointing,
        weights="packed" if packed else recipe.frozen_kind() or budget.weights,
        slots=budget.slots,
        spilled=None if budget.inputs == "auto" else budget.inputs == "disk",
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
        decoder: Decoder = (
            open_streamed(base, weights, spec.slots, device, say=say, compute=compute)
            if place is None
            else open_streamed_part(base, place, weights, spec.slots, device, say=say, compute=compute)
        )
    elif place is not None:
        decoder = load_part(base, place, device, torch.float32, recipe.frozen_config(), say=say)
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
    """The dtype of the model's embedding on disk. held: of which parameters the folder has, where it may lack some;
    then of its first tensor."""
    with WeightFiles(base, packed=True, held=held) as files:
        first = files.places["embedding.weight"] if held is None else next(iter(files.places.values()))
        return str(first.info.dtype).removeprefix("torch.")


def packed_linears_of(base: Path, held: Callable[[str], bool] | None = None) -> Packed:
    """Those that the model's files have in few bits."""
    with WeightFiles(base, packed=True, held=held) as files:
        return frozenset(block_linears(files).items())
