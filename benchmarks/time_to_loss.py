"""Seconds to a validation loss: a character model trained by Shoestring, beside nanoGPT's settings for a CPU.

    python -m benchmarks.time_to_loss --text tinyshakespeare.txt --target 1.88 [--rounds 3]

Each is trained in processes of its own that take turns, on the same threads. What counts is the wall clock from the
start of the process (imports, reading the text, making the model) to the first evaluation at or below the target;
evaluations themselves are taken out. Both are scored alike (`benchmarks.characters`) at the same shares of their steps.
A baseline that ends above the target has the time of its whole run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

WORKERS = ("shoestring", "baseline")


class Training(Protocol):
    steps: int
    done: int

    def step(self) -> None: ...
    def logits(self, tokens: Tensor) -> Tensor: ...


def is_evaluated(done: int, steps: int) -> bool:
    """Ten times in the first 80% of the steps, and after each 1% of them from there on."""
    often, seldom = max(steps // 100, 1), max(steps * 8 // 100, 1)
    return done == steps or done % (seldom if done < steps * 0.8 else often) == 0


def train_to(target: float, training: Training, validation: Tensor, started: float) -> dict[str, Any]:
    """Until the target or the end. started: `time.time()` of the process's start.

    -> seconds, loss and steps at the last evaluation, whether it reached the target, the seconds `before` the first
    step, and all evaluations as `curve` of (steps, seconds, loss).
    """
    from benchmarks.characters import score

    before = time.time() - started
    evaluating, curve = 0.0, []
    while training.done < training.steps and not (curve and curve[-1][2] <= target):
        training.step()
        if is_evaluated(training.done, training.steps):
            paused = time.time()
            curve.append((training.done, paused - started - evaluating, score(training.logits, validation)))
            evaluating += time.time() - paused
    steps, seconds, loss = curve[-1]
    return {
        "seconds": seconds, "loss": loss, "steps": steps, "reached": loss <= target, "before": before, "curve": curve,
    }  # fmt: skip


def _work(who: str, text: Path, target: float, seed: int, started: float) -> dict[str, Any]:
    from benchmarks.characters import read_characters

    characters = read_characters(text)
    training: Training
    if who == "shoestring":
        from benchmarks import fast_characters

        training = fast_characters.Training(characters.train, characters.vocabulary, seed)
    else:
        from benchmarks import plain_gpt

        training = plain_gpt.Training(characters.train, characters.vocabulary, seed)
    return train_to(target, training, characters.validation, started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="a file of text; 90%% of it trains")
    parser.add_argument("--target", type=float, default=1.88, help="nats per character of the rest (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, with seeds of their own (%(default)s)")
    parser.add_argument("--only", choices=WORKERS, help="run this one alone, and print no speedup")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        result = _work(arguments.worker, arguments.text, arguments.target, arguments.seed, arguments.started)
        print(json.dumps(result))
        return
    if not arguments.text.is_file():
        parser.error(f"--text: no file {arguments.text}")
    _report(arguments)


def _report(arguments: argparse.Namespace) -> None:
    from benchmarks.measure import finish, median, run_worker, show

    def run(who: str, seed: int, target: float) -> dict[str, Any]:
        given = {"text": arguments.text, "target": target, "seed": seed, "started": time.time()}
        flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return run_worker("benchmarks.time_to_loss", "--worker", who, *flags)

    who = [arguments.only] if arguments.only else list(WORKERS)
    first: dict[str, Any] | None = None
    if "shoestring" in who:  # once on a machine products are measured (`core.matmul_choice`) and kernels are compiled
        print("before: Shoestring's first steps", file=sys.stderr, flush=True)
        first = run("shoestring", 0, 100.0)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in who}
    for seed in range(1, arguments.rounds + 1):
        for name in who:
            print(f"round {seed}/{arguments.rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(run(name, seed, arguments.target))
    rows = [
        [name, str(seed), f"{run['seconds']:.2f}", f"{run['before']:.2f}", str(run["steps"]), f"{run['loss']:.4f}"]
        for name in who
        for seed, run in enumerate(results[name], 1)
    ]
    show(f"to {arguments.target} nats a character", ["", "seed", "s", "of it before", "steps", "loss"], rows)
    if first is not None:
        print(
            f"before the rounds a run of {first['steps']} steps took {first['seconds']:.1f} s: the first on a machine"
            " measures matrix products and compiles kernels, which later ones read from its cache"
        )
    short = {name: sum(not run["reached"] for run in results[name]) for name in who}
    for name, count in short.items():
        if count:
            print(f"{name}: {count} of {arguments.rounds} runs ended above the target; their time is of the whole run")
    figures: dict[str, Any] = {"target": arguments.target, "rounds": arguments.rounds}
    for name in who:
        figures[f"{name}_seconds"] = median(results[name], "seconds")
        figures[f"{name}_loss"] = median(results[name], "loss")
        figures[f"{name}_reached"] = arguments.rounds - short[name]
    if not arguments.only:
        figures["speedup"] = figures["baseline_seconds"] / figures["shoestring_seconds"]
    finish(figures)


if __name__ == "__main__":
    main()
