"""`pretrain(recipe)`: from a recipe to a trained model in a run folder. What `shoestring pretrain` does.

Resolves the data, builds or loads the model, trains with the one loop, measures held-out text beside `xz
-9e`, and leaves a Hugging Face folder, its metrics and a plot. `resume` continues a run to bit-identical
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoestring.core import console, matmul
from shoestring.core.allocator import map_large_tensors
from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.errors import BudgetError, ConfigError, DataError, RunError
from shoestring.core.machine import matrix_peak, peak_rss_bytes
from shoestring.core.seeds import seed_everything
from shoestring.data.loader import PackedLoader, SequentialPass
from shoestring.data.shards import ShardFolder
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, write_model_files
from shoestring.models.resolve import find_model
from shoestring.train import parallel
from shoestring.train.checkpoint import Checkpoint, checkpoints, clean, read_state, restore_optimizer
from shoestring.train.config import InitFrom, Recipe
from shoestring.train.dataset import external_vectors, open_dataset
from shoestring.train.evaluation import Evaluation
from shoestring.train.interrupt import Interrupted, StopRequest
from shoestring.train.loop import NonFiniteLoss, train
from shoestring.train.memories import Memories
from shoestring.train.metrics import Metrics, flops_per_token, truncate_metrics
from shoestring.train.objective import next_token
from shoestring.train.optimizer import build_optimizer
from shoestring.train.pace import FixedSteps, Pace, TimeBudget
from shoestring.train.plot import write_plot
from shoestring.train.progress import ProgressLine
from shoestring.train.recipe import is_built_in, load_recipe, recipe_name
from shoestring.train.report import RunResult, header, planned_steps
from shoestring.train.reporters import build_reporters
from shoestring.train.run_folder import find_run, new_run, resumed_recipe, save_recipe
from shoestring.train.schedule import build_schedule
from shoestring.train.state import TrainerState
from shoestring.train.step import ResidentStep
from shoestring.train.xz import xz_bits_per_byte

_XZ_LIMIT = 30_000_000  # bytes of held-out text; xz -9e does about 3 MB a second
_PLOT = "loss.png"


def pretrain(
    recipe: str | Path | Recipe | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    **settings: Any,
) -> RunResult:
    """Train as the recipe says, or continue the run in the folder `resume` (then `recipe` may be left out).

    overrides: dotted settings, as on the command line; keywords are settings as well, with two underscores
    for a dot: `pretrain("quickstart", train__time="2m", out="runs/mine")`. Progress goes to stderr. Raises
    ConfigError, DataError, ModelFileError, RunError, and Interrupted when the user stopped the run.
    """
    changed = {**(overrides or {}), **{key.replace("__", "."): value for key, value in settings.items()}}
    parallel.start()
    map_large_tensors()
    run = _open(recipe, resume, changed)
    recipe, out = run.recipe, run.out
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    device = resolve_device(recipe.device)
    if run.checkpoint is not None and read_state(run.checkpoint).finished:
        _say(f"{out} is finished; nothing is left to train")
        return _result(run, read_state(run.checkpoint), load_model(run.checkpoint).parameter_count(), None)
    model, shards = _model_and_data(run, device)
    tokenizer = shards.tokenizer
    compute = resolve_dtype(recipe.precision.compute)
    state = TrainerState() if run.checkpoint is None else read_state(run.checkpoint)
    if not matmul.TABLE.adopt(state.matmul):
        _say(matmul.OTHER_MACHINE)
    _say(header(recipe, run.origin, out, model.config, shards, state))
    _train(run, state, model, shards, tokenizer, device, compute)
    return _result(run, state, model.parameter_count(), shards)


@dataclass(frozen=True)
class _Run:
    """origin: where the recipe is from, for the header. checkpoint: to resume from."""

    recipe: Recipe
    origin: str
    out: Path
    checkpoint: Path | None


def _open(recipe: str | Path | Recipe | None, resume: str | Path | None, changed: dict[str, Any]) -> _Run:
    """The run folder, made or found, with what a killed process left half written removed."""
    if resume is None and recipe is None:
        raise ConfigError(
            "give a recipe, or a run to resume", hint="shoestring recipe list names the built-in ones"
        )
    given = load_recipe(recipe, changed) if recipe is not None else None
    if given is not None:
        _check(given)
    if resume is None:
        assert given is not None and recipe is not None
        name = recipe_name(recipe)
        origin = f"{name} (built in)" if not isinstance(recipe, Recipe) and is_built_in(recipe) else str(name)
        chosen, out = _settled(given), Path()
        if parallel.rank() == 0:
            chosen, out = new_run(chosen, name, None)
        out = Path(parallel.text_from_first(str(out)))
        return _Run(chosen, origin, out, None)
    out = find_run(resume)
    wanted = resumed_recipe(out, given, changed)
    if parallel.rank() == 0:
        clean(out)
        save_recipe(wanted, out)
    parallel.wait()
    found = checkpoints(out)
    checkpoint = found[-1] if found else None
    if parallel.rank() == 0:
        truncate_metrics(out / "metrics.jsonl", read_state(checkpoint).step if checkpoint is not None else 0)
    return _Run(wanted, f"of the run in {out}", out, checkpoint)


def _check(recipe: Recipe) -> None:
    """What cannot be kept is refused before any folder is made."""
    if recipe.budget.memory is not None:
        raise BudgetError(
            "pretrain cannot promise a memory budget yet, so it refuses budget.memory",
            hint="a smaller train.microbatch and train.checkpoint_blocks true take less memory",
        )
    rows, world = recipe.train.rows, parallel.world_size()
    if rows % world:
        raise ConfigError(f"the {rows} rows of a batch cannot be shared by {world} processes")
    microbatch = recipe.train.microbatch
    if microbatch is not None and (rows // world) % microbatch:
        raise ConfigError(
            f"train.microbatch ({microbatch}) must divide the {rows // world} rows of each process"
        )
    if isinstance(recipe.model, InitFrom):
        return
    if recipe.train.sequence_length > recipe.model.context:
        raise ConfigError(
            f"train.sequence_length ({recipe.train.sequence_length}) is longer than model.context"
            f" ({recipe.model.context})"
        )


def _model_and_data(run: _Run, device: torch.device) -> tuple[Decoder, ShardFolder]:
    recipe = run.recipe
    seed_everything(recipe.seed)
    source = tokenizer = None
    if isinstance(recipe.model, InitFrom):
        source = find_model(recipe.model.init, say=_say)
        tokenizer = Tokenizer.load(source)
    shards = open_dataset(recipe.data, tokenizer, _say)
    if run.checkpoint is not None:
        model = load_model(run.checkpoint, device=device, dtype=torch.float32)
    elif source is not None:
        model = load_model(source, device=device, dtype=torch.float32)
    else:
        assert not isinstance(recipe.model, InitFrom)
        _check_vocabulary(recipe.model.vocabulary, shards.vocabulary_size)
        model = build(recipe.model, device=device, seed=recipe.seed)
    _check_vocabulary(model.config.vocabulary, shards.vocabulary_size)
    if recipe.train.sequence_length > model.config.context:
        raise ConfigError(
            f"train.sequence_length ({recipe.train.sequence_length}) is longer than the model's context"
            f" ({model.config.context})"
        )
    model.checkpoint_blocks = recipe.train.checkpoint_blocks
    return model, shards


def _check_vocabulary(model: int, tokenizer: int) -> None:
    if tokenizer > model:
        raise ConfigError(
            f"the tokenizer has {tokenizer:,} ids and the model rows for {model:,}",
            hint=f"set model.vocabulary to at least {tokenizer}, or data.tokenizer.vocabulary to {model}",
        )


def _train(
    run: _Run,
    state: TrainerState,
    model: Decoder,
    shards: ShardFolder,
    tokenizer: Tokenizer,
    device: torch.device,
    compute: torch.dtype,
) -> None:
    recipe, out, settings = run.recipe, run.out, run.recipe.train
    rank, world = parallel.rank(), parallel.world_size()
    rows = settings.rows // world
    microbatch = settings.microbatch or rows
    length, separate = settings.sequence_length, recipe.data.separate_documents
    external = external_vectors(model.config, shards, _say)
    loader = PackedLoader(
        shards,
        "train",
        length,
        microbatch,
        recipe.seed,
        rank,
        world,
        separate,
        recipe.data.prefetch,
        external.get("train"),
        settings.rows if recipe.data.continue_documents else None,
    )

    def held_out(tokens: int | None) -> SequentialPass:
        return SequentialPass(
            shards, "validation", length, microbatch, separate, tokens, rank, world, external.get("validation")
        )

    memories = Memories.of(model, recipe.data.continue_documents, microbatch, rows // microbatch, out, world)
    optimizer = build_optimizer(recipe.optimizer, model)
    pace: Pace = TimeBudget(settings.time) if settings.time is not None else FixedSteps(planned_steps(recipe))
    seed_everything(recipe.seed + 1)
    if run.checkpoint is not None:
        if state.data.get("shards") != shards.index["sha256"]:
            raise DataError(
                "the text or its preparation has changed since this run began",
                recipe.data.source,
                "continue from its model with --model.init instead",
            )
        loader.restore(state.data)
        restore_optimizer(run.checkpoint, model, optimizer)
        if memories is not None:
            memories.read(run.checkpoint)
    peak, token_flops = matrix_peak(compute, device), flops_per_token(model.config, length)
    evaluation = Evaluation(
        model,
        held_out(settings.evaluate_tokens),
        held_out(settings.final_evaluate_tokens),
        settings.evaluate_every,
        settings.batch_tokens,
        compute,
    )
    metrics = Metrics(
        out / "metrics.jsonl",
        recipe.log.every,
        token_flops,
        peak,
        device,
        build_reporters(recipe, out),
        len(state.events),
    )

    def data_state() -> dict[str, Any]:
        return {**loader.state(), "shards": shards.index["sha256"]}

    def write_files(folder: Path) -> None:
        write_model_files(model, folder, tokenizer)
        if memories is not None:
            memories.write(folder)

    saving = Checkpoint(
        out, model, optimizer, tokenizer, data_state, settings.checkpoint_every, settings.keep, write_files
    )
    line = ProgressLine(token_flops, peak, device)
    model.train()
    try:
        with StopRequest() as stop:
            train(
                ResidentStep(model, next_token, compute, memories),
                loader,
                optimizer,
                build_schedule(recipe.schedule),
                pace,
                state,
                microbatches=rows // microbatch,
                clip=settings.clip,
                callbacks=[evaluation, metrics, saving, line],
                device=device,
                stop=stop,
            )
    except Interrupted as error:
        raise Interrupted(
            f"{error.message}; saved in {out}", hint=f"continue with: shoestring pretrain --resume {out}"
        ) from None
    except NonFiniteLoss as error:
        whole = checkpoints(out)
        kept = f"the last checkpoint is {whole[-1]}" if whole else "there was no checkpoint yet"
        raise RunError(
            error.message,
            str(out),
            f"{kept}\na lower optimizer.learning_rate or a longer schedule.warmup may help",
        ) from None
    finally:
        line.close()
        metrics.close()
        loader.close()


def _settled(recipe: Recipe) -> Recipe:
    """The recipe with `precision.compute: auto` replaced by the faster format on this machine.

    Settled before the recipe is saved, so that a resumed run computes as it began.
    """
    if recipe.precision.compute != "auto":
        return recipe
    device = resolve_device(recipe.device)
    faster = matrix_peak(torch.bfloat16, device) > 1.1 * matrix_peak(torch.float32, device)
    compute = "bfloat16" if parallel.from_first(faster) else "float32"
    return recipe.model_copy(update={"precision": recipe.precision.model_copy(update={"compute": compute})})


def _result(run: _Run, state: TrainerState, parameters: int, shards: ShardFolder | None) -> RunResult:
    """Figures of a finished run. shards: to measure xz on; None leaves that out."""
    out = run.out
    peak = peak_rss_bytes()  # before xz and the plot add theirs
    held_out, xz = state.held_out, None
    if shards is not None and held_out is not None and parallel.rank() == 0:
        every_document = held_out.documents == shards.document_count("validation")
        if every_document and held_out.bytes <= _XZ_LIMIT and shards.tokenizer.is_byte_level:
            xz = xz_bits_per_byte(shards)[2]
    plot = None
    if parallel.rank() == 0:
        bits = 8 * xz / held_out.bytes if xz is not None and held_out is not None else None
        plot = write_plot(out / "metrics.jsonl", out / _PLOT, out.name, bits)
    return RunResult(
        out=out,
        checkpoint=checkpoints(out)[-1],
        steps=state.step,
        tokens=state.tokens,
        seconds=state.seconds,
        parameters=parameters,
        bits_per_byte=held_out.bits_per_byte if held_out else None,
        held_out_loss=held_out.loss if held_out else None,
        held_out_bytes=held_out.bytes if held_out else 0,
        xz_bytes=xz,
        peak_memory=peak,
        plot=plot,
    )


def _say(sentence: str) -> None:
    if parallel.rank() == 0:
        console.err.print(sentence)
