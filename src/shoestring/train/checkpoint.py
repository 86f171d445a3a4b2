"""A run on disk, and how it comes back.

    OUT/recipe.yaml             the resolved recipe
    OUT/metrics.jsonl           one JSON object a line
    OUT/step-000500/            a Hugging Face model folder, tokenizer included
        trainer/state.json      step, planned steps, position in the data, events
        trainer/optimizer.safetensors, trainer/random.safetensors
        trainer/optimizer/shard-*     instead, of a model in parts: one for each process (`train.sharded_files`)
        trainer/weights.safetensors   where the model is saved in fewer bits: as it was trained (`train.exact_weights`)
    OUT/latest                  names the newest step folder

A step folder is written beside its place, flushed and renamed, so whatever instant the process is killed
at, the newest folder that has a `trainer/state.json` is whole. Deleting begins with that file.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from shoestring.core import matmul
from shoestring.core.errors import ModelFileError, RunError
from shoestring.core.files import atomic_folder, remove_stale, replace_symlink_or_pointer
from shoestring.core.foreign import read_json
from shoestring.core.seeds import restore_rng_state, rng_state
from shoestring.core.waiting import waiting
from shoestring.models.weights import TensorFile, save_file
from shoestring.train import parallel
from shoestring.train.engine import Engine, EngineState
from shoestring.train.interrupt import StopRequest
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.sharded_files import ShardedFiles
from shoestring.train.state import TrainerState, is_due, times_left

TIMES = 4  # over a run, when no interval is set
STATE = Path("trainer", "state.json")
OPTIMIZER = Path("trainer", "optimizer.safetensors")
SHARDS = Path("trainer", "optimizer")
RANDOM = Path("trainer", "random.safetensors")
_STEP_FOLDER = re.compile(r"step-(\d{6,})")
_REMOVE = "remove this checkpoint folder to resume from the one before"
PATIENCE = 600  # seconds that a run's end waits for room on the disk
_AGAIN = 10  # seconds between two attempts
_DISK_SPEED = 200e6  # bytes per second, a careful first estimate until a checkpoint has been timed


def write_checkpoint(
    out: Path, state: TrainerState, engine: EngineState, keep: int, write_files: Callable[[Path], None]
) -> Path:
    """Write OUT/step-NNNNNN, point OUT/latest at it (and OUT/best, where a best is kept), delete all but the newest
    `keep` and the best.

    write_files: the model's or adapter's files, into a folder. Raises RunError (disk full).
    """
    folder = out / f"step-{state.step:06d}"
    with atomic_folder(folder, replace=True) as temporary:
        write_files(temporary)
        (temporary / "trainer").mkdir(exist_ok=True)
        if engine.write is None:
            save_file(engine.tensors, temporary / OPTIMIZER)
        else:
            engine.write(temporary / SHARDS)
        save_file(rng_state(), temporary / RANDOM)
        content = {**state.to_json(), "optimizer": engine.numbers}
        (temporary / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    replace_symlink_or_pointer(out / "latest", folder.name)
    if state.best_step == state.step:
        replace_symlink_or_pointer(out / "best", folder.name)
    _delete_old(out, keep, state.best_step)
    return folder


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    if not out.is_dir():
        return []
    found = [path for path in out.iterdir() if _STEP_FOLDER.fullmatch(path.name) and (path / STATE).is_file()]
    return sorted(found, key=_step_of)


def read_state(folder: Path) -> TrainerState:
    """The trainer's state of a checkpoint. Raises RunError when it is damaged."""
    return _read_state(folder)[0]


def restore(folder: Path, engine: Engine) -> None:
    """Moments, step counts and the states of the random generators.

    Raises RunError when they are damaged or do not fit.
    """
    restore_moments(folder, engine)
    try:
        with TensorFile(folder / RANDOM) as file:
            restore_rng_state({name: file.read(name) for name in file.infos})
    except ModelFileError as error:
        raise RunError(error.message, error.where, _REMOVE) from error


def restore_moments(folder: Path, engine: Engine) -> None:
    """Moments and step counts alone. Raises RunError when they are damaged or do not fit."""
    _, numbers = _read_state(folder)
    try:
        sharded = (folder / SHARDS).is_dir()
        with ShardedFiles(folder / SHARDS) if sharded else TensorFile(folder / OPTIMIZER) as file:
            engine.restore(file, numbers)
    except ModelFileError as error:
        raise RunError(error.message, error.where, _REMOVE) from error


def drop_after(folder: Path) -> None:
    """The run goes on from this checkpoint: newer ones are of a way that is given up."""
    for path in checkpoints(folder.parent):
        if _step_of(path) > _step_of(folder):
            _delete(path)
    replace_symlink_or_pointer(folder.parent / "latest", folder.name)


def clean(out: Path) -> None:
    """Delete what a killed process left half written or half deleted; `latest` names the newest."""
    for path in list(out.iterdir()):
        if path.name.startswith(".") and path.suffix in (".tmp", ".old"):
            remove_stale(out / path.name[1:].rsplit(".", 2)[0])
        elif _STEP_FOLDER.fullmatch(path.name) and not (path / STATE).is_file():
            shutil.rmtree(path, ignore_errors=True)
    whole = checkpoints(out)
    if whole:
        replace_symlink_or_pointer(out / "latest", whole[-1].name)
        best = read_state(whole[-1]).best_step
        if best is not None and any(_step_of(path) == best for path in whole):
            replace_symlink_or_pointer(out / "best", f"step-{best:06d}")


class Checkpoint(Callback):
    """Saves every so often, after the last step, and when the run is to be left.

    position: where the stream stands, for the trainer's state. write_files: as `write_checkpoint` has it. stop:
    whether the user wants the run to end.

    A checkpoint that cannot be written is an event: the one before stays, and so does the run, which tries again when
    the next is due. At the end, where there is no next, it waits for room on the disk.
    """

    def __init__(
        self,
        out: Path,
        engine: Engine,
        position: Callable[[], dict[str, Any]],
        write_files: Callable[[Path], None],
        every: int | None,
        keep: int,
        stop: StopRequest,
    ):
        self.out, self.engine, self.position, self.write_files = out, engine, position, write_files
        self.every, self.keep, self.stop = every, keep, stop
        self._seconds: float | None = None
        self._owed = False

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        self._owed |= is_due(state.step, state.total_steps, self.every, TIMES) or state.best_step == state.step
        # A step that was skipped may tell of weights that are no longer sound: they must not take a sound one's place.
        if not (event.last or event.stopping or (self._owed and not state.skipped_in_a_row)):
            return
        started = time.perf_counter()
        state.finished = event.last
        reason = self.save(state)
        if reason and event.last:
            reason = self._insist(state, reason)
        if reason and (event.last or event.stopping):
            whole = checkpoints(self.out)
            hint = f"make room and resume: the run goes on from {whole[-1]}" if whole else "there is no checkpoint yet"
            raise RunError(f"step {state.step} could not be saved: {reason}", str(self.out), hint)
        self._owed = False
        self._seconds = time.perf_counter() - started

    def save(self, state: TrainerState) -> str:
        """Now, by the first process, while the others wait; -> why that was not possible, "" where it was."""
        state.data, state.matmul = self.position(), matmul.TABLE.choices()
        moments = self.engine.state()
        reason = parallel.by_first(lambda: self._write(state, moments), moments.helps)
        if reason:
            if state.best_step == state.step:  # the best of those that are there
                state.best_loss, state.best_step = parallel.by_first(self._best)
            event = {"event": "not_written", "step": state.step, "what": "checkpoint", "reason": reason}
            if event not in state.events[-1:]:
                state.events.append(event)
        return reason

    def _best(self) -> list[Any]:
        whole = checkpoints(self.out)
        saved = read_state(whole[-1]) if whole else TrainerState()
        return [saved.best_loss, saved.best_step]

    def _write(self, state: TrainerState, moments: EngineState) -> str:
        try:
            # Beside an unsound state a sound one stays, to go back to.
            keep = self.keep + (state.skipped_in_a_row > 0)
            write_checkpoint(self.out, state, moments, keep, self.write_files)
        except (RunError, OSError, SafetensorError) as error:
            said = error.strerror if isinstance(error, OSError) else getattr(error, "message", str(error))
            return said or type(error).__name__
        return ""

    def _insist(self, state: TrainerState, reason: str) -> str:
        """Try again and again, until it is written, the user stops the run, or patience ends."""
        with waiting(f"waiting   {reason}; trying again, in seconds", PATIENCE) as told:
            for _ in range(0, PATIENCE, _AGAIN):
                for _ in range(_AGAIN):
                    if parallel.sum_numbers(self.stop.requested)[0]:
                        return reason
                    time.sleep(1)
                    told.advance()
                if not (reason := self.save(state)):
                    break
        return reason

    def seconds_ahead(self, step: int, total: int, step_seconds: float) -> float:
        each = self._seconds
        if each is None:  # moments, and as much again for weights
            each = 0.3 + 1.5 * self.engine.state_bytes() / _DISK_SPEED
        return each * (times_left(step, total, self.every, TIMES) + 1)


def _read_state(folder: Path) -> tuple[TrainerState, dict[str, dict[str, float]]]:
    try:
        content = read_json(folder / STATE)
        if not isinstance(content, dict) or not _are_numbers(content.get("optimizer")):
            raise ValueError("no object with the numbers of an optimizer")
        numbers = content.pop("optimizer")
        return TrainerState.from_json(content), numbers
    except (OSError, ValueError) as error:
        raise RunError(
            f"not a trainer state: {error}", str(folder / STATE), "remove this checkpoint folder"
        ) from error


def _are_numbers(values: Any) -> bool:
    """Whether these are numbers by parameter and name."""
    return isinstance(values, dict) and all(
        isinstance(of_one, dict) and all(isinstance(number, (int, float)) for number in of_one.values())
        for of_one in values.values()
    )


def _step_of(folder: Path) -> int:
    match = _STEP_FOLDER.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _delete_old(out: Path, keep: int, best_step: int | None) -> None:
    every = checkpoints(out)
    kept = [path for path in every if _step_of(path) == best_step] + every[-keep:]
    for path in out.iterdir():
        if _STEP_FOLDER.fullmatch(path.name) and path not in kept and _step_of(path) < _step_of(kept[-1]):
            _delete(path)


def _delete(folder: Path) -> None:
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
