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

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoestring.core import matmul
from shoestring.core.errors import ModelFileError, RunError
from shoestring.core.files import atomic_folder, remove_stale, replace_symlink_or_pointer
from shoestring.core.seeds import restore_rng_state, rng_state
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, write_model_files
from shoestring.models.weights import TensorFile
from shoestring.train import parallel
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.state import TrainerState, is_due, times_left

TIMES = 4  # over a run, when no interval is set
STATE = Path("trainer", "state.json")
OPTIMIZER = Path("trainer", "optimizer.safetensors")
RANDOM = Path("trainer", "random.safetensors")
_STEP_FOLDER = re.compile(r"step-(\d{6,})")
_DISK_SPEED = 200e6  # bytes per second, a careful first estimate until a checkpoint has been timed


def write_checkpoint(
    out: Path,
    state: TrainerState,
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    tokenizer: Tokenizer | None,
    keep: int,
    write_files: Callable[[Path], None] | None = None,
) -> Path:
    """Write OUT/step-NNNNNN, point OUT/latest at it (and OUT/best, where a best is kept), delete all but the newest
    `keep` and the best.

    write_files: writes another form than a whole model into a folder, such as an adapter. Raises RunError (disk full).
    """
    folder = out / f"step-{state.step:06d}"
    with atomic_folder(folder, replace=True) as temporary:
        if write_files is not None:
            write_files(temporary)
        else:
            write_model_files(model, temporary, tokenizer)
        (temporary / "trainer").mkdir()
        tensors, numbers = _optimizer_state(optimizer, model)
        save_file(tensors, temporary / OPTIMIZER)
        save_file(rng_state(), temporary / RANDOM)
        content = {**state.to_json(), "optimizer": numbers}
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


def resume(folder: Path, device: torch.device) -> Decoder:
    """The model of a checkpoint in float32, ready to train on. Raises ModelFileError when it is damaged."""
    return load_model(folder, device=device, dtype=torch.float32)


def restore_optimizer(folder: Path, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
    """Moments, step counts and the states of the random generators.

    Raises RunError when they do not fit.
    """
    _, numbers = _read_state(folder)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    try:
        with TensorFile(folder / OPTIMIZER) as file:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = names[id(parameter)]
                restored: dict[str, Any] = dict(numbers.get(name, {}))
                for key in (key for key in file.infos if key.rpartition("/")[0] == name):
                    restored[key.rpartition("/")[2]] = _read(file, key, parameter)
                if not restored:
                    raise RunError(f"the optimizer's state lacks {name}", str(folder / OPTIMIZER))
                optimizer.state[parameter] = restored
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
    """Saves every so often, after the last step, and when the user asked to stop."""

    def __init__(
        self,
        out: Path,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        tokenizer: Tokenizer | None,
        data_state: Callable[[], dict[str, Any]],
        every: int | None,
        keep: int,
        write_files: Callable[[Path], None] | None = None,
    ):
        self.out, self.model, self.optimizer, self.tokenizer = out, model, optimizer, tokenizer
        self.data_state, self.every, self.keep, self.write_files = data_state, every, keep, write_files
        self._seconds: float | None = None

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        due = is_due(state.step, state.total_steps, self.every, TIMES) or state.best_step == state.step
        if not (event.last or event.stopping or due):
            return
        started = time.perf_counter()
        state.data, state.matmul = self.data_state(), matmul.TABLE.choices()
        state.finished = event.last
        if parallel.rank() == 0:
            write_checkpoint(
                self.out, state, self.model, self.optimizer, self.tokenizer, self.keep, self.write_files
            )
        parallel.wait()
        self._seconds = time.perf_counter() - started

    def seconds_ahead(self, step: int, total: int, step_seconds: float) -> float:
        each = self._seconds
        if each is None:  # weights and two moments, in float32
            trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            each = 0.3 + 12 * trained / _DISK_SPEED
        return each * (times_left(step, total, self.every, TIMES) + 1)


def _optimizer_state(
    optimizer: torch.optim.Optimizer, model: Decoder
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Tensors by "PARAMETER/key" (views of the live ones on a CPU), and plain numbers by parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.detach().to("cpu").contiguous()
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


def _read(file: TensorFile, key: str, parameter: Tensor) -> Tensor:
    """Moments lie like their parameter, on its device.

    Scalars (step counts) where the optimizer made them.
    """
    info = file.infos[key]
    device = (
        parameter.device if info.shape == tuple(parameter.shape) or parameter.device.type != "cpu" else "cpu"
    )
    if info.shape not in (tuple(parameter.shape), ()):
        raise RunError(
            f"{key} has the shape {list(info.shape)}, the parameter {list(parameter.shape)}", str(file.path)
        )
    target = torch.empty(info.shape, dtype=info.dtype, device=device)
    file.read_into(key, target)
    return target


def _read_state(folder: Path) -> tuple[TrainerState, dict[str, dict[str, float]]]:
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        numbers = content.pop("optimizer")
        return TrainerState.from_json(content), numbers
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"not a trainer state: {error}", str(folder / STATE), "remove this checkpoint folder"
        ) from error


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
