"""Several ranks on this machine, started and watched by one command: what torchrun does, by the same elastic agent.

Each rank is `python -m shoestring ARGUMENTS` in a session of its own, so a Ctrl-C reaches it once, from the agent, as
SIGTERM does; the agent then waits until all have saved. The agent's port is on loopback, and any that is free. Rank 0
speaks; what others say goes to a file that is shown when one of them was the first to fail.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.interrupt import EXIT_CODE
from shoestring.core.machine import cpu_count
from shoestring.core.units import counted
from shoestring.train.parallel import LAUNCHED

SAVING = 600  # seconds that ranks are given to save themselves
_SHOWN = 30  # lines of a rank that failed


def check_gpus(ranks: int) -> None:
    """Raises ConfigError where there are fewer GPUs than ranks."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ranks > found:
        there = counted(found, "GPU") if found else "no GPU that torch sees"
        hint = f"--ranks {ranks} --device cpu starts as many processes on its cores"
        raise ConfigError(f"{ranks} ranks take {ranks} GPUs, and this machine has {there}", hint=hint)


def launch(arguments: Sequence[str], ranks: int, restarts: int = 0, cpu: bool = False) -> int:
    """Run the command line `shoestring ARGUMENTS` as so many ranks; -> the exit code, of the first that failed.

    restarts: how often all are started again when one fails. cpu: whether they leave GPUs alone.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # our own sentences say it
    with tempfile.TemporaryDirectory(prefix="shoestring-ranks-") as logs, _environment(ranks, cpu):
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=restarts, shutdown_timeout=SAVING,
            signals_to_handle="SIGTERM,SIGINT",
            logs_specs=DefaultLogsSpecs(logs, redirects=dict.fromkeys(range(1, ranks), Std.ALL)),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "shoestring", *arguments)
        except SignalException:  # every rank has saved itself and said so, or was told to stop at once
            return EXIT_CODE
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            _show(rank, Path(logs))
            return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


def follow() -> None:
    """By a rank: it is told to stop, and saves itself, when the command that started it is gone, however it went.

    Linux would send such a signal itself, but once for each thread of the command, and a second one ends a run unsaved.
    """
    command = os.getppid()

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow", daemon=True).start()


@contextlib.contextmanager
def _environment(ranks: int, cpu: bool) -> Iterator[None]:
    """What ranks inherit: their part of the cores, and that they are ranks."""
    threads = str(max(cpu_count() // ranks, 1))
    wanted = {LAUNCHED: str(ranks), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    if cpu:
        wanted["CUDA_VISIBLE_DEVICES"] = ""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _show(rank: int, logs: Path) -> None:
    """The last lines of a rank whose output went to a file; nothing for rank 0, which has spoken."""
    told = sorted(logs.glob(f"*/attempt_*/{rank}/stderr.log"), key=lambda path: path.stat().st_mtime)
    if rank and told:
        lines = told[-1].read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
        console.say("\n".join([f"rank {rank} failed first:", *lines]))
