"""`finetune(model, data, ...)`: from a model and examples to an adapter, or a model, in a run folder.

Examples become packed supervised batches; LoRA, DoRA, LoRA on a quantized base, or every weight is trained with the one
loop; the best checkpoint by held-out loss is kept beside the newest. Checkpoints are PEFT folders, or model folders for
full fine-tuning, with the trainer's state inside. `resume` continues to bit-identical weights.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoestring.core import console
from shoestring.core.allocator import GIVEN_BACK, SHORT_LIVED, map_large_tensors
from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.errors import ConfigError, ModelFileError, RunError
from shoestring.core.machine import matrix_peak, peak_rss_bytes, rss_bytes
from shoestring.core.seeds import seed_everything
from shoestring.finetune.batches import SupervisedPass, SupervisedStream
from shoestring.finetune.before_after import Answer, Question, answer, choose_questions, load_answers, save_answers
from shoestring.finetune.config import FinetuneRecipe, finetune_recipe, is_finetune_recipe, load_finetune_recipe
from shoestring.finetune.dataset import SupervisedDataset
from shoestring.finetune.engine import Choice, Choose, Engine, Request, plainly
from shoestring.finetune.memory_guard import MemoryGuard
from shoestring.finetune.result import FinetuneResult, header
from shoestring.finetune.supervise import prepare_dataset
from shoestring.models.adapters import attach, halve_bases, switch
from shoestring.models.decoder import Decoder
from shoestring.models.folder import (
    GenerationDefaults,
    load_model,
    read_config,
    read_generation_config,
    write_model_files,
)
from shoestring.models.peft_folder import is_adapter, load_adapter, write_adapter_files
from shoestring.models.resolve import find_model
from shoestring.models.source import Source
from shoestring.models.weight_files import weight_paths
from shoestring.train import parallel
from shoestring.train.checkpoint import Checkpoint, checkpoints, clean, read_state, restore_optimizer
from shoestring.train.early_stopping import EarlyStopping
from shoestring.train.evaluation import Evaluation, measure
from shoestring.train.interrupt import Interrupted, StopRequest
from shoestring.train.loop import Callback, NonFiniteLoss, train
from shoestring.train.metrics import Metrics, flops_per_token, truncate_metrics
from shoestring.train.objective import next_token
from shoestring.train.optimizer import build_optimizer
from shoestring.train.pace import FixedSteps, Pace, TimeBudget
from shoestring.train.plot import write_plot
from shoestring.train.predict import total
from shoestring.train.progress import ProgressLine
from shoestring.train.reporters import build_reporters
from shoestring.train.run_folder import find_run, new_run, resumed_recipe, save_recipe
from shoestring.train.schedule import build_schedule
from shoestring.train.state import TrainerState

_SHORTEST_ROW, _LONGEST_ROW = 256, 2048  # tokens, when the recipe leaves the length open
_STREAMED_ANSWER = 16  # tokens of an answer while each of them reads the model from disk
_PLOT = "loss.png"


def finetune(
    model: str | Path | None = None,
    data: str | Path | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    choose: Choose = plainly,
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune `model` on the examples in `data`, or continue the run in the folder `resume`.

    model: or a recipe, by name or file, which may say which data.
    overrides: dotted settings of `FinetuneRecipe`; keywords are settings as well, two underscores for a dot:
    `finetune("smollm2-135m", "mine.jsonl", adapter__method="dora", train__time="10m", out="runs/mine")`. Progress goes
    to stderr. choose: of the engine that keeps the model (`plan` gives one that obeys a memory budget). Raises
    ConfigError, DataError, ModelFileError, RunError, BudgetError, and Interrupted when the user stopped the run.
    """
    changed = {**(overrides or {}), **{key.replace("__", "."): value for key, value in settings.items()}}
    parallel.start()
    recipe, resumed, checkpoint = _open(model, data, resume, changed)
    # Reused memory is faster; memory given back at once is what can be predicted.
    map_large_tensors(SHORT_LIVED if recipe.budget.memory is None else GIVEN_BACK)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    state = TrainerState() if checkpoint is None else read_state(checkpoint)
    if resumed is not None and state.finished:
        _say(f"{resumed} is finished; nothing is left to train")
        return _result(recipe, resumed, state, load_answers(resumed), None)
    run = _prepare(recipe, resumed, checkpoint, state, choose)
    recipe, out = run.recipe, run.out
    predicted = total(run.choice.lines)
    _say(header(recipe, out, run.decoder, run.dataset, run.rows, run.length, state, predicted))
    answers = _before(run)
    _train(run)
    return _result(recipe, out, state, answers, run)


@dataclass
class _Run:
    """rows: of one optimizer step on this rank; length: tokens of a row. base: folder of the model to begin from."""

    recipe: FinetuneRecipe
    out: Path
    checkpoint: Path | None
    state: TrainerState
    base: Path
    decoder: Decoder
    dataset: SupervisedDataset
    device: torch.device
    rows: int
    length: int
    generation: GenerationDefaults
    choice: Choice

    @property
    def microbatch(self) -> int:
        """Rows computed at once."""
        return self.choice.microbatch


def _open(
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


def _prepare(
    recipe: FinetuneRecipe, out: Path | None, checkpoint: Path | None, state: TrainerState, choose: Choose
) -> _Run:
    """Model and data, and then the run folder: mistakes in either must not leave one. out: of a run to resume."""
    settings, device = recipe.train, resolve_device(recipe.device)
    base = find_model(recipe.model, say=_say)
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
    dataset = prepare_dataset(recipe.data, base, longest, _say)
    length = settings.sequence_length or min(max(dataset.counts.longest, _SHORTEST_ROW), longest)
    world = parallel.world_size()
    rows = max(-(-settings.batch_tokens // (length * world)), 1)
    if settings.microbatch is not None and rows % settings.microbatch:
        raise ConfigError(f"train.microbatch ({settings.microbatch}) must divide the {rows} rows of each process")
    choice = choose(Request(recipe, base, read_config(base), rows, length, rss_bytes()))
    recipe = choice.recipe
    _check_source(base, state, checkpoint)
    seed_everything(recipe.seed)
    decoder = _load(recipe, choice.engine, base, checkpoint, device)
    generation = read_generation_config(base)
    if out is None:
        if parallel.rank() == 0:
            recipe, out = new_run(recipe, "finetune", None)
        out = Path(parallel.text_from_first(str(out)))
    return _Run(recipe, out, checkpoint, state, base, decoder, dataset, device, rows, length, generation, choice)


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


def _before(run: _Run) -> list[Answer]:
    """What the model says, and how well it does, before the first step; of a resumed run, what it said then."""
    kept = load_answers(run.out)
    if run.checkpoint is not None:
        return kept
    parallel.wait()
    compute = resolve_dtype(run.recipe.precision.dtype)
    if len(run.dataset.indices("validation")):
        measured = measure(run.decoder, _held_out(run), compute)
        run.state.events.append({"event": "started", "step": 0, "before": measured.loss})
    if parallel.rank() != 0:
        return []
    questions = choose_questions(run.dataset, run.recipe.data, run.recipe.train.answers)
    said = _answers(run, questions)
    answers = [
        Answer(question.text, question.expected, before) for question, before in zip(questions, said, strict=True)
    ]
    save_answers(answers, run.out)
    return answers


def _answers(run: _Run, questions: list[Question]) -> list[str]:
    longest = _STREAMED_ANSWER if run.choice.engine.streams else None
    return answer(run.decoder, run.dataset, questions, run.generation, longest)


def _held_out(run: _Run) -> SupervisedPass:
    at_once = run.rows if run.choice.engine.streams else run.microbatch  # a pass may read the whole model
    return SupervisedPass(
        run.dataset, "validation", run.length, at_once, run.recipe.data.layout,
        run.recipe.train.evaluate_examples, parallel.rank(), parallel.world_size(),
    )  # fmt: skip


def _train(run: _Run) -> None:
    recipe, settings, out, state, model = run.recipe, run.recipe.train, run.out, run.state, run.decoder
    world = parallel.world_size()
    stream = SupervisedStream(
        run.dataset, run.length, run.microbatch, run.rows * world, recipe.data.layout, recipe.seed, "train",
        parallel.rank(), world, recipe.data.longest_first,
    )  # fmt: skip
    compute = resolve_dtype(recipe.precision.dtype)
    optimizer = build_optimizer(recipe.optimizer, model)
    seed_everything(recipe.seed + 1)
    if run.checkpoint is not None:
        stream.restore(state.data)
        restore_optimizer(run.checkpoint, model, optimizer)
    frozen = recipe.adapter.method != "full"
    # A frozen weight costs no gradient of its own: four operations of six.
    token_flops = flops_per_token(model.config, run.length) * (4 / 6 if frozen else 1)
    peak = matrix_peak(compute, run.device)
    metrics = Metrics(
        out / "metrics.jsonl", recipe.log.every, token_flops, peak, run.device, build_reporters(recipe, out),
        len(state.events) if run.checkpoint is not None else 0,
    )  # fmt: skip
    saving = Checkpoint(
        out, model, optimizer, None, stream.state, settings.checkpoint_every, settings.keep,
        functools.partial(_write, run),
    )  # fmt: skip
    line = ProgressLine(token_flops, peak, run.device, "loss")
    callbacks: list[Callback] = [metrics, saving, line]
    if len(run.dataset.indices("validation")):
        held_out = _held_out(run)
        step_tokens = run.rows * world * run.length
        evaluation = Evaluation(model, held_out, held_out, settings.evaluate_every, step_tokens, compute)
        callbacks = [evaluation, EarlyStopping(settings.patience), *callbacks]
    model.train()
    guard = MemoryGuard(recipe.budget.memory)
    try:
        with StopRequest() as stop:
            guard.stop = stop
            callbacks.append(guard)
            train(
                run.choice.engine.step(model, next_token, compute, out),
                stream,
                optimizer,
                build_schedule(recipe.schedule),
                _pace(run, stream),
                state,
                microbatches=run.rows // run.microbatch,
                clip=settings.clip,
                callbacks=callbacks,
                device=run.device,
                stop=stop,
            )
    except Interrupted as error:
        if guard.exceeded is not None:
            raise guard.error(out) from None
        raise Interrupted(
            f"{error.message}; saved in {out}", hint=f"continue with: shoestring finetune --resume {out}"
        ) from None
    except NonFiniteLoss as error:
        whole = checkpoints(out)
        kept = f"the last checkpoint is {whole[-1]}" if whole else "there was no checkpoint yet"
        raise RunError(error.message, str(out), f"{kept}\na lower optimizer.learning_rate may help") from None
    finally:
        line.close()
        metrics.close()


def _pace(run: _Run, stream: SupervisedStream) -> Pace:
    settings = run.recipe.train
    if settings.time is not None:
        return TimeBudget(settings.time)
    if settings.steps is not None:
        return FixedSteps(settings.steps)
    assert settings.epochs is not None
    rows = run.rows * parallel.world_size()
    return FixedSteps(max(round(settings.epochs * stream.samples_per_epoch / rows), 1))


def _write(run: _Run, folder: Path) -> None:
    """A checkpoint's files: an adapter, or the whole model with what its base says about decoding."""
    if run.recipe.adapter.method == "full":
        write_model_files(run.decoder, folder, run.dataset.tokenizer, run.generation)
        return
    write_adapter_files(run.decoder, folder, base_name(run.recipe.model, run.base), tokenizer=run.dataset.tokenizer)


def base_name(model: str, folder: Path) -> str:
    """What an adapter's config calls its base, for peft as well: a repository of the hub, or an absolute path."""
    return model.removeprefix("hf:") if model.startswith("hf:") else str(folder.absolute())


def _result(
    recipe: FinetuneRecipe, out: Path, state: TrainerState, answers: list[Answer], run: _Run | None
) -> FinetuneResult:
    """Figures of a finished run. run: None when it had ended before; then its answers are complete."""
    newest = checkpoints(out)[-1]
    best = newest if state.best_step is None else out / f"step-{state.best_step:06d}"
    if run is not None and parallel.rank() == 0:
        if best != newest:
            run.decoder = _at(run, best)
        questions = choose_questions(run.dataset, recipe.data, recipe.train.answers)
        for one, said in zip(answers, _answers(run, questions), strict=False):
            one.after = said
        save_answers(answers, out)
    peak = peak_rss_bytes()
    started = [values["before"] for values in state.events if values["event"] == "started"]
    return FinetuneResult(
        out=out,
        checkpoint=newest,
        best=best,
        method=recipe.adapter.method,
        steps=state.step,
        tokens=state.tokens,
        seconds=state.seconds,
        loss_before=started[0] if started else None,
        loss_after=state.best_loss,
        peak_memory=peak,
        predicted_memory=None if run is None else total(run.choice.lines),
        engine=recipe.budget.engine,
        answers=answers,
        plot=write_plot(out / "metrics.jsonl", out / _PLOT, out.name) if parallel.rank() == 0 else None,
    )


def _at(run: _Run, checkpoint: Path) -> Decoder:
    """The model as it was at a checkpoint of this run."""
    if run.recipe.adapter.method == "full":
        return load_model(checkpoint, device=run.device, dtype=torch.float32)
    load_adapter(run.decoder, checkpoint, "best")
    switch(run.decoder, "best")
    return run.decoder


def _say(sentence: str) -> None:
    if parallel.rank() == 0:
        console.err.print(sentence)

