"""Two ranks of one core each beside one rank of one core: what the second core brings, and where it waits.

    python -m benchmarks.parallel [--quick] [--recipe velocity-2b-smoke]

One rank, and two under DDP and FSDP2, train the same steps of a smoke recipe in float32, each rank in a process of its
own, pinned to a core of its own; they take turns, and medians are compared. Efficiency is the tokens per second of two
over twice those of one. Waiting is what `metrics.jsonl` calls so: for others, and for what a rank has to exchange
itself. Under FSDP2 the tensors of each rank, as the allocator counts them, stand beside what was predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, finish, show

WARM = 4  # steps, not counted
TOKENS = 4096  # of a step
KINDS = {"one": (1, "ddp"), "ddp": (2, "ddp"), "fsdp": (2, "fsdp")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps: coarse, under a minute")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of a round")
    parser.add_argument("--recipe", default="velocity-2b-smoke")
    parser.add_argument("--worker", choices=sorted(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        os.sched_setaffinity(0, {arguments.core})  # before any library counts cores
        print(json.dumps(_train(arguments.recipe, KINDS[arguments.worker][1], arguments.steps, arguments.out)))
        return
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("error: processes are pinned to cores, which this system does not do")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("error: two ranks of one core each need two cores")
    rounds, steps = (1, 12) if arguments.quick else (arguments.rounds, arguments.steps)
    found: dict[str, list[list[dict[str, Any]]]] = {kind: [] for kind in KINDS}
    for round_ in range(rounds):
        for kind in KINDS:
            print(f"round {round_ + 1}/{rounds}: {kind}", file=sys.stderr, flush=True)
            found[kind].append(ranks(kind, arguments.recipe, steps, cores[:2]))
    _report(arguments.recipe, found)


def ranks(kind: str, recipe: str, steps: int, cores: list[int]) -> list[dict[str, Any]]:
    """What each rank of one round has measured."""
    world = KINDS[kind][0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    around = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    around |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.parallel", "--worker", kind, "--recipe", recipe]
        command += ["--steps", str(steps), "--out", str(Path(folder) / "run")]
        workers = [
            subprocess.Popen(
                [*command, "--core", str(core)], env={**around, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank, core in enumerate(cores[:world])
        ]  # fmt: skip
        told = [worker.communicate() for worker in workers]
    for worker, (_, err) in zip(workers, told, strict=True):
        if worker.returncode:
            raise RuntimeError(f"a rank of {kind} failed:\n{err[-4000:]}")
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in told]


def _train(recipe: str, kind: str, steps: int, out: Path) -> dict[str, Any]:
    """One rank of a run: seconds of its steps, and for how many of these it waited."""
    from shoestring.pretraining.job import pretrain
    from shoestring.train.loop import Callback
    from shoestring.train.watching import watched_by

    class Clock(Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.waited: list[float] = []

        def after_step(self, event: Any) -> None:
            self.seconds.append(event.seconds)
            self.waited.append(event.waited)

    clock = Clock()
    with watched_by(clock):
        result = pretrain(
            recipe, out=out, train__steps=steps + WARM, train__evaluate_every=10**6, train__checkpoint_every=10**6,
            train__batch_tokens=TOKENS, train__microbatch=None, precision__compute="float32", parallel__kind=kind,
        )  # fmt: skip
    return {
        "seconds": statistics.median(clock.seconds[WARM:]),
        "waited": statistics.median(clock.waited[WARM:]),
        "tokens": result.tokens / result.steps,
        "memory": result.tensor_memory,
        "predicted": result.predicted_tensor_memory,
    }


def figures(found: dict[str, list[list[dict[str, Any]]]]) -> dict[str, float]:
    """Of all rounds: found[kind][round][rank]."""

    def rate(kind: str) -> float:
        return statistics.median(of_ranks[0]["tokens"] / of_ranks[0]["seconds"] for of_ranks in found[kind])

    told: dict[str, float] = {}
    for kind, name in (("ddp", ""), ("fsdp", "_fsdp")):
        told[f"efficiency{name}"] = rate(kind) / (2 * rate("one"))
        for rank in (0, 1):
            waited = [of_ranks[rank]["waited"] / of_ranks[rank]["seconds"] for of_ranks in found[kind]]
            told[f"waiting{name}_{rank}"] = statistics.median(waited)
    errors = [
        abs(of_rank["memory"] / of_rank["predicted"] - 1)
        for of_ranks in found["fsdp"] for of_rank in of_ranks if of_rank["memory"] and of_rank["predicted"]
    ]  # fmt: skip
    if errors:
        told["memory_error"] = max(errors)
    return told


def _report(recipe: str, found: dict[str, list[list[dict[str, Any]]]]) -> None:
    rows = []
    for kind, (world, _) in KINDS.items():
        first = found[kind][len(found[kind]) // 2]
        rate = statistics.median(r[0]["tokens"] / r[0]["seconds"] for r in found[kind])
        for rank, of_rank in enumerate(first):
            waited = statistics.median(r[rank]["waited"] for r in found[kind])
            memory = f"{of_rank['memory'] / 1e6:.1f}" if of_rank["memory"] else "not counted"
            rows.append([
                f"{kind}, rank {rank} of {world}", f"{rate:,.0f}", f"{of_rank['seconds'] * 1e3:.1f}",
                f"{waited * 1e3:.1f}", memory, f"{of_rank['predicted'] / 1e6:.1f}",
            ])  # fmt: skip
    columns = ["", "tokens/s of all", "step, ms", "of it waiting, ms", "tensors, MB", "predicted, MB"]
    show(f"{recipe} in float32, one core for each rank, median of {len(found['one'])} rounds", columns, rows)
    finish(figures(found))


if __name__ == "__main__":
    main()
