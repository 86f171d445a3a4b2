"""One trial, in a process of its own: `python -m shoestring.search.trial FOLDER NUMBER`.

It trains the recipe that stands in the study's folder, or goes on with the run that a killed process left. On stdout it
says what it measured, a JSON object a line, and after each evaluation waits on stdin for "go" or "prune". "stop" may
come at any time: the run saves itself. When stdin ends, whoever began the trial is gone, and so is this process.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from shoestring.core.errors import BudgetError, ShoestringError
from shoestring.search.config import EVALUATIONS, StudyConfig
from shoestring.search.folder import open_study
from shoestring.search.jobs import searched_job
from shoestring.train.interrupt import Interrupted
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.metrics import read_metrics
from shoestring.train.run_folder import METRICS, RECIPE
from shoestring.train.watching import watched_by


class Channel:
    """Between this process and the one that searches."""

    def __init__(self, said: TextIO, heard: TextIO):
        self._said = said
        self._answers: queue.Queue[str] = queue.Queue()
        self.stopping = False
        threading.Thread(target=self._listen, args=[heard], daemon=True).start()

    def say(self, **values: Any) -> None:
        self._said.write(json.dumps(values) + "\n")
        self._said.flush()

    def ask(self, **values: Any) -> str:
        """The answer to what is said."""
        self.say(**values)
        return self._answers.get()

    def _listen(self, heard: TextIO) -> None:
        for line in heard:
            if line.strip() == "stop":
                self.stopping = True
            else:
                self._answers.put(line.strip())
        os._exit(1)


class Watcher(Callback):
    """Tells of every evaluation on the way, and ends the run when it is told to, or when its time is over."""

    def __init__(self, channel: Channel, most_seconds: float | None):
        self.channel, self.most_seconds = channel, most_seconds
        self.ended = ""  # pruned, over, stopped

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        held_out, total = state.held_out, state.total_steps
        if held_out is not None and held_out.step == state.step and not event.last and total is not None:
            tenth = max(state.step * EVALUATIONS // total, 1)
            answer = self.channel.ask(
                evaluation=tenth, loss=held_out.loss, bits_per_byte=held_out.bits_per_byte, tokens=state.tokens
            )
            if answer == "prune":
                self._end(event, "pruned")
        if self.most_seconds is not None and state.seconds > self.most_seconds and not event.last:
            self._end(event, "over")
        if self.channel.stopping and not event.last:
            self._end(event, "stopped")

    def _end(self, event: StepEvent, why: str) -> None:
        self.ended = self.ended or why
        event.stopping = event.stopping or why


def main(folder: str, number: int, channel: Channel) -> None:
    """Train, and say how it ended: complete, pruned, failed, or stopped, to be gone on with."""
    study = open_study(folder)
    config, job = study.config, searched_job(study.config.job)
    out, recipe = study.trial(number), study.trial(number, ".yaml")
    limit = config.budget.time if config.budget.tokens is not None else None
    watcher = Watcher(channel, limit)
    try:
        with watched_by(watcher):
            run = job.run()
            result = run(resume=str(out)) if (out / RECIPE).is_file() else run(**{job.argument: str(recipe)})
        values = [measured(name, config, result) for name in config.objectives]
    except Interrupted:
        said: dict[str, Any] = {
            "pruned": {"state": "pruned"},
            "over": {"state": "failed", "reason": f"over its budget of {limit} seconds", "kind": "budget"},
        }.get(watcher.ended, {"state": "stopped"})
        channel.say(**said, **figures(out))
    except ShoestringError as error:
        kind = "budget" if isinstance(error, BudgetError) else "error"
        channel.say(state="failed", reason=str(error), kind=kind, **figures(out))
    except Exception as error:
        traceback.print_exc()
        reason = (str(error).splitlines() or [""])[0]
        channel.say(state="failed", reason=f"{type(error).__name__}: {reason}", kind="crash", **figures(out))
    else:
        wrong = [name for name, value in zip(config.objectives, values, strict=True) if not _is_number(value)]
        if wrong:
            reason = f"{wrong[0]} is no number, or nothing is held out to measure it on"
            channel.say(state="failed", reason=reason, kind="error", **figures(out))
        else:
            channel.say(state="complete", values=values, model=str(result.model), **figures(out))


def measured(objective: str, config: StudyConfig, result: Any) -> float | None:
    """Of a finished run, at the checkpoint that it recommends."""
    if objective in ("loss", "bits_per_byte"):
        return held_out(result.out, "held_out_loss" if objective == "loss" else "bits_per_byte")
    if objective == "bytes":
        return float(sum(file.stat().st_size for file in result.model.resolve().glob("*.safetensors")))
    if objective == "seconds":
        return result.seconds
    if objective == "memory":
        return float(result.peak_memory)
    return suite_share(config, result)


def held_out(out: Path, name: str) -> float | None:
    """At the best evaluation where a run keeps its best checkpoint, else at the last one."""
    lines = [line for line in read_metrics(out / METRICS) if "held_out_loss" in line]
    if not lines:
        return None
    kept = os.path.lexists(out / "best")
    return (min(lines, key=lambda line: line["held_out_loss"]) if kept else lines[-1])[name]


def suite_share(config: StudyConfig, result: Any) -> float:
    """Of the questions on which settings are chosen; those of `shoestring evaluate` are others."""
    from shoestring.evaluate.suite.run import evaluate
    from shoestring.offload.load import close, load

    language = load(result.model)
    try:
        found, _ = evaluate(language, "development", config.suite.only, config.suite.items)
    finally:
        close(language)
    return found.total.share


def figures(out: Path) -> dict[str, Any]:
    """What the run took, so far as it came."""
    lines = [line for line in read_metrics(out / METRICS) if "loss" in line]
    if not lines:
        return {}
    last = lines[-1]
    return {"steps": last["step"], "tokens": last["tokens"], "seconds": last.get("seconds", 0.0)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


if __name__ == "__main__":
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a run prints is for its log
    main(sys.argv[1], int(sys.argv[2]), Channel(said, sys.stdin))
    said.flush()
    os._exit(0)
