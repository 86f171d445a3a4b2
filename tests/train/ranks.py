"""Several processes for a test, started by hand or by torchrun, and what they leave."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    here = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return {**here, **more}


def start(module: str, arguments: Sequence[object], world: int = 2, **more: str) -> list[subprocess.Popen[str]]:
    """`python -m MODULE ARGUMENTS` as each rank, by hand."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), **more}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, text=True,
            env=environment(**meeting, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]  # fmt: skip


def ended(processes: Sequence[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return found


def torchrun(
    module: str, arguments: Sequence[object], *flags: str, world: int = 2, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Under torchrun's elastic agent."""
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--rdzv-backend=c10d"]
    run += ["--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", *flags, "-m", module, *map(str, arguments)]
    return subprocess.run(run, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)
