"""A run on disk, and how it comes back.

    OUT/recipe.yaml             the resolved recipe
    OUT/metrics.jsonl           one JSON object a line
    OUT/step-000500/            a Hugging Face model folder, tokenizer included
        trainer/state.json      step, planned steps, position in the data, events
        trainer/optimizer.safetensors, trainer/random.safetensors
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

from safetensors.torch import save_file

from shoestring.core import matmul
from shoestring.core.errors import ModelFileError, RunError
from shoestring.core.files import atomic_folder, remove_stale, replace_symlink_or_pointer
from shoestring.core.foreign import read_json
from shoestring.core.seeds import restore_rng_state, rng_state
from shoestring.models.weights import TensorFile
from shoestring.train import parallel
from shoestring.train.engine import Engine, EngineState
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.state import TrainerState, is_due, times_left

TIMES = 4  # over a run, when no interval is set
STATE = Path("trainer", "state.json")
OPTIMIZER = Path("trainer", "optimizer.safetensors")
RANDOM = Path("trainer", "random.safetensors")
_STEP_FOLDER = re.compile(r"step-(\d{6,})")
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
        (temporary / "trainer").mkdir()
        save_file(engine.tensors, temporary / OPTIMIZER)
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
    _, numbers = _read_state(folder)
    try:
        with TensorFile(folder / OPTIMIZER) as file:
            engine.restore(file, numbers)
        with TensorFile(folder / RANDOM) as file:
            restore_rng_state({name: file.read(name) for name in file.infos})
    except ModelFileError as error:
        raise RunError(
            error.message, error.where, "remove this checkpoint folder to resume from the one before"
        ) from error


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

    position: where the stream stands, for the trainer's state. write_files: as `write_checkpoint` has it.
    """

    def __init__(
        self,
        out: Path,
        engine: Engine,
        position: Callable[[], dict[str, Any]],
        write_files: Callable[[Path], None],
        every: int | None,
        keep: int,
    ):
        self.out, self.engine, self.position, self.write_files = out, engine, position, write_files
        self.every, self.keep = every, keep
        self._seconds: float | None = None

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        due = is_due(state.step, state.total_steps, self.every, TIMES) or state.best_step == state.step
        if event.last or event.stopping or due:
            started = time.perf_counter()
            state.finished = event.last
            self.save(state)
            self._seconds = time.perf_counter() - started

    def save(self, state: TrainerState) -> None:
        """Now, by the first process, while the others wait."""
        state.data, state.matmul = self.position(), matmul.TABLE.choices()
        moments = self.engine.state()
        if parallel.rank() == 0:
            write_checkpoint(self.out, state, moments, self.keep, self.write_files)
        parallel.wait()

    def seconds_ahead(self, step: int, total: int, step_seconds: float) -> float:
        each = self._seconds
        if each is None:  # moments, and as much again for weights
            each = 0.3 + 1.5 * sum(t.nbytes for t in self.engine.state().tensors.values()) / _DISK_SPEED
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
            (path / STATE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
