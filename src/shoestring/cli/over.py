"""The flags of a run over several machines, which several verbs share, and how its result is shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from shoestring.core import console
from shoestring.core.errors import ConfigError

OverMachines = Annotated[
    Path | None, Parameter(help="machines.yaml: over these machines, each of which holds some layers")
]
Listen = Annotated[
    str | None, Parameter(help="with --over: HOST:PORT, the one address that the others reach (listen there)")
]
Wait = Annotated[str | None, Parameter(help="with --over: how long to wait for a machine, as 10m (wait there)")]
Token = Annotated[
    str | None, Parameter(help="with --over: what the others must know; also SHOESTRING_TOKEN [one is drawn]")
]


def alone(*flags: object) -> None:
    """Raises ConfigError where --ranks, --gpus or --restarts are given: one process on each machine holds layers."""
    if any(flag is not None for flag in flags):
        raise ConfigError("--ranks, --gpus and --restarts are of one machine, and --over names several (command line)")


def run_over(
    run: Callable[..., dict[str, Any]], given: tuple[Path | None, str | None, str | None, str | None], json: bool,
    *arguments: Any, **settings: Any,
) -> None:  # fmt: skip
    """A run over machines, and its result shown. given: the four flags, in order.

    run: `laptops.over.finetune_over` or its like; arguments, settings: for it. Raises ConfigError for flags without
    --over.
    """
    result = found_over(run, given, *arguments, **settings)
    if json:
        console.print_json(result["json"])
    else:
        console.show(result["text"])


def found_over(
    run: Callable[..., dict[str, Any]], given: tuple[Path | None, str | None, str | None, str | None],
    *arguments: Any, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """The same, and nothing shown yet."""
    over, listen, wait, token = given
    if over is None:
        message = "--listen, --wait and --token are of a run over several machines (command line)"
        raise ConfigError(message, hint="add --over MACHINES")
    token = os.environ.get("SHOESTRING_TOKEN") if token is None else token
    return run(over, *arguments, **settings, listen=listen, wait=wait, token=token)
