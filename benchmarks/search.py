"""Tokens that TPE with Hyperband reads until it is as good as the best point of a full grid, beside the grid's tokens.

    python -m benchmarks.search [--seeds 3] [--tokens 32k] [--workers 1] [--keep FOLDER]

A small model learns Python's standard library. The grid has every combination of six learning rates, three batches and
two weight decays; each trial reads equally many tokens. The search moves in the same bounds, without the recipe itself
as its first trial, and with each seed from nothing. `tokens_ratio` is the median over seeds of the tokens that it had
read when a trial first came to its end at or below the grid's best, over all the grid's tokens; those of trials that
were ended early count. A seed that never gets there counts with all its tokens, and `reached` is of how many did.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, show

RECIPE = "quickstart-smoke"
RATES, BATCHES, DECAYS = (1e-3, 1e-1), (512, 1024, 2048), (0.0, 0.2)
MOST = 0.5  # of the grid's tokens: a search that has read them has not made it


@dataclass(frozen=True)
class Ended:
    """A trial. value: None of one that did not come to its end."""

    tokens: int
    value: float | None


@dataclass(frozen=True)
class Reached:
    """tokens: read up to and with the trial that reached it, or all of them. trials: as many."""

    tokens: int
    trials: int
    reached: bool
    best: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="searches, each with its own")
    parser.add_argument("--tokens", default="32k", help="of each trial")
    parser.add_argument("--workers", type=int, default=1, help="trials at once")
    parser.add_argument("--keep", type=Path, help="folder of the studies; what is there is gone on with")
    parser.add_argument("--quick", action="store_true", help="a grid of four points, 8k tokens, one seed: coarse")
    arguments = parser.parse_args()
    points = 2 if arguments.quick else 6
    if arguments.quick:
        arguments.seeds, arguments.tokens = 1, "8k"
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        grid = searched(folder / "grid", space(points, arguments.quick), arguments, sampler="grid")
        count = len(grid)
        found = []
        for seed in range(1, arguments.seeds + 1):
            given = {"sampler": "tpe", "pruner": "hyperband", "seed": seed, "trials": count, "until": best_of(grid)}
            found.append(searched(folder / f"tpe-{seed}", space(points, arguments.quick), arguments, **given))
    report(grid, found)


def space(points: int, quick: bool = False) -> dict[str, Any]:
    """For a grid of so many rates; a search moves between them."""
    return {
        "optimizer.learning_rate": {"log": list(RATES), "points": points},
        "train.batch_tokens": list(BATCHES[:2] if quick else BATCHES),
        **({} if quick else {"optimizer.weight_decay": {"uniform": list(DECAYS), "points": 2}}),
    }


def searched(
    folder: Path, space: dict[str, Any], arguments: argparse.Namespace, until: float | None = None, **given: Any
) -> list[Ended]:
    """The trials of a study in this folder, in their order."""
    from shoestring.search.folder import STUDY, open_study
    from shoestring.search.results import counted_trials
    from shoestring.search.run import search

    began = time.monotonic()
    if (folder / STUDY).is_file():
        search(resume=folder, workers=arguments.workers, until=until)
    else:
        overrides = {"train.evaluate_tokens": 4096, "train.final_evaluate_tokens": 16384}
        search(
            RECIPE, space, out=folder, trial_tokens=arguments.tokens, baseline=False, keep="none",
            workers=arguments.workers, overrides=overrides, until=until, **given,
        )  # fmt: skip
    trials = counted_trials(open_study(folder).opened()[0])
    print(f"{folder.name}: {len(trials)} trials, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return [
        Ended(trial.user_attrs.get("tokens", 0), trial.values[0] if trial.state.name == "COMPLETE" else None)
        for trial in trials
    ]


def best_of(trials: Sequence[Ended]) -> float:
    return min(trial.value for trial in trials if trial.value is not None)


def reach(trials: Sequence[Ended], target: float) -> Reached:
    """How far a search went until a trial came to its end at or below the target."""
    tokens, best = 0, None
    for number, trial in enumerate(trials, 1):
        tokens += trial.tokens
        if trial.value is not None:
            best = trial.value if best is None else min(best, trial.value)
            if trial.value <= target:
                return Reached(tokens, number, True, best)
    return Reached(tokens, len(trials), False, best)


def figures(grid: Sequence[Ended], searches: Sequence[Sequence[Ended]]) -> dict[str, Any]:
    whole, target = sum(trial.tokens for trial in grid), best_of(grid)
    reached = [reach(trials, target) for trials in searches]
    ratios = [one.tokens / whole for one in reached]
    return {
        "tokens_ratio": statistics.median(ratios),
        "worst_ratio": max(ratios),
        "reached": sum(one.reached for one in reached),
        "within_half": sum(one.reached and ratio <= MOST for one, ratio in zip(reached, ratios, strict=True)),
        "seeds": len(reached),
        "grid_trials": len(grid),
        "grid_tokens": whole,
        "grid_best": target,
    }


def report(grid: Sequence[Ended], searches: Sequence[Sequence[Ended]]) -> None:
    found = figures(grid, searches)
    rows = [["grid", str(len(grid)), f"{found['grid_tokens']:,}", f"{found['grid_best']:.4f}", "", "1.00"]]
    for seed, trials in enumerate(searches, 1):
        one = reach(trials, found["grid_best"])
        ratio = f"{one.tokens / found['grid_tokens']:.2f}"
        best = "" if one.best is None else f"{one.best:.4f}"
        ended = sum(trial.value is None for trial in trials[: one.trials])
        mark = "" if one.reached else " (not reached)"
        rows.append([f"TPE, seed {seed}{mark}", str(one.trials), f"{one.tokens:,}", best, str(ended), ratio])
    columns = ["until the grid's best", "trials", "tokens", "bits/byte", "ended early", "of the grid's tokens"]
    show(f"{found['grid_tokens'] // len(grid):,} tokens a trial", columns, rows)
    finish(found)


if __name__ == "__main__":
    main()
