"""The peak memory that is predicted before anything starts, beside the counted and the measured one.

    python -m benchmarks.prediction [--quick] [--only streamed]

Every case of `prediction_cases` is a run in a process of its own: pretraining and fine-tuning of three steps with
held-out loss and checkpoints as usual, perplexity, generation; on random weights and rows that are full. The process's
peak is the kernel's (VmHWM), that of tensors the allocator's. worst_over and worst_under are shares of the process's
peak, by which a prediction was too high or too low; worst_tensors is the largest relative error of the tensors' peak.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, run_worker, show
from benchmarks.prediction_cases import CASES, WORKERS, Case, prepare

NAME = "benchmarks.prediction"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one case of each use")
    parser.add_argument("--only", help="cases with this word in their name")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        case = CASES[arguments.worker]
        print(json.dumps(WORKERS[case.use](case, arguments.folder)))
        return
    chosen = [number for number, case in enumerate(CASES) if (arguments.only or "") in str(case)]
    if arguments.quick:
        chosen = list({CASES[number].use: number for number in reversed(chosen)}.values())
    measured = []
    with tempfile.TemporaryDirectory() as text:
        prepare([CASES[number] for number in chosen], Path(text))
        for number in chosen:
            result = run_worker(NAME, "--worker", str(number), "--folder", text)
            measured.append((CASES[number], result))
            print(f"{CASES[number]}: {json.dumps(result)}", file=sys.stderr, flush=True)
    _report(measured)


def _report(measured: list[tuple[Case, dict[str, Any]]]) -> None:
    errors = [(result["predicted"] - result["peak"]) / result["peak"] for _, result in measured]
    tensors = [(result["predicted_tensors"] - result["tensors"]) / result["tensors"] for _, result in measured]
    rows = []
    for (case, result), error, share in zip(measured, errors, tensors, strict=True):
        figures = [result[name] / 1e6 for name in ("predicted", "peak", "predicted_tensors", "tensors")]
        shown = [f"{figure:,.0f}" for figure in figures]
        rows.append([str(case), *shown[:2], f"{error:+.1%}", *shown[2:], f"{share:+.1%}"])
    columns = ["case", "predicted MB", "measured", "error", "tensors predicted", "counted", "error"]
    show("predicted and measured peak memory of a process", columns, rows)
    finish({
        "cases": len(errors),
        "worst_over": max(0.0, *errors),
        "worst_under": max(0.0, *(-e for e in errors)),
        "worst_tensors": max(map(abs, tensors)),
    })  # fmt: skip


if __name__ == "__main__":
    main()
