"""What a GPU gives: parity with the CPU, speeds as a share of the measured peak, memory predicted and measured.

    python -m benchmarks.gpu [--cases machine,elite-bf16] [--seconds 480]     on CUDA, at most 8 minutes
    python -m benchmarks.gpu --device cpu                                     its twin at tiny sizes: that it runs

It needs torch and this package's own dependencies; what is missing or fails is told as "not available" with the reason
and the rest goes on. On a GPU every case is a process of its own with a limit of time; nothing is downloaded: weights
and tokens are random. A progress line for each case goes to stderr; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measure import run_worker, show

SECONDS = 480
NAME = "benchmarks.gpu"
# The most seconds of each, in the order in which they run. What they do is benchmarks.gpu_cases.CASES.
LIMITS = {
    "machine": 40,
    "packed-attention": 75,
    "parity": 90,
    "parity-streamed": 45,
    "elite-bf16": 60,
    "elite-bf16-one-document": 45,
    "elite-bf16-compiled": 100,
    "elite-fp8": 60,
    "elite-fp8-compiled": 100,
    "lora-0.5b": 60,
    "decode": 60,
    "streamed-3b": 200,  # of which most is to write 6 GB of weights, the first time
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu: tiny sizes, in this process")
    parser.add_argument("--cases", default=",".join(LIMITS), help=f"of {', '.join(LIMITS)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all cases together")
    parser.add_argument("--worker", choices=sorted(LIMITS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        print(json.dumps(attempt(lambda: _case(given.worker, given.device))))
        return
    names = given.cases.split(",")
    if unknown := [name for name in names if name not in LIMITS]:
        parser.error(f"no case is called {unknown[0]!r}; there are: {', '.join(LIMITS)}")
    if reason := _missing(given.device):
        parser.exit(2, f"error: {reason}\n")
    results = run(names, given.device, given.seconds)
    _table(results, given.device)
    print(json.dumps({"device": given.device, **results}))


def run(names: Sequence[str], device: str, seconds: float) -> dict[str, dict[str, Any]]:
    """The figures of each case by its name, or {"not_available": why}."""
    results: dict[str, dict[str, Any]] = {}
    end = time.perf_counter() + seconds
    for name in names:
        started = time.perf_counter()
        limit = min(LIMITS[name], end - started)
        if limit <= 0:
            results[name] = {"not_available": f"the {seconds:.0f} s were over"}
        elif device == "cpu":
            results[name] = _rounded(attempt(lambda name=name: _case(name, device)))  # type: ignore[misc]
        else:
            worker = ["--worker", name, "--device", device]
            results[name] = _rounded(attempt(lambda w=worker, s=limit: run_worker(NAME, *w, timeout=s)))  # type: ignore[misc]
        spent = time.perf_counter() - started
        print(f"{name:<24} {spent:5.1f} s  {_sentence(results[name])}", file=sys.stderr, flush=True)
    return results


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives; any failure is a result too: one case must not end the others."""
    try:
        return work()
    except (Exception, SystemExit) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Of a worker that died, the last line of its stderr says why.
        reason = lines[-1] if isinstance(error, RuntimeError) and lines else " ".join(lines[:1])
        return {"not_available": f"{type(error).__name__}: {reason}"[:300]}


def _missing(device: str) -> str | None:
    """Why there is no such device; None where there is."""
    from shoestring.core.device import resolve_device
    from shoestring.core.errors import ConfigError

    try:
        resolve_device(device)
    except ConfigError as error:
        return str(error)
    return None


def _case(name: str, device: str) -> dict[str, Any]:
    from benchmarks import gpu_cases
    from benchmarks.gpu_settings import settings

    return gpu_cases.CASES[name](settings(device))


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}


def _sentence(figures: dict[str, Any]) -> str:
    if "not_available" in figures:
        return f"not available: {figures['not_available']}"
    shown = {key: value for key, value in figures.items() if key != "wall" and not isinstance(value, dict)}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _table(results: dict[str, dict[str, Any]], device: str) -> None:
    rows = []
    for name, figures in results.items():
        speed, share = figures.get("tokens_per_second"), figures.get("share_of_bf16_peak")
        memory, predicted = figures.get("peak_mb"), figures.get("predicted_mb")
        rows.append([
            name, "–" if speed is None else f"{speed:,.0f}", "–" if share is None else f"{share:.0%}",
            "–" if memory is None else f"{memory:,.0f}", "–" if predicted is None else f"{predicted:,.0f}",
            figures.get("not_available", "")[:50],
        ])  # fmt: skip
    columns = ["", "tokens/s", "of bf16's peak", "peak MB", "predicted MB", "not available"]
    show(f"on {device}", columns, rows)


if __name__ == "__main__":
    main()
