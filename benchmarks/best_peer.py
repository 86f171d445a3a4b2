"""The peer at its best: the fastest number format and mode that it has on this processor, found by trying each once.

A user of a processor with bfloat16 units would not stay in float32, so a ratio to the float32 peer flatters. Formats
are tried in processes of their own for a few steps; one that is far behind, or cannot run, is given up early.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import run_worker

PLAIN = "float32"
FORMATS = (PLAIN, "bfloat16", "autocast", "compiled-float32", "compiled-bfloat16", "compiled-autocast")
_PATIENCE = 4.0  # times the seconds of the float32 trial, before a format is given up
_COMPILING = 300.0  # seconds more for what is compiled first


def best_format(module: str, arguments: Sequence[str], warmup: int) -> str:
    """The format in which `python -m module ARGUMENTS --format F` takes the least time for a step.

    The worker's result has `seconds` of each step, `warmup` of which do not count, and `wall`, its seconds in all.
    """
    found: dict[str, float] = {}
    patience = None
    for name in FORMATS:
        if name.startswith("compiled-") and found.get(name.removeprefix("compiled-"), 0) > 2 * min(found.values()):
            continue  # compiling does not make up for a format that has no units here
        timeout = None if patience is None else patience + _COMPILING * name.startswith("compiled-")
        try:
            result = run_worker(module, *arguments, "--format", name, timeout=timeout)
        except (RuntimeError, TimeoutError) as error:
            print(f"  peer in {name}: given up ({str(error).splitlines()[0][:100]})", file=sys.stderr, flush=True)
            found[name] = float("inf")
            continue
        found[name] = statistics.median(result["seconds"][warmup:])
        if patience is None:
            patience = _PATIENCE * result["wall"]
        print(f"  peer in {name}: {found[name]:.2f} s a step", file=sys.stderr, flush=True)
    return min(found, key=found.__getitem__)


def in_format(model: Any, name: str) -> Any:
    """A model compiled where `name` says so; its weights are the caller's to cast, before an optimizer has them."""
    import torch

    return torch.compile(model) if name.startswith("compiled-") else model


def autocast(name: str) -> Any:
    """The context that a step runs in."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=name.endswith("autocast"))
