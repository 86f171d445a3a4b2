"""Memory and time that are predicted before anything starts, beside the counted and the measured ones.

    python -m benchmarks.prediction [--jobs all] [--quick] [--only streamed] [--keep FILE]

Every case of `prediction_cases` is a run in a process of its own, whose receipt (`plan.receipt`) is read: pretraining,
fine-tuning and distilling of six steps with held-out loss and checkpoints as usual, quantizing, perplexity, generation;
on random weights and rows that are full. The process's peak is the kernel's (VmHWM), that of tensors the allocator's.
worst_over and worst_under are shares of the process's peak, by which a prediction was too high or too low, before any
calibration; worst_tensors is the largest relative error of the tensors' peak.

Seconds are of a step, of a block that is quantized, or of a whole use. They are judged after calibration: each
case is corrected by the factor that the other cases of its job and engine gave (`plan.calibration`), never its own.
time_p90: within which share 90% of predictions are of what was measured; time_p90_before: without calibration.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, run_worker, show
from benchmarks.prediction_cases import CASES, WORKERS, Case, prepare

NAME = "benchmarks.prediction"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", default="all", help="all, or some of pretrain, finetune and so on, with commas")
    parser.add_argument("--quick", action="store_true", help="one case of each use")
    parser.add_argument("--only", help="cases with this word in their name")
    parser.add_argument("--keep", type=Path, help="write the receipts here, one a line")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        case = CASES[arguments.worker]
        print(json.dumps(WORKERS[case.use](case, arguments.folder)))
        return
    jobs = set(WORKERS) if arguments.jobs == "all" else set(arguments.jobs.split(","))
    if unknown := jobs - set(WORKERS):
        parser.error(f"--jobs {', '.join(sorted(unknown))}: known are all, {', '.join(WORKERS)}")
    chosen = [n for n, case in enumerate(CASES) if case.use in jobs and (arguments.only or "") in str(case)]
    if arguments.quick:
        chosen = list({CASES[number].use: number for number in reversed(chosen)}.values())
    measured = []
    with tempfile.TemporaryDirectory() as text:
        prepare([CASES[number] for number in chosen], Path(text))
        for number in chosen:
            result = run_worker(NAME, "--worker", str(number), "--folder", text)
            measured.append((CASES[number], result["receipt"]))
            if arguments.keep is not None:
                with open(arguments.keep, "a", encoding="utf-8") as kept:
                    kept.write(json.dumps({"case": str(CASES[number]), **result["receipt"]}) + "\n")
            print(f"{CASES[number]}: {_in_short(result)}", file=sys.stderr, flush=True)
    _report(measured)


def _in_short(result: dict[str, Any]) -> str:
    receipt = result["receipt"]
    return ", ".join(
        f"{name} {receipt[f'predicted_{name}']:.4g} predicted, {receipt[f'measured_{name}']:.4g} measured"
        for name in ("memory", "tensors", "seconds")
    ) + f"; {result['wall']:.1f} s"  # fmt: skip


def _report(measured: list[tuple[Case, dict[str, Any]]]) -> None:
    receipts = [receipt for _, receipt in measured]
    errors = [_error(receipt, "memory") for receipt in receipts]
    tensors = [_error(receipt, "tensors") for receipt in receipts]
    before = [_error(receipt, "seconds") for receipt in receipts]
    factors = calibrated(receipts)
    after = [(1 + error) * factor - 1 for error, factor in zip(before, factors, strict=True)]
    rows = []
    for (case, receipt), memory, share, first, then in zip(measured, errors, tensors, before, after, strict=True):
        sizes = [f"{receipt[name] / 1e6:,.0f}" for name in ("predicted_memory", "measured_memory")]
        seconds = [f"{receipt[name]:.3g}" for name in ("predicted_seconds", "measured_seconds")]
        rows.append([str(case), *sizes, f"{memory:+.1%}", f"{share:+.1%}", *seconds, f"{first:+.0%}", f"{then:+.0%}"])
    columns = [
        "case", "predicted MB", "measured", "error", "tensors", "predicted s", "measured", "error", "calibrated",
    ]  # fmt: skip
    show("predicted and measured peak memory of a process, and seconds", columns, rows)
    finish({
        "cases": len(errors),
        "worst_over": max(0.0, *errors),
        "worst_under": max(0.0, *(-e for e in errors)),
        "worst_tensors": max(map(abs, tensors)),
        "time_p90": within(after),
        "time_p90_before": within(before),
    })  # fmt: skip


def _error(receipt: dict[str, Any], name: str) -> float:
    """By which share of what was measured the prediction was above it."""
    return receipt[f"predicted_{name}"] / receipt[f"measured_{name}"] - 1


def calibrated(receipts: Sequence[dict[str, Any]]) -> list[float]:
    """The factor of time for each, that of all others of its job and engine; 1 where there are none."""
    from shoestring.plan.calibration import corrections_by
    from shoestring.plan.receipt import parsed

    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, receipt in enumerate(receipts):
        groups[receipt["job"], receipt["engine"]].append(number)
    factors = [1.0] * len(receipts)
    for members in groups.values():
        for number in members:
            found, _ = corrections_by([parsed(receipts[other]) for other in members if other != number], fewest=1)
            factors[number] = found[0].seconds if found else 1.0
    return factors


def within(errors: Sequence[float], share: float = 0.9) -> float:
    """The least x so that this share of the errors lies between -x and x."""
    ordered = sorted(map(abs, errors))
    return ordered[max(-(-len(ordered) * round(share * 100) // 100), 1) - 1]


if __name__ == "__main__":
    main()
