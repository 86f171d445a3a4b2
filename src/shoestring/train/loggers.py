"""Where else the metrics go: TensorBoard files in OUT/tensorboard, or a Weights & Biases project.

Both are optional packages (the extra `train`), imported only when the recipe asks for them.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Protocol

from shoestring.core.errors import RunError
from shoestring.core.extras import need
from shoestring.core.files import atomic_write
from shoestring.train import parallel
from shoestring.train.recipe import RunRecipe

ID = "run-id"  # of the run's folder


class Logger(Protocol):
    def add(self, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


def build_loggers(recipe: RunRecipe, out: Path) -> list[Logger]:
    """Those that `log` names, on the first process alone. Raises ConfigError when the package is not installed, and
    RunError when the service is not there."""
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


def as_curves(values: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with a name for each curve: a sample's loss does not go on in the whole text's."""
    if values.get("held_out_set") != "sample":
        return values
    return {f"sample_{name}" if name in ("held_out_loss", "bits_per_byte") else name: v for name, v in values.items()}


class TensorBoard:
    def __init__(self, folder: Path):
        need("tensorboard", "log.tensorboard", "train")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def add(self, values: dict[str, Any]) -> None:
        for name, value in as_curves(values).items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    def __init__(self, recipe: RunRecipe, out: Path):
        need("wandb", "log.wandb", "train")
        import wandb

        try:
            self._run = wandb.init(
                project=recipe.log.wandb, name=out.name, dir=str(out), config=recipe.model_dump(mode="json"),
                id=run_id(out), resume="allow",
            )  # fmt: skip
        except Exception as error:  # its errors are many, and none of them is a fault of ours
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = "wandb login signs in; without --log.wandb the run does as well"
            raise RunError(f"Weights & Biases cannot be reached: {reason}", hint=hint) from error

    def add(self, values: dict[str, Any]) -> None:
        curves = as_curves(values)
        self._run.log({name: value for name, value in curves.items() if name != "step"}, step=values["step"])

    def close(self) -> None:
        self._run.finish()
