"""Training behind a round of pruning: all weights, on the calibration source, those that are zero staying so. What is
learned is each next token, or what the whole model predicts in its place (forward KL, as in `compression.distill`).

A run as every other (`train.run`), in a folder beside the one that is being made; it is stopped and goes on as runs do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from shoestring.compression.distill.config import DistillConfig
from shoestring.compression.distill.divergence import divergence_of
from shoestring.compression.distill.objective import Distilling
from shoestring.compression.distill.teacher import Following, open_teacher
from shoestring.compression.prune.config import PruneConfig
from shoestring.compression.prune.text import Text, tokens_of
from shoestring.compression.quantize.config import LINEARS
from shoestring.core.config import Config
from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.data.order import permutation
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, read_config, read_weights, write_model_files
from shoestring.plan.shapes import JobShape, Options
from shoestring.train.checkpoint import checkpoints, read_state
from shoestring.train.config import BudgetConfig
from shoestring.train.evaluation import Evaluation
from shoestring.train.interrupt import Interrupted
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.metrics import flops_per_token
from shoestring.train.objective import Objective, next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.planning import chosen, engines, settle, this_machine
from shoestring.train.precision import loss_scale, prepared, settled
from shoestring.train.recipe import RunRecipe, TrainSection
from shoestring.train.recipe_files import load_run_recipe
from shoestring.train.resident import ResidentEngine
from shoestring.train.result import common_header, length_line
from shoestring.train.run import Opened, Wiring, execute
from shoestring.train.run_folder import RECIPE, Start, resume

RATE = 1e-4


class RecoverDataConfig(Config):
    """digest: of the text that was read from the source."""

    source: str
    digest: str


class RecoverRecipe(RunRecipe):
    job: Literal["prune"] = "prune"
    model: str
    data: RecoverDataConfig
    train: TrainSection


class Again:
    """The stream: batches in an order of their own in each epoch."""

    def __init__(self, batches: Sequence[Batch], seed: int):
        self._batches, self._seed, self._next = batches, seed, 0

    def __next__(self) -> Batch:
        epoch, place = divmod(self._next, len(self._batches))
        self._next += 1
        return self._batches[int(permutation(self._seed, epoch, len(self._batches))[place])]

    def state(self) -> dict[str, Any]:
        return {"next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        self._next = int(state["next"])


class HeldOut:
    """What is measured, as `train.evaluation` takes it."""

    def __init__(self, text: Text):
        read = text.read
        self.tokens, self.bytes, self.documents = read.labels, read.label_bytes, len(read.measured)
        self._batches = read.measured

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


class KeepZeros(Callback):
    """Weights of the blocks' matrices that are zero are zero after each step."""

    def __init__(self, decoder: Decoder):
        self._zeros = [
            (weight, weight.detach() == 0)
            for block in decoder.blocks
            for name in LINEARS
            for weight in [block.get_parameter(f"{name}.weight")]
        ]

    @torch.no_grad()
    def after_step(self, event: StepEvent) -> None:
        for weight, zero in self._zeros:
            weight.masked_fill_(zero, 0.0)


class RecoverJob:
    """A `train.run.Job`. folder: of the pruned model. masks: whether zeros stay. teacher: the folder of a model whose
    predictions are learned."""

    verb, held_out = "prune", "loss"
    help = "a lower --learning-rate may help"

    def __init__(self, folder: Path, text: Text, masks: bool, teacher: Path | None):
        self.folder, self.text, self.masks, self.teacher = folder, text, masks, teacher

    def open(self, start: Start) -> Opened:
        recipe, config = start.recipe, read_config(self.folder)
        device = resolve_device(recipe.device)
        recipe, choice = settle(recipe, *_job(recipe, config, self.text), this_machine(recipe))
        length = _size(self.text)[1]
        source = self.folder if start.checkpoint is None else start.checkpoint

        def make() -> Decoder:
            return load_model(source, device, torch.float32).requires_grad_(True)

        self.engine = ResidentEngine(
            prepared(make, recipe.precision), resolve_dtype(recipe.precision.dtype), choice.spec.recompute,
            loss_scale=loss_scale(recipe.precision),
        )  # fmt: skip
        with waiting("loading   the model"):
            self.engine.load()
        tokens = sum(map(tokens_of, self.text.training)) // len(self.text.training)
        header = common_header(
            recipe, choice.prediction, length_line(recipe, recipe.train.steps, f"about {tokens:,} tokens"), start.state
        )
        return Opened(
            recipe, self.engine, Again(self.text.training, recipe.seed), 1, recipe.train.steps,
            flops_per_token(config, length), choice.prediction, "\n".join(header),
        )  # fmt: skip

    def wire(self, out: Path, start: Start) -> Wiring:
        decoder, held_out = self.engine.decoder, HeldOut(self.text)
        evaluation = Evaluation(
            decoder, held_out, held_out, start.recipe.train.evaluate_every, start.recipe.train.batch_tokens,
            self.engine.compute,
        )  # fmt: skip
        zeros = [KeepZeros(decoder)] if self.masks else []
        write, read = functools.partial(write_model_files, decoder), functools.partial(read_weights, decoder)
        return Wiring(self._objective(), write, [*zeros, evaluation], read=read)

    def _objective(self) -> Objective:
        if self.teacher is None:
            return next_token
        with waiting("loading   the whole model, to learn from"):
            whole = open_teacher(self.teacher, False, self.engine.decoder.embedding.weight.device, self.engine.compute)
        return Distilling(Following(whole, divergence_of(DistillConfig()), temperature=1.0))


def _size(text: Text) -> tuple[int, int]:
    """Rows of the largest batch, and tokens of the longest row."""
    rows, length = (max(batch.tokens_BT.shape[axis] for batch in text.training) for axis in (0, 1))
    return rows, length


def _job(recipe: RecoverRecipe, config: ModelConfig, text: Text) -> tuple[JobShape, Options]:
    rows, length = _size(text)
    shape = JobShape(config, rows, length, ignored=True, documents=True, compute=recipe.precision.settled)
    return shape, Options(engines(recipe), rows, rows, recipe.train.activation_checkpointing)


def check_room(config: ModelConfig, run: Path, settings: PruneConfig, text: Text, memory: int) -> None:
    """Before any work: raises BudgetError where training the model of this config does not fit in `memory` bytes."""
    recipe = settled(_recipe(run, run, settings, text, 1, memory))
    chosen(recipe, *_job(recipe, config, text), this_machine(recipe))


def recovered(
    folder: Path, run: Path, settings: PruneConfig, text: Text, number: int, memory: int | None, whole: Path
) -> tuple[Path, dict[str, Any]]:
    """The pruned model in `folder` after its training in the run folder, which goes on where it was; -> the folder of
    the trained one, and what to tell of it. memory: bytes of the process at most. whole: the model that was pruned.
    Raises Interrupted, RunError, BudgetError."""
    made = checkpoints(run)
    if not made or not read_state(made[-1]).finished:
        job = RecoverJob(folder, text, settings.masks, whole if settings.recover_by == "model" else None)
        load = functools.partial(load_run_recipe, RecoverRecipe)
        if (run / RECIPE).is_file():
            start = resume(run, load, {"budget.memory": memory})
        else:
            recipe = _recipe(folder, run, settings, text, number, memory)
            start = Start(recipe, run.name, f"to recover from round {number}")
        try:
            execute(job, start)
        except Interrupted as error:
            raise Interrupted(error.message, hint="the same command goes on from there") from None
        job.engine.close()
        made = checkpoints(run)
    state = read_state(made[-1])
    return made[-1], {"steps": state.step, "tokens": state.tokens, "seconds": state.seconds}


def _recipe(
    folder: Path, run: Path, settings: PruneConfig, text: Text, number: int, memory: int | None
) -> RecoverRecipe:
    steps, seconds = settings.recovering
    rate = settings.learning_rate or RATE
    return RecoverRecipe(
        model=str(folder), data=RecoverDataConfig(source=text.read.source, digest=text.read.digest()),
        train=TrainSection(
            steps=steps, time=None if seconds is None else seconds,
            batch_tokens=max(batch.tokens_BT.numel() for batch in text.training),
        ),
        optimizer=AdamWConfig(learning_rate=rate, weight_decay=0.0), out=str(run), seed=settings.seed + number,
        budget=BudgetConfig(memory=memory),
    )  # fmt: skip
