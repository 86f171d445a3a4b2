"""The peak memory that fine-tuning predicts before it starts, beside the one that the kernel measured (VmHWM).

    python -m benchmarks.prediction [--quick] [--only streamed]

Every combination of model, engine, weight format, tokens of a step, microbatch and length is a fine-tuning run of three
steps in a process of its own, with held-out loss and checkpoints as usual, on random weights and rows that are full.
worst_over and worst_under are shares of the measured peak, by which a prediction was too high or too low.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, run_worker, show
from benchmarks.random_models import large_model

NAME = "benchmarks.prediction"
STEPS, RANK = 3, 8


@dataclass(frozen=True)
class Case:
    """rows × length: tokens of an optimizer step, of which `microbatch` rows are computed at once.

    weights: of the frozen linears; in memory (resident, checkpointed) source, int8, int4 or nf4, on disk (streamed) any
    format of a store. method: full trains every weight. integers: weights, which are int8, are multiplied in int8.
    """

    shape: str
    engine: str
    weights: str
    rows: int
    length: int
    microbatch: int
    method: str = "lora"
    integers: bool = False

    def __str__(self) -> str:
        return f"{self.shape} {self.engine} {self.weights} {self.rows} × {self.length}, {self.microbatch} at once" + (
            "" if self.method == "lora" else f", {self.method}"
        ) + ", in integers" * self.integers

    def settings(self) -> dict[str, Any]:
        """Of the run, dotted."""
        settings: dict[str, Any] = {
            "train.steps": STEPS,
            "train.batch_tokens": self.rows * self.length,
            "train.sequence_length": self.length,
            "train.microbatch": self.microbatch,
            "train.answers": 0,
            "train.evaluate_examples": self.rows,
            "budget.engine": self.engine,
            "budget.memory": "64GB",  # a promise is made for runs with a budget: they give memory back at once
            "adapter.method": self.method,
            "adapter.rank": RANK,
            "precision.compute": "int8" if self.integers else "float32",
        }
        if self.engine == "streamed":
            settings |= {"budget.weights": self.weights, "budget.slots": 2}
        elif self.weights != "source":
            settings |= {"adapter.method": "qlora", "adapter.base": self.weights}
        return settings


CASES = (
    Case("small-25m", "resident", "source", 2, 256, 2),
    Case("small-25m", "streamed", "source", 4, 256, 1),
    Case("small-70m", "resident", "source", 2, 512, 1, "full"),
    Case("small-70m", "resident", "nf4", 4, 256, 2),
    Case("small-70m", "checkpointed", "source", 8, 256, 8),
    Case("small-70m", "checkpointed", "int8", 2, 1024, 1),
    Case("small-70m", "checkpointed", "int8", 8, 256, 2, integers=True),
    Case("small-70m", "streamed", "float32", 8, 256, 2),
    Case("small-70m", "streamed", "int8", 2, 1024, 2),
    Case("small-70m", "streamed", "int8", 4, 512, 1, integers=True),
    Case("small-70m", "streamed", "nf4", 16, 128, 4),
    Case("qwen2.5-0.5b", "resident", "source", 2, 256, 1),
    Case("qwen2.5-0.5b", "checkpointed", "source", 2, 256, 2),
    Case("qwen2.5-0.5b", "streamed", "source", 4, 256, 1),
    Case("qwen2.5-0.5b", "streamed", "float32", 2, 256, 2),
    Case("qwen2.5-0.5b", "streamed", "bfloat16", 1, 1024, 1),
    Case("qwen2.5-0.5b", "streamed", "int8", 4, 128, 4),
    Case("qwen2.5-0.5b", "streamed", "int8", 4, 256, 1, integers=True),
    Case("qwen2.5-0.5b", "streamed", "int4", 4, 256, 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the models below 100M parameters only")
    parser.add_argument("--only", help="cases with this word in their name")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(_run(CASES[arguments.worker], arguments.folder)))
        return
    chosen = [
        number
        for number, case in enumerate(CASES)
        if not (arguments.quick and not case.shape.startswith("small")) and (arguments.only or "") in str(case)
    ]
    measured = []
    with tempfile.TemporaryDirectory() as text:
        _examples(Path(text) / "rows.jsonl")
        for number in chosen:
            print(CASES[number], file=sys.stderr, flush=True)
            large_model(CASES[number].shape)
            measured.append((CASES[number], run_worker(NAME, "--worker", str(number), "--folder", text)))
    _report(measured)


def _examples(file: Path) -> None:
    """Texts that fill every row, and some that end within it, as data must have."""
    words = ("memory", "width", "layers", "tensor", "folder", "heads", "vocabulary", "model", "shape", "numbers")
    draw = random.Random(1)
    rows = [" ".join(draw.choices(words, k=2000 if number % 8 else 20)) for number in range(160)]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")


def _run(case: Case, folder: Path) -> dict[str, Any]:
    import shoestring

    settings = case.settings() | {"out": str(folder / str(case).replace(" ", "-"))}
    result = shoestring.finetune(large_model(case.shape), folder / "rows.jsonl", overrides=settings)
    return {"predicted": result.predicted_memory, "peak": result.peak_memory, "engine": result.engine}


def _report(measured: list[tuple[Case, dict[str, Any]]]) -> None:
    errors = [(result["predicted"] - result["peak"]) / result["peak"] for _, result in measured]
    rows = []
    for (case, result), error in zip(measured, errors, strict=True):
        engine = case.engine if case.method == "lora" else f"{case.engine}, {case.method}"
        rows.append([
            case.shape, engine, case.weights + ", in integers" * case.integers, f"{case.rows} × {case.length}",
            f"{case.microbatch}",
            f"{result['predicted'] / 1e6:,.0f}", f"{result['peak'] / 1e6:,.0f}", f"{error:+.1%}",
        ])  # fmt: skip
    columns = ["model", "engine", "weights", "tokens a step", "rows at once", "predicted MB", "measured MB", "error"]
    show("predicted and measured peak memory of a process", columns, rows)
    finish({"worst_over": max(0.0, *errors), "worst_under": max(0.0, *(-e for e in errors)), "cases": len(errors)})


if __name__ == "__main__":
    main()
