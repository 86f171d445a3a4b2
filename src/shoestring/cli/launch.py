"""`--ranks N` and `--gpus N`: a command that starts several ranks of itself on this machine, and waits for them.

Two flags for one thing, since a person counts GPUs where there are some and processes where there are none; --gpus
also refuses to train on a CPU. They are no settings of a recipe: a run goes on with any number of ranks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.core.errors import ConfigError
from shoestring.core.given import COMMAND

Ranks = Annotated[
    int | None,
    Parameter(help="processes that train together on this machine, each with a part of the cores or a GPU of its own"),
]
Gpus = Annotated[int | None, Parameter(help="the same, for so many GPUs")]
Restarts = Annotated[
    int | None, Parameter(help="times that all ranks are started again when one fails; the run goes on [0]")
]


def is_rank() -> bool:
    """Whether this process is one of several that a command has started."""
    return "SHOESTRING_LAUNCHED" in os.environ


def launched(
    ranks: int | None, gpus: int | None, restarts: int | None, device: str | None, out: str | Path | None
) -> int | None:
    """Start them and wait; -> their exit code. None where this process does the work itself.

    device, out: as the recipe and the command line have them. Raises ConfigError for what cannot be started.
    """
    if is_rank():
        from shoestring.train.launch import follow

        follow()
        return None
    count = _count(ranks, gpus)
    if restarts is not None and count < 2:
        hint = "give --ranks or --gpus"
        raise ConfigError("--restarts is for several ranks, and here is one (command line)", hint=hint)
    if restarts is not None and restarts < 0:
        raise ConfigError(f"--restarts: expected 0 or more, found {restarts} (command line)")
    if gpus is not None and device not in (None, "auto", "cuda"):
        raise ConfigError(f"--gpus takes GPUs, and device is {device}", hint="give --ranks instead")
    if count > 1 and "WORLD_SIZE" in os.environ:
        flag = "--ranks" if gpus is None else "--gpus"
        raise ConfigError("torchrun has started this process already (command line)", hint=f"leave out {flag}")
    if restarts and out is None:
        hint = "so that ranks that are started again find the run"
        raise ConfigError("--restarts needs --out (command line)", hint=hint)
    if gpus is None and count < 2:
        return None

    import torch

    from shoestring.train.launch import check_gpus, launch

    if gpus is not None or (device in (None, "auto", "cuda") and torch.cuda.is_available()):
        check_gpus(count)
    return launch(COMMAND.get(), count, restarts or 0, cpu=device == "cpu") if count > 1 else None


def _count(ranks: int | None, gpus: int | None) -> int:
    if ranks is not None and gpus is not None:
        raise ConfigError("--ranks and --gpus are one number (command line)", hint="give one of them")
    flag, count = ("--ranks", ranks) if gpus is None else ("--gpus", gpus)
    if count is not None and count < 1:
        raise ConfigError(f"{flag}: expected 1 or more, found {count} (command line)")
    return count or 1
