"""`finetune(model, data, ...)`: from a model and examples to an adapter, or a model, in a run folder.

Examples become packed supervised batches; LoRA, DoRA, LoRA on a quantized base, or every weight is trained with the one
loop; the best checkpoint by held-out loss is kept beside the newest. Checkpoints are PEFT folders, or model folders for
full fine-tuning, with the trainer's state inside. `resume` continues to bit-identical weights.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from shoestring.core import matmul
from shoestring.core.allocator import GIVEN_BACK, SHORT_LIVED, map_large_tensors
from shoestring.core.device import resolve_dtype
from shoestring.core.errors import RunError
from shoestring.core.machine import matrix_peak, peak_rss_bytes
from shoestring.core.seeds import seed_everything
from shoestring.data.supervised.batches import SupervisedPass, SupervisedStream
from shoestring.finetune.before_after import Answer, Question, answer, choose_questions, load_answers, save_answers
from shoestring.finetune.config import FinetuneRecipe
from shoestring.finetune.engine import Choose, plainly
from shoestring.finetune.memory_guard import MemoryGuard
from shoestring.finetune.prepare import Run, open_recipe, prepare, say
from shoestring.finetune.preserve import PreservingStep, ordinary_batches
from shoestring.finetune.result import FinetuneResult, header
from shoestring.models.adapters import switch
from shoestring.models.decoder import Decoder
from shoestring.models.folder import (
    load_model,
    write_model_files,
)
from shoestring.models.peft_folder import load_adapter, write_adapter_files
from shoestring.train import parallel
from shoestring.train.checkpoint import Checkpoint, checkpoints, read_state, restore_optimizer
from shoestring.train.early_stopping import EarlyStopping
from shoestring.train.evaluation import Evaluation, measure
from shoestring.train.interrupt import Interrupted, StopRequest
from shoestring.train.loop import Callback, NonFiniteLoss, train
from shoestring.train.metrics import Metrics, flops_per_token
from shoestring.train.objective import next_token
from shoestring.train.optimizer import build_optimizer
from shoestring.train.pace import FixedSteps, Pace, TimeBudget
from shoestring.train.plot import write_plot
from shoestring.train.predict import total
from shoestring.train.progress import ProgressLine
from shoestring.train.reporters import build_reporters
from shoestring.train.schedule import build_schedule
from shoestring.train.state import TrainerState
from shoestring.train.step import Step

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
    recipe, resumed, checkpoint = open_recipe(model, data, resume, changed)
    # Reused memory is faster; memory given back at once is what can be predicted.
    map_large_tensors(SHORT_LIVED if recipe.budget.memory is None else GIVEN_BACK)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    state = TrainerState() if checkpoint is None else read_state(checkpoint)
    if resumed is not None and state.finished:
        say(f"{resumed} is finished; nothing is left to train")
        return _result(recipe, resumed, state, load_answers(resumed), None)
    if not matmul.TABLE.adopt(state.matmul):
        say(matmul.OTHER_MACHINE)
    run = prepare(recipe, resumed, checkpoint, state, choose)
    recipe, out = run.recipe, run.out
    predicted = total(run.choice.lines)
    say(header(recipe, out, run.decoder, run.dataset, run.rows, run.length, state, predicted))
    answers = _before(run)
    _train(run)
    return _result(recipe, out, state, answers, run)


def _before(run: Run) -> list[Answer]:
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


def _answers(run: Run, questions: list[Question]) -> list[str]:
    longest = _STREAMED_ANSWER if run.choice.engine.streams else None
    return answer(run.decoder, run.dataset, questions, run.generation, longest)


def _held_out(run: Run) -> SupervisedPass:
    at_once = run.rows if run.choice.engine.streams else run.microbatch  # a pass may read the whole model
    return SupervisedPass(
        run.dataset, "validation", run.length, at_once, run.recipe.data.layout,
        run.recipe.train.evaluate_examples, parallel.rank(), parallel.world_size(),
    )  # fmt: skip


def _train(run: Run) -> None:
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
                _step(run, compute),
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


def _step(run: Run, compute: torch.dtype) -> Step:
    recipe, model = run.recipe, run.decoder
    step = run.choice.engine.step(model, next_token, compute, run.out)
    if run.ordinary is None:
        return step
    held, done = recipe.preserve, run.state.step
    batches = ordinary_batches(run.ordinary, held.tokens, recipe.seed, -(-done // held.every))
    return PreservingStep(step, model, batches, held.weight, held.every, compute, done)


def _pace(run: Run, stream: SupervisedStream) -> Pace:
    settings = run.recipe.train
    if settings.time is not None:
        return TimeBudget(settings.time)
    if settings.steps is not None:
        return FixedSteps(settings.steps)
    assert settings.epochs is not None
    rows = run.rows * parallel.world_size()
    return FixedSteps(max(round(settings.epochs * stream.samples_per_epoch / rows), 1))


def _write(run: Run, folder: Path) -> None:
    """A checkpoint's files: an adapter, or the whole model with what its base says about decoding."""
    if run.recipe.adapter.method == "full":
        write_model_files(run.decoder, folder, run.dataset.tokenizer, run.generation)
        return
    write_adapter_files(run.decoder, folder, base_name(run.recipe.model, run.base), tokenizer=run.dataset.tokenizer)


def base_name(model: str, folder: Path) -> str:
    """What an adapter's config calls its base, for peft as well: a repository of the hub, or an absolute path."""
    return model.removeprefix("hf:") if model.startswith("hf:") else str(folder.absolute())


def _result(
    recipe: FinetuneRecipe, out: Path, state: TrainerState, answers: list[Answer], run: Run | None
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


def _at(run: Run, checkpoint: Path) -> Decoder:
    """The model as it was at a checkpoint of this run."""
    if run.recipe.adapter.method == "full":
        return load_model(checkpoint, device=run.device, dtype=torch.float32)
    load_adapter(run.decoder, checkpoint, "best")
    switch(run.decoder, "best")
    return run.decoder
