"""Quantizing the shape of a 3B model inside a memory cgroup, whole and with kills between: are the bytes the same?

    python -m benchmarks.quantize_large [--quick] [--shape qwen2.5-3b] [--memory 3GB] [--method gptq] [--rows 16]
                                        [--kills 2] [--seed 1]

`shoestring quantize --memory` runs in a group of so many bytes, where the kernel ends what takes more: first from start
to end, then again into another folder with a SIGKILL at so many instants of chance, after each of which the same
command goes on. same_bytes: all files of both folders but compression.json, which has times. peak_mb: what the process
says of itself; group_peak_mb: what was charged to the group, page cache included, which the kernel drops at the limit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cgroup import memory_group, why_not
from benchmarks.measure import finish, show
from benchmarks.random_models import SHAPES, large_model
from shoestring.core.files import sha256_file
from shoestring.core.units import parse_bytes

_INSTANTS = (0.2, 0.9)  # of a whole run's time, divided by the number of kills: so that each falls into a run


def run(command: list[str], limit: int, seconds: float | None) -> dict[str, Any]:
    """In a group of `limit` bytes, killed after `seconds` if they are given and it still runs then."""
    began = time.perf_counter()
    with memory_group(limit) as group:
        process = subprocess.Popen(group.command(command), start_new_session=True)
        killed = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # `exec` made it the command itself
            process.wait()
            killed = True
        if group.kills or (process.returncode and not killed):
            raise SystemExit(f"ended with {process.returncode}; the kernel killed {group.kills} for memory")
        return {"seconds": time.perf_counter() - began, "killed": killed, "group_peak": group.peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model in 700 MB")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-3b")
    parser.add_argument("--memory", default="3GB")
    parser.add_argument("--method", choices=("rtn", "gptq", "awq", "learned"), default="gptq")
    parser.add_argument("--rows", type=int, default=16, help="of text to calibrate with; rtn takes none")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the instants")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shape, arguments.memory = "small-70m", "700MB"
    if reason := why_not():
        parser.error(f"needs a memory cgroup: {reason}")
    limit = int(parse_bytes(arguments.memory))
    model = large_model(arguments.shape)
    text = [] if arguments.method == "rtn" else ["--calibrate", "stdlib", "--rows", str(arguments.rows)]
    with tempfile.TemporaryDirectory() as made:
        whole, resumed = Path(made) / "whole", Path(made) / "resumed"
        command = [
            sys.executable, "-m", "shoestring", "quantize", str(model), "--method", arguments.method, *text,
            "--memory", arguments.memory, "--out",
        ]  # fmt: skip
        first = run([*command, str(whole)], limit, None)
        report = json.loads((whole / "compression.json").read_text())
        chance, runs = random.Random(arguments.seed), [["whole", first["seconds"], first["group_peak"]]]
        for _ in range(arguments.kills):
            instant = first["seconds"] * chance.uniform(*_INSTANTS) / arguments.kills
            each = run([*command, str(resumed)], limit, instant)
            if not each["killed"]:
                break
            runs.append(["killed", each["seconds"], each["group_peak"]])
        if not (resumed / "compression.json").is_file():
            last = run([*command, str(resumed)], limit, None)
            runs.append(["went on", last["seconds"], last["group_peak"]])
        kills = sum(name == "killed" for name, *_ in runs)
        same = digests(whole) == digests(resumed)
    rows = [[name, f"{seconds:.0f}", f"{peak / 1e6:,.0f}"] for name, seconds, peak in runs]
    show(f"{arguments.method} of {arguments.shape} within {arguments.memory}", ["run", "s", "group's peak MB"], rows)
    finish(
        {
            "seconds": first["seconds"], "peak_mb": report["peak_memory"] / 1e6,
            "group_peak_mb": max(peak for *_, peak in runs) / 1e6, "kills": kills, "same_bytes": same,
            "matrices": len(report["matrices"]),
        }
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != "compression.json"}


if __name__ == "__main__":
    main()
