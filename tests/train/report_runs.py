"""Run folders written by hand for the tests of the report, as a run leaves them."""

import json
import math
import random
from pathlib import Path

BEGAN = {
    "session": "began", "step": 0, "time": "2026-11-30T08:00:00+00:00", "processor": "A Processor", "cores": 8,
    "threads": 8, "memory": 16_000_000_000, "device": "cpu", "processes": 1, "system": "Linux x86_64",
    "python": "3.12.1", "torch": "2.13.0", "shoestring": "0.1.0", "matrix_peak": 4e11, "engine": "resident",
    "budget": None, "predicted": {"memory": 900_000_000, "tensors": 500_000_000},
    "predicted_parts": [["process and libraries", 400_000_000], ["weights", 500_000_000]],
}  # fmt: skip
ENDED = {"session": "ended", "time": "2026-11-30T08:10:00+00:00", "peak_memory": 880_000_000, "how": "finished"}
RECIPE = "description: a run for tests\nmodel: {width: 32}\noptimizer: {learning_rate: 0.003}\nout: runs/x\n"


def write_run(
    folder: Path, steps: int = 200, seed: int = 0, rate: float = 3e-3, recipe: str = RECIPE, extra: tuple = ()
) -> Path:
    """A run of a falling loss, measured ten times, with a sample each time. extra: further lines of metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed)
    lines = []
    for step in range(1, steps + 1):
        place = {"step": step, "tokens": step * 1024, "seconds": step * 0.5}
        lines.append(
            {
                **place, "loss": 2 + 4 * math.exp(-step / 40) + noise.gauss(0, 0.1), "lr": rate * (1 - step / steps),
                "grad_norm": abs(noise.gauss(1, 0.2)), "tokens_per_second": 2000 + noise.gauss(0, 50),
                "share_of_peak": 0.5, "memory": 700_000_000 + step * 10_000, "tensors": 400_000_000,
            }
        )  # fmt: skip
        if step % max(steps // 10, 1) == 0:
            loss = 2.2 + 4 * math.exp(-step / 40)
            part = "whole" if step == steps else "sample"
            held_out = {"held_out_loss": loss, "bits_per_byte": loss / 2, "held_out_tokens": 100, "held_out_set": part}
            lines += [{**place, **held_out}, {**place, "prompt": "def f", "sample": f"(x): return {step}"}]
    lines += extra
    lines.sort(key=lambda line: line["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "sessions.jsonl").write_text(f"{json.dumps(BEGAN)}\n{json.dumps({**ENDED, 'step': steps})}\n")
    return folder
