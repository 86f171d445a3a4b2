"""Where else the metrics go: TensorBoard files in OUT/tensorboard, or a Weights & Biases project.

Both are optional packages (the extra `train`), imported only when the recipe asks for them.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Protocol

from shoestring.core.errors import ConfigError
from shoestring.core.files import atomic_write
from shoestring.train import parallel
from shoestring.train.recipe import RunRecipe

ID = "run-id"  # of the run's folder
_INSTALL = 'install it with: pip install "shoestring[train]"'


class Logger(Protocol):
    def add(self, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


def build_loggers(recipe: RunRecipe, out: Path) -> list[Logger]:
    """Those that `log` names, on the first process alone. Raises ConfigError when the package is not installed."""
    loggers: list[Logger] = []
    if parallel.rank() != 0:
        return loggers
    if recipe.log.tensorboard:
        loggers.append(TensorBoard(out / "tensorboard"))
    if recipe.log.wandb:
        loggers.append(WeightsAndBiases(recipe, out))
    return loggers


def run_id(out: Path) -> str:
    """By which a service knows the run again when it goes on, and no other: folders of two machines have one name."""
    file = out / ID
    if not file.is_file():
        with atomic_write(file) as opened:
            opened.write(f"{secrets.token_hex(8)}\n")
    return file.read_text(encoding="utf-8").strip()


class TensorBoard:
    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("log.tensorboard needs the package tensorboard", hint=_INSTALL) from error
        self._writer = SummaryWriter(str(folder))

    def add(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    def __init__(self, recipe: RunRecipe, out: Path):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("log.wandb needs the package wandb", hint=_INSTALL) from error
        self._run = wandb.init(
            project=recipe.log.wandb, name=out.name, dir=str(out), config=recipe.model_dump(mode="json"),
            id=run_id(out), resume="allow",
        )  # fmt: skip

    def add(self, values: dict[str, Any]) -> None:
        self._run.log({name: value for name, value in values.items() if name != "step"}, step=values["step"])

    def close(self) -> None:
        self._run.finish()
