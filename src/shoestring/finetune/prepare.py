"""From what is asked to a run that can begin: the recipe, the data, the model with its adapter, the run folder.

Everything that can be wrong is found before there is a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoestring.core import console
from shoestring.core.device import resolve_device
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.core.machine import rss_bytes
from shoestring.core.seeds import seed_everything
from shoestring.data.supervised.batches import padded_length, row_lengths
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.finetune.config import (
    EVERYDAY,
    FinetuneRecipe,
    finetune_recipe,
    is_finetune_recipe,
    load_finetune_recipe,
)
from shoestring.finetune.engine import Choice, Choose, Engine, Request
from shoestring.finetune.everyday import write_everyday
from shoestring.finetune.examples import prepare_dataset
from shoestring.finetune.preserve import ordinary_examples
from shoestring.models.adapters import attach, halve_bases, without_adapters
from shoestring.models.decoder import Decoder
from shoestring.models.folder import (
    GenerationDefaults,
    read_config,
    read_generation_config,
)
from shoestring.models.peft_folder import is_adapter, load_adapter
from shoestring.models.resolve import find_model
from shoestring.models.source import Source
from shoestring.models.weight_files import weight_paths
from shoestring.train import parallel
from shoestring.train.checkpoint import checkpoints, clean, read_state
from shoestring.train.metrics import truncate_metrics
from shoestring.train.run_folder import find_run, new_run, resumed_recipe, save_recipe
from shoestring.train.state import TrainerState

_SHORTEST_ROW, _LONGEST_ROW = 256, 2048  # tokens, when the recipe leaves the length open


@dataclass
class Run:
    """rows: of one optimizer step on this rank; length: tokens of a row. base: folder of the model to begin from.

    ordinary: examples on which the model is to stay as it is.
    """

    recipe: FinetuneRecipe
    out: Path
    checkpoint: Path | None
    state: TrainerState
    base: Path
    decoder: Decoder
    dataset: SupervisedDataset
    ordinary: SupervisedDataset | None
    device: torch.device
    rows: int
    length: int
    generation: GenerationDefaults
    choice: Choice

    @property
    def microbatch(self) -> int:
        """Rows computed at once."""
        return self.choice.microbatch


def open_recipe(
    model: str | Path | None, data: str | Path | None, resume: str | Path | None, changed: dict[str, Any]
) -> tuple[FinetuneRecipe, Path | None, Path | None]:
    """The recipe; of a run to resume its folder, and the checkpoint to continue from."""
    if resume is not None:
        out = find_run(resume)
        if model is not None:
            changed = {**changed, "model": str(model)}
        if data is not None:
            changed = {**changed, "data.source": str(data)}
        recipe = resumed_recipe(out, None, changed, load_finetune_recipe)
        if parallel.rank() == 0:
            clean(out)
            save_recipe(recipe, out)
        parallel.wait()
        whole = checkpoints(out)
        if parallel.rank() == 0:
            truncate_metrics(out / "metrics.jsonl", read_state(whole[-1]).step if whole else 0)
        return recipe, out, whole[-1] if whole else None
    if model is None or (data is None and not is_finetune_recipe(model)):
        hint = "finetune(MODEL, FILE), finetune(RECIPE), or resume=OUT"
        raise ConfigError("fine-tuning needs a model and data", hint=hint)
    recipe = finetune_recipe(str(model), None if data is None else str(data), changed)
    return recipe, None, None


def prepare(
    recipe: FinetuneRecipe, out: Path | None, checkpoint: Path | None, state: TrainerState, choose: Choose
) -> Run:
    """Model and data, and then the run folder: mistakes in either must not leave one. out: of a run to resume."""
    settings, device = recipe.train, resolve_device(recipe.device)
    base = find_model(recipe.model, say=say)
    if is_adapter(base):
        raise ModelFileError(
            "this is an adapter: fine-tuning begins from a whole model", str(base),
            f"merge it first: shoestring merge {recipe.model}",
        )  # fmt: skip
    context = read_config(base).context
    if settings.sequence_length is not None and settings.sequence_length > context:
        raise ConfigError(
            f"train.sequence_length ({settings.sequence_length}) is longer than the model's context ({context})"
        )
    longest = settings.sequence_length or min(context, _LONGEST_ROW)
    dataset = prepare_dataset(recipe.data, base, longest, say)
    held = recipe.preserve.source
    ordinary = None if held in (None, EVERYDAY) else ordinary_examples(str(held), recipe.preserve, base)
    length = settings.sequence_length or min(max(dataset.counts.longest, _SHORTEST_ROW), longest)
    world = parallel.world_size()
    rows = max(-(-settings.batch_tokens // (length * world)), 1)
    if settings.microbatch is not None and rows % settings.microbatch:
        raise ConfigError(f"train.microbatch ({settings.microbatch}) must divide the {rows} rows of each process")
    lengths = row_lengths(dataset, recipe.data.layout, length)
    choice = choose(Request(recipe, base, read_config(base), rows, padded_length(length), rss_bytes(), lengths))
    recipe = choice.recipe
    _check_source(base, state, checkpoint)
    seed_everything(recipe.seed)
    decoder = _load(recipe, choice.engine, base, checkpoint, device)
    generation = read_generation_config(base)
    if out is None:
        if parallel.rank() == 0:
            recipe, out = new_run(recipe, "finetune", None)
        out = Path(parallel.text_from_first(str(out)))
    if held == EVERYDAY:
        ordinary = ordinary_examples(_everyday(out, decoder, dataset, generation), recipe.preserve, base)
    return Run(
        recipe, out, checkpoint, state, base, decoder, dataset, ordinary, device, rows, length, generation, choice
    )


def _everyday(out: Path, decoder: Decoder, dataset: SupervisedDataset, generation: GenerationDefaults) -> Path:
    """What the model said to everyday questions before it was trained."""
    file = out / "everyday.jsonl"
    if parallel.rank() == 0 and not file.is_file():
        say("preserve  the model answers everyday questions, on which it is to stay as it is")
        with without_adapters(decoder):
            write_everyday(decoder, dataset.tokenizer, generation, file)
    parallel.wait()
    return file


def _check_source(base: Path, state: TrainerState, checkpoint: Path | None) -> None:
    """A run goes on with the weights that it began with. Raises ModelFileError for others."""
    source = Source.of(weight_paths(base))
    began = [event["digest"] for event in state.events if event["event"] == "source"]
    if checkpoint is None:
        state.events.append({"event": "source", "step": 0, "digest": source.digest})
    elif began and began[0] != source.digest:
        raise ModelFileError(
            "the model's weights are not those that this run began with", str(base), "put them back, or start a new run"
        )


def _load(
    recipe: FinetuneRecipe, engine: Engine, base: Path, checkpoint: Path | None, device: torch.device
) -> Decoder:
    """The model, frozen and with its adapter where there is one, fresh or from a checkpoint."""
    config = recipe.adapter.lora()
    if config is None:
        return engine.load(checkpoint or base, recipe, device)
    decoder = engine.load(base, recipe, device)
    if checkpoint is not None:
        load_adapter(decoder, checkpoint)
    else:
        attach(decoder, config, recipe.seed, recipe.adapter.modules)
    if recipe.halves_base() and not engine.streams:
        halve_bases(decoder)
    return decoder


def say(sentence: str) -> None:
    if parallel.rank() == 0:
        console.err.print(sentence)
