"""The part of `shoestring quickstart` that teaches an instruct model to add and subtract, and counts what it can do.

Training is the command that a person would type, in a process of its own, so that the peak of memory it reports is its
alone: most of the time with what memory the machine has, and the answers are that run's; then a moment within 1 GB, for
its promise. The problems that are counted are held out by the exercises' own split and never learned.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core import console, interrupt
from shoestring.core.errors import RunError
from shoestring.core.units import counted, format_bytes, format_seconds, parse_seconds
from shoestring.finetuning.config import finetune_recipe

if TYPE_CHECKING:
    from shoestring.cli.quickstart import Report
    from shoestring.evaluate.exact_match import Reply

EXERCISES = 6_000  # more than two minutes take
TURNS = 4  # exercises of one conversation: the system message is read once for all
SHOWN = 3
MEMORY = "1GB"
RESIDENT, WITHIN_MEMORY = 0.75, 0.1  # of the time; the rest is what a second process takes to begin
SETTINGS: dict[str, Any] = {
    "data.validation": 0,  # what is held out is counted instead
    "train.batch_tokens": 512,  # many small steps, as time is short
    "train.sequence_length": 512,  # room for three conversations
    "train.answers": 0,
    "optimizer.learning_rate": 2e-3,
}


def settings(time: str, share: float = 1.0) -> dict[str, Any]:
    """Those of a run that takes a share of `time`; a mistake in that is reported. Raises ConfigError."""
    finetune_recipe("model", "data", {"train.time": time, **SETTINGS})
    return {"train.time": f"{share * parse_seconds(time):.2f}s", **SETTINGS}


def finetune(model: str, run: Path, time: str, problems: int, report: Report) -> dict[str, Any]:
    """Count right answers, train an adapter in `run`/sums on `run`/exercises, count again; train a little in 1 GB."""
    from shoestring.data.synthetic.exercise import write
    from shoestring.data.synthetic.kinds import make
    from shoestring.finetuning.before_after import Answer, side_by_side

    report.heading("Teaching it to add and subtract, by an adapter beside its frozen weights (LoRA)")
    exercises = make("arithmetic", EXERCISES, digits=2, operations=["add", "subtract"], stories=0.0)
    data = write(exercises, run / "exercises", TURNS) / "train.jsonl"
    held_out = [(exercise.question, exercise.result) for exercise in exercises.test[:problems]]
    before = _ask(model, held_out)
    result = _train(model, data, run / "sums", settings(time, RESIDENT))
    within = _train(model, data, run / "sums-in-1gb", settings(time, WITHIN_MEMORY) | {"budget.memory": MEMORY})
    after = _ask(result["model"], held_out)

    pairs = list(zip(before, after, strict=True))
    answers = [Answer(old.question, old.result, old.text, new.text) for old, new in pairs[:SHOWN]]
    right = [sum(reply.right for reply in replies) for replies in (before, after)]
    report.say(
        f"{counted(result['steps'], 'step')} in {format_seconds(result['seconds'])}, "
        f"{format_bytes(result['peak_memory'])} of memory at most\n"
        f"The same with --memory {MEMORY}: {counted(within['steps'], 'step')} in {format_seconds(within['seconds'])}, "
        f"{format_bytes(within['peak_memory'])} at most "
        f"({format_bytes(within['predicted_memory'])} predicted, {MEMORY} allowed)\n"
    )
    report.say(side_by_side(answers, console.out.width))
    report.say(f"\n{counted(len(held_out), 'problem')} with one and two digits, of which it has learned none:\n")
    cells = [
        (name, f"{count}", f"{count / max(len(held_out), 1):.0%}")
        for name, count in zip(("before", "after"), right, strict=True)
    ]
    report.say(console.table(("", "right", "share"), cells, right=("right", "share")))
    return result | {
        "within_memory": {key: within[key] for key in ("out", "steps", "seconds", "peak_memory", "predicted_memory")},
        "problems": len(held_out),
        "right_before": right[0],
        "right_after": right[1],
        "answers": [vars(answer) for answer in answers],
    }


def _ask(model: str, problems: list[tuple[str, str]]) -> list[Reply]:
    from shoestring.evaluate.exact_match import ask
    from shoestring.generate.language_model import LanguageModel

    return ask(LanguageModel.load(model), problems)


def _train(model: str, data: Path, out: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """What `shoestring finetune ... --json` prints. Raises RunError when it fails; it has said why."""
    command = [sys.executable, "-m", "shoestring", "finetune", model, "--data", str(data), "--out", str(out), "--json"]
    for key, value in chosen.items():
        command += [f"--{key}", str(value)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        said, _ = child.communicate()
    except KeyboardInterrupt:  # it has got the signal as well, and saves itself
        interrupt.answered()
        child.wait()
        raise
    if child.returncode:
        raise RunError("the fine-tuning ended early", str(out), "the lines above say why")
    return json.loads(said)
