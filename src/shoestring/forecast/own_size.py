"""How large a process is before it has a model: `python -m shoestring.forecast.own_size` prints it.

Libraries are read in as the jobs do, least first, so each figure is that of a process which needs no more.
"""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence

from shoestring.core.errors import RunError
from shoestring.plan.machine_file import ProcessConfig, ProcessKind

_JOBS = ("offload.load", "pretraining.job", "finetuning.job", "compression.distill.job", "compression.quantize.job")
_GROWN = 450_000_000  # bytes that no process has which has only read the libraries in


def own_size(kinds: Sequence[ProcessKind] = ("decoding", "training", "checkpointing")) -> dict[ProcessKind, int]:
    """Bytes of this process with what each of these kinds of work loads; it stays loaded."""
    from shoestring.core.machine import rss_bytes
    from shoestring.kernels import allocator
    from shoestring.train.first_use import first_use

    allocator.install()
    for name in _JOBS:
        importlib.import_module(f"shoestring.{name}")
    found: dict[ProcessKind, int] = {}
    for kind in ("decoding", "training", "checkpointing"):
        if kind in kinds:
            first_use(training=kind != "decoding", checkpointing=kind == "checkpointing")
            found[kind] = rss_bytes() - allocator.kept()
    return found


def sizes_for(training: bool) -> ProcessConfig:
    """Of this process as it is for such a job, or, where it has done other things already, of one that has not."""
    from shoestring.core.machine import rss_bytes

    if rss_bytes() > _GROWN:
        return fresh_sizes()
    sizes = own_size(("training", "checkpointing") if training else ("decoding", "training"))
    small, large = sizes.get("decoding", sizes["training"]), sizes.get("checkpointing", sizes["training"])
    return ProcessConfig(decoding=small, training=sizes["training"], checkpointing=large)


@functools.cache
def fresh_sizes() -> ProcessConfig:
    """Of a process that has done nothing else. Raises RunError where it ends before it has said them."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True)
    try:
        return ProcessConfig.model_validate(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        raise RunError(
            "a process of its own was to tell how large it is, and did not", hint=done.stderr.strip()[-500:] or None
        ) from None


if __name__ == "__main__":
    print(json.dumps(own_size()))
