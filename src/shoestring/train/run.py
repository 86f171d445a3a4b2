"""`execute(job, start)`: one run, whatever is trained: folder, resume, optimizer, pace, callbacks, and how it ends.

A job (`pretraining.job`, `finetuning.job`) says what is read, what is minimized and what is written; everything
that two jobs would do alike is here. The run folder appears only once data and model have been opened, and goes
again if no step could be done, so a command with a mistake leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from shoestring.core import console, matmul
from shoestring.core.allocator import GIVEN_BACK, LARGE
from shoestring.core.device import check_memory_budget, resolve_device, resolve_dtype
from shoestring.core.errors import BudgetError, ConfigError, RunError
from shoestring.core.machine import cpu_count, peak_rss_bytes
from shoestring.core.seeds import seed_everything
from shoestring.core.speeds import matrix_peak
from shoestring.core.units import format_bytes, format_seconds
from shoestring.kernels import allocator
from shoestring.models.resolve import find_model
from shoestring.plan.receipt import Receipt
from shoestring.plan.shapes import Prediction
from shoestring.train import parallel, watchdog
from shoestring.train.checkpoint import Checkpoint, checkpoints, restore
from shoestring.train.engine import Engine
from shoestring.train.interrupt import Interrupted, StopRequest
from shoestring.train.loggers import build_loggers
from shoestring.train.loop import Callback, NonFiniteLoss, Stream, train
from shoestring.train.lost_ranks import noted
from shoestring.train.memory_guard import MemoryGuard
from shoestring.train.metrics import Metrics
from shoestring.train.objective import Objective
from shoestring.train.pace import FixedSteps, Pace, TimeBudget
from shoestring.train.plot import write_plot
from shoestring.train.precision import settled
from shoestring.train.progress import ProgressLine
from shoestring.train.receipts import Receipts
from shoestring.train.rollback import RollBack
from shoestring.train.run_folder import METRICS, Start, abandon, check_free, claim, disown, save_recipe
from shoestring.train.schedule import build_schedule
from shoestring.train.sessions import recorded
from shoestring.train.stages import Stages
from shoestring.train.state import TrainerState
from shoestring.train.watching import WATCHING

PLOT = "loss.png"


@dataclass
class Opened:
    """Data and model, ready to train. recipe: with all that was measured and chosen, as it will be saved.

    microbatches: of an optimizer step. steps: of the run, None where `train.time` bounds it. flops_per_token: of
    training, for the share of the matrix peak. header: lines for a person. stages: where a run has several; what stands
    beside is of the last one.
    """

    recipe: Any
    engine: Engine
    stream: Stream
    microbatches: int
    steps: int | None
    flops_per_token: float
    prediction: Prediction
    header: str
    stages: Stages | None = None


@dataclass
class Wiring:
    """What trains, once there is a folder. write: the model's or adapter's files, into a folder. read: the weights of
    such a folder into the live model; None where a run cannot go back to a checkpoint."""

    objective: Objective
    write: Callable[[Path], None]
    evaluations: Sequence[Callback] = ()
    position: Callable[[], dict[str, Any]] | None = None  # where the data stand; None: what the stream says
    read: Callable[[Path], None] | None = None


class Job(Protocol):
    """verb: that resumes a run. held_out: how progress shows a measurement. help: for a loss that is no number.

    One that trains a model over several machines (`budget.split`) says so: `splits = True`.
    """

    verb: str
    held_out: str
    help: str

    def open(self, start: Start) -> Opened:
        """Data, plan, model: with the weights of `start.checkpoint` where there is one; moments are read later. Writes
        nothing into a run folder. `start.recipe` has its precision settled."""
        ...

    def wire(self, out: Path, start: Start) -> Wiring:
        """The run's folder is there, and the header has been shown."""
        ...


@dataclass
class Run:
    """A run under way, or at its end. opened: None when nothing was left to do. peak_memory: bytes of the process.
    receipt: of this session."""

    recipe: Any
    out: Path
    state: TrainerState
    opened: Opened | None = None
    peak_memory: int = 0
    allocated: allocator.Counts | None = None
    receipt: Receipt | None = None

    @property
    def checkpoint(self) -> Path:
        """The newest, whose name stages of one model ask the first process for."""
        if parallel.are_stages():
            return self.out / parallel.by_first(lambda: checkpoints(self.out)[-1].name)
        return checkpoints(self.out)[-1]

    def plot(self, bits_per_byte: float | None = None) -> Path | None:
        """Draw the curve, by the first process. bits_per_byte: a line to compare with."""
        if parallel.rank() != 0:
            return None
        try:
            return write_plot(self.out / METRICS, self.out / PLOT, self.out.name, bits_per_byte)
        except OSError as error:  # the run is whole without
            say(f"plot      not drawn: {error.strerror}")
            return None

    def figures(self) -> dict[str, Any]:
        """What every job's result has."""
        return {
            "out": self.out,
            "checkpoint": self.checkpoint,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "seconds": self.state.seconds,
            "engine": self.recipe.budget.engine,
            "peak_memory": self.peak_memory or peak_rss_bytes(),
            "predicted_memory": None if self.opened is None else self.opened.prediction.total,
            "tensor_memory": None if self.allocated is None else self.allocated.live_peak,
            "predicted_tensor_memory": None if self.opened is None else self.opened.prediction.tensor_bytes,
            "step_seconds": None if self.receipt is None else self.receipt.measured_seconds,
            "predicted_step_seconds": None if self.receipt is None else self.receipt.told_seconds,
        }


def dotted(overrides: dict[str, Any] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a call by their dotted names; in keywords two underscores stand for a dot."""
    return {**(overrides or {}), **{key.replace("__", "."): value for key, value in settings.items()}}


def say(sentence: str) -> None:
    """One line on stderr, from the first process."""
    if parallel.rank() == 0:
        console.say(sentence)


def find_once(text: str | Path, encoder: bool = False) -> Path:
    """The folder of a MODEL: the first process fetches what has to be fetched, and the others find it.

    encoder: as `find_model` takes it.
    """
    found = parallel.by_first(lambda: str(find_model(text, say=say, encoder=encoder)))
    return Path(found) if parallel.rank() == 0 else find_model(text, encoder=encoder)


def execute(job: Job, start: Start) -> Run:
    """Train to the end. Raises what `job` raises, RunError, BudgetError, and Interrupted when the user stopped it."""
    with contextlib.ExitStack() as ending:
        ending.callback(disown, start.owned)
        if start.state.finished and start.out is not None and not start.another_length:
            say(f"{start.out} is finished; nothing is left to train (--train.steps or --time makes it longer)")
            return Run(start.recipe, start.out, start.state)
        start.recipe.check_packages()
        try:
            return _execute(job, start, ending)
        except BaseException as error:
            watchdog.failed(error)
            raise


def beside_its_budget(recipe: Any, begins: bool) -> Any:
    """The recipe on a device whose memory its budget is of: a run that begins stays on the CPU where that is left open.

    Raises ConfigError for a GPU.
    """
    device = resolve_device(recipe.device)
    if recipe.budget.memory is not None and device.type != "cpu" and recipe.device == "auto" and begins:
        say("device    cpu: a memory budget is of the process, and a GPU has a memory of its own")
        return recipe.model_copy(update={"device": "cpu"})
    check_memory_budget(recipe.budget.memory, device)
    return recipe


def _execute(job: Job, start: Start, ending: contextlib.ExitStack) -> Run:
    if start.recipe.budget.split is not None and not getattr(job, "splits", False):
        raise ConfigError(f"budget.split is of pretraining and fine-tuning, and this is {job.verb}")
    recipe = settled(beside_its_budget(start.recipe, start.out is None))
    if start.out is None and recipe.out is not None:
        check_free(Path(recipe.out))
    allocator.install(LARGE if recipe.budget.memory is None else GIVEN_BACK)
    if recipe.threads is not None:
        torch.set_num_threads(_threads(recipe.threads))
    if not matmul.TABLE.adopt(start.state.matmul):
        say(matmul.OTHER_MACHINE)
    seed_everything(recipe.seed)
    allocator.reset_peaks()
    before = peak_rss_bytes()
    start = replace(start, recipe=recipe)
    # Those in metrics.jsonl already; one of a stage that a refused step had reached is still to be written.
    told = sum(event["step"] <= start.state.step for event in start.state.events)
    try:
        opened = job.open(start)
        recipe, out = opened.recipe, start.out
        if out is None:
            place = Path("runs") if recipe.out is None else Path(recipe.out)
            stood = [path for path in (place, *place.parents) if path.exists()]
            recipe, out, owned = claim(recipe, start.name)
            ending.callback(_leave_no_trace, out, stood, start.state)
            ending.callback(disown, owned)
        opened.recipe = recipe
        say("\n".join([f"recipe    {start.origin}", f"out       {out}", opened.header]))
        run = Run(recipe, out, start.state, opened)
        if start.out is not None:
            _go_on(start, opened, out)
        _train(job, run, opened, job.wire(out, replace(start, recipe=recipe)), start.checkpoint, told, before)
    except RuntimeError as error:
        if (refusal := allocator.refused(error)) is None:
            raise
        message, hint = f"the run {_beyond(refusal)} before its first step", "give it more with --memory"
        raise BudgetError(message, hint=hint) from None
    finally:
        allocator.limit()  # a cap is of this run, not of the process
    run.peak_memory, run.allocated = peak_rss_bytes(), allocator.counts()
    return run


def _leave_no_trace(out: Path, stood: list[Path], state: TrainerState) -> None:
    """Of a new run that could do no step, once the folder is given up."""
    if parallel.rank() == 0 and not state.step and not checkpoints(out):
        abandon(out, stood)


def _go_on(start: Start, opened: Opened, out: Path) -> None:
    """Save the recipe of a run that goes on, and give the run its new length, where it has one.

    Raises RunError for one that is behind it already.
    """
    state = start.state
    if start.another_length and start.checkpoint is not None:
        time = opened.recipe.train.time
        behind = opened.steps is not None and opened.steps <= state.step
        if behind or (time is not None and time <= state.seconds):
            done = f"{state.step:,} steps" if behind else f"{format_seconds(state.seconds)} of training"
            raise RunError(f"the run has done {done} already", str(out), "give more than that; what is done counts")
        say(f"schedule  {state.extend(opened.steps)}")
    if parallel.rank() == 0:
        save_recipe(opened.recipe, out)


def _threads(asked: int) -> int:
    """As many as the machine can start: OpenMP ends the process where it cannot."""
    most = max(4 * cpu_count(), 16)
    if asked > most:
        say(f"threads   {most}, not {asked}: this machine has {cpu_count()} cores")
    return min(asked, most)


def _beyond(refusal: allocator.Refusal) -> str:
    return (
        f"asked for {format_bytes(refusal.asked)} more than its budget allows"
        f" (tensors have {format_bytes(refusal.live)} of {format_bytes(refusal.cap)})"
    )


def _train(
    job: Job, run: Run, opened: Opened, wiring: Wiring, checkpoint: Path | None, told: int, before: int
) -> None:  # fmt: skip
    """told: events that earlier sessions have written. before: the process's peak when the run began."""
    recipe, settings, state, out = run.recipe, run.recipe.train, run.state, run.out
    engine, stream = opened.engine, opened.stream
    engine.begin(wiring.objective, recipe.optimizer, state.step)
    pace: Pace = (
        TimeBudget(settings.time, opened.stages)
        if opened.steps is None
        else FixedSteps(opened.steps, opened.stages)
    )
    seed_everything(recipe.seed + 1)
    if checkpoint is not None:
        stream.restore(state.data)
        restore(checkpoint, engine)
    device = resolve_device(recipe.device)
    peak = parallel.by_first(lambda: matrix_peak(resolve_dtype(recipe.precision.dtype), device))
    loggers = build_loggers(recipe, out)
    metrics = Metrics(out / METRICS, recipe.log.every, opened.flops_per_token, peak, device, loggers, told)
    position = wiring.position or stream.state
    stop = StopRequest()
    saving = Checkpoint(
        out, engine, position, wiring.write, settings.checkpoint_every, settings.keep, stop
    )
    guard = MemoryGuard(recipe.budget.memory)
    line = ProgressLine(opened.flops_per_token, peak, device, job.held_out)
    receipts = Receipts(opened.prediction, opened.stages, before)
    ranks = f" --ranks {os.environ[parallel.LAUNCHED]}" if parallel.LAUNCHED in os.environ else ""
    resume = f"continue with: shoestring {job.verb} --resume {out}{ranks}"
    more = f"{resume} --memory MORE; or start a run with a smaller --train.batch_tokens or --train.microbatch"
    try:
        with (
            stop,
            recorded(out, state, recipe, opened.prediction, device, peak),
            noted(out, state, resume, recipe.parallel.exchange_timeout),
        ):
            train(
                engine,
                stream,
                recipe.optimizer.learning_rate,
                build_schedule(recipe.schedule),
                pace,
                state,
                microbatches=opened.microbatches,
                stages=opened.stages,
                clip=settings.clip,
                explosion=settings.explosion,
                roll_back=RollBack(out, engine, wiring.read, settings.rollbacks),
                callbacks=[*wiring.evaluations, *WATCHING.get(), receipts, metrics, guard, saving, line],
                stop=stop,
            )
    except Interrupted as error:
        if guard.exceeded is not None:
            raise BudgetError(f"{error.message}; saved in {out}", hint=more) from None
        raise Interrupted(f"{error.message}; saved in {out}", hint=resume) from None
    except NonFiniteLoss as error:
        whole = checkpoints(out)
        kept = f"the last checkpoint is {whole[-1]}" if whole else "there was no checkpoint yet"
        raise RunError(error.message, str(out), f"{kept}\n{job.help}") from None
    except RuntimeError as error:
        refusal = allocator.refused(error)
        whole = checkpoints(out)
        kept = f"the last checkpoint is {whole[-1]}" if whole else "there was no checkpoint yet"
        if parallel.is_parallel() and parallel.lost(error):
            raise RunError(f"another process of this run has ended or hangs; {kept}", str(out), resume) from None
        if refusal is None and not isinstance(error, parallel.Elsewhere):
            raise
        traceback.clear_frames(error.__traceback__)
        allocator.limit()
        what = "was too large for another process" if refusal is None else _beyond(refusal)
        if engine.torn:
            why = f"{engine.why_torn}, so nothing was saved"
            raise BudgetError(f"step {state.step + 1} {what}; {why}; {kept}", hint=more) from None
        reason = saving.save(state)
        kept = f"could not be saved: {reason}" if reason else f"saved in {out} after step {state.step}"
        raise BudgetError(f"step {state.step + 1} {what}; {kept}", hint=more) from None
    finally:
        line.close()
        metrics.close()
        run.receipt = receipts.keep(recipe, engine, out)
        if hasattr(stream, "close"):
            stream.close()
