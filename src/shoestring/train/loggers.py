"""Where else the metrics go: TensorBoard files in OUT/tensorboard, or a Weights & Biases project.

Both are optional packages (the extra `train`), imported only when the recipe asks for them. Neither can end a run: one
that fails is told once and left alone. metrics.jsonl is their spool: a service that has missed something, because the
process was killed or its connection lost, gets it from there when the run goes on, or as it ends.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from shoestring.core.console import say
from shoestring.core.extras import need
from shoestring.core.files import atomic_write
from shoestring.core.waiting import waiting
from shoestring.train import parallel
from shoestring.train.metrics_file import NAME, as_curves, metrics_lines
from shoestring.train.recipe import RunRecipe

ID = "run-id"  # of the run's folder
_SIGN_IN = 30  # seconds to wait for the service
_LEAVE = 120  # and for what it has not taken yet, as the run ends


class Logger(Protocol):
    def add(self, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Service(Protocol):
    """What a logger talks to. has: the last step that it knows already, -1 for none."""

    has: int

    def add(self, step: int, figures: dict[str, float]) -> None: ...
    def close(self) -> None: ...


def build_loggers(recipe: RunRecipe, out: Path) -> list[Logger]:
    """Those that `log` names, on the first process alone. Raises ConfigError when the package is not installed."""
    loggers: list[Logger] = []
    if parallel.rank() != 0:
        return loggers
    if recipe.log.tensorboard:
        need("tensorboard", "log.tensorboard", "train")
        loggers.append(Spooled("tensorboard", lambda: TensorBoard(out / "tensorboard"), out / NAME))
    if recipe.log.wandb:
        need("wandb", "log.wandb", "train")
        loggers.append(Spooled("wandb", lambda: WeightsAndBiases(recipe, out), out / NAME))
    return loggers


class Spooled:
    """A service that may fail, and is brought up to date from a metrics file. begin: opens it."""

    def __init__(self, name: str, begin: Callable[[], Service], file: Path):
        self.name, self.file = name, file
        self._begin = begin
        self._service: Service | None = None
        self._told = False
        self._try(self._open)

    def add(self, values: dict[str, Any]) -> None:
        if self._service is not None:
            self._try(lambda: self._give(values))

    def close(self) -> None:
        """Once more for a service that failed: it may be there again."""
        if self._service is None:
            self._try(self._open)
        self._try(lambda: None if self._service is None else self._service.close())

    def _open(self) -> None:
        self._service = self._begin()
        missed = [values for values in metrics_lines(self.file) if values["step"] > self._service.has]
        if missed:
            with waiting(f"{self.name:<9} gets what it has missed, in lines", len(missed)) as told:
                for values in missed:
                    self._give(values)
                    told.advance()

    def _give(self, values: dict[str, Any]) -> None:
        assert self._service is not None
        if "event" in values or values["step"] <= self._service.has:  # it goes on from before where it was killed
            return
        figures = {
            name: float(value)
            for name, value in as_curves(values).items()
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        if figures:
            self._service.add(values["step"], figures)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # their errors are many, and none of them may end a run
            self._service = None
            if not self._told:
                self._told = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                say(f"{self.name:<9} has failed: {reason}; the run goes on, and {self.file} has everything")


def run_id(out: Path) -> str:
    """By which a service knows the run again when it goes on, and no other: folders of two machines have one name."""
    file = out / ID
    if not file.is_file():
        with atomic_write(file) as opened:
            opened.write(f"{secrets.token_hex(8)}\n")
    return file.read_text(encoding="utf-8").strip()


class TensorBoard:
    """Event files in a folder. What a killed process had not written out yet is not known, so the file of a session
    that goes on has the run from its beginning, and says that those before do not count."""

    has = -1

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        before = folder.is_dir() and any(folder.iterdir())
        self._writer = SummaryWriter(str(folder), purge_step=0 if before else None)

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run there for one here, under an id of its own, however often it is resumed.

    Where the service is not reached (or WANDB_MODE=offline), its package keeps all in OUT/wandb, from the run's
    beginning in each session, and `wandb sync` sends that.
    """

    def __init__(self, recipe: RunRecipe, out: Path):
        import wandb

        settings = {"init_timeout": _SIGN_IN, "finish_timeout": _LEAVE, "console": "off"}
        known: dict[str, Any] = {
            "project": recipe.log.wandb, "name": out.name, "dir": str(out), "config": recipe.model_dump(mode="json"),
            "id": run_id(out), "resume": "allow", "settings": settings,
        }  # fmt: skip
        try:
            with waiting("wandb     begins"):
                self._run = wandb.init(**known)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            with contextlib.suppress(Exception):
                wandb.teardown()
            self._run = wandb.init(**known, mode="offline")
            say(
                f"wandb     cannot be reached: {reason}; it keeps the figures in {out / 'wandb'}, which `wandb sync`"
                " sends (wandb login signs in)"
            )
        self.has = self._run.starting_step - 1  # `step` is 0 there until something has been logged

    def add(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()
