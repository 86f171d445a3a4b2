"""The workers of a search: each takes the next trial, has it run in a process of its own, and writes down how it ended.

Which trial is next is decided under a lock that all processes of a study share, and a trial belongs to whoever holds
its own lock file, until that process dies. So nothing is run twice, and what a killed process left is taken up.
"""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from shoestring.core import console
from shoestring.core.config import dump_values
from shoestring.core.errors import ConfigError
from shoestring.core.files import Held, atomic_write, exclusive, hold
from shoestring.core.foreign import parse_json
from shoestring.core.machine import cpu_count
from shoestring.core.waiting import Waiting
from shoestring.search import proposing
from shoestring.search.config import better
from shoestring.search.folder import TRIALS, StudyFolder
from shoestring.search.journal import load_optuna
from shoestring.search.proposing import BASELINE, LOST, SETTINGS
from shoestring.search.recipes import trial_recipe
from shoestring.search.results import collect, counted_trials, same_settings, trial_line, write_results
from shoestring.train.run_folder import RECIPE

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_LOCK = ".next.lock"
ENDED = ("complete", "pruned", "failed")


class Session:
    """workers: trials at once. until: how good a trial ends the search. told: what is shown meanwhile. error: what
    ended the search itself."""

    def __init__(self, study: StudyFolder, workers: int, until: float | None = None):
        self.study, self.workers, self.until = study, workers, until
        self.optuna, self._storage = study.opened()
        self.optuna.pruner = proposing.pruner(study)
        self.lock = threading.RLock()  # of everything that touches the study
        self.stopping = False
        self.told: Waiting | None = None
        self.error: BaseException | None = None
        self._held: dict[int, Held] = {}
        self._processes: dict[int, subprocess.Popen[str]] = {}
        (study.path / TRIALS).mkdir(exist_ok=True)

    def done(self) -> int:
        return sum(trial.state.is_finished() for trial in counted_trials(self.optuna))

    def stop(self) -> None:
        """Trials under way save themselves, and no other one begins."""
        with self.lock:
            self.stopping = True
            for process in self._processes.values():
                _send(process, "stop")

    def work(self) -> None:
        """Until no trial is left, or the search is to stop."""
        try:
            while (trial := self._next()) is not None:
                number = trial.number
                outcome = self._run(trial)
                with self.lock:
                    if outcome["state"] in ENDED:
                        self._write_down(trial, outcome)
                    self._held.pop(number).release()
        except BaseException as error:
            with self.lock:
                self.error = self.error or error
                self.stop()

    # --- which trial is next ---------------------------------------------------------------------------------

    def _next(self) -> FrozenTrial | None:
        """A trial that is this process's to run: one that was left, or a new one. None when there is none.

        Those that cannot be run at all are written down on the way.
        """
        with self.lock, exclusive(self.study.path / _LOCK):
            while not self.stopping:
                trial = self._left() or self._new()
                if trial is None:
                    return None
                if self._ready(trial):
                    return trial
                self._held.pop(trial.number).release()
        return None

    def _left(self) -> FrozenTrial | None:
        """One whose process is gone."""
        for trial in self.optuna.get_trials(deepcopy=False):
            if trial.state.name != "RUNNING" or trial.number in self._held:
                continue
            held = hold(self.study.trial(trial.number, ".lock"))
            if held is None:
                continue
            self._held[trial.number] = held
            if SETTINGS in trial.user_attrs:
                return trial
            self._set(trial, LOST, True)  # it was killed while its settings were chosen: another one takes its place
            self.optuna.tell(trial.number, state=load_optuna().trial.TrialState.FAIL)
            self._held.pop(trial.number).release()
        return None

    def _new(self) -> FrozenTrial | None:
        study, trials = self.study, counted_trials(self.optuna)
        if len(trials) >= study.config.trials or self._good_enough(trials):
            return None
        waiting = any(trial.state.name == "WAITING" for trial in self.optuna.get_trials(deepcopy=False))
        if not waiting:
            proposed = proposing.proposal(study, trials)
            if proposed is None:
                return None
            values, attributes = proposed
            if values or attributes:
                self.optuna.enqueue_trial(values, user_attrs=attributes)
        self.optuna.sampler = proposing.sampler(study, len(self.optuna.get_trials(deepcopy=False)))
        asked = self.optuna.ask()
        held = hold(study.trial(asked.number, ".lock"))
        assert held is not None  # the number is new
        self._held[asked.number] = held
        settings: dict[str, Any] = {}
        if BASELINE not in asked.user_attrs:
            settings = study.space.settings(asked, study.values)
        else:  # nothing changes; the sampler is to know its values all the same
            for parameter in study.space.parameters:
                if parameter.name in asked.user_attrs[BASELINE]:
                    parameter.draw(asked)
        asked.set_user_attr(SETTINGS, settings)
        return self._frozen(asked.number)

    def _good_enough(self, trials: list[FrozenTrial]) -> bool:
        """Whether one of them is as good as is asked for."""
        until, objective = self.until, self.study.config.objectives[0]
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        return until is not None and any(not better(objective, until, trial.values[0]) for trial in complete)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.optuna.get_trials(deepcopy=False)[number]

    def _set(self, trial: FrozenTrial, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(trial), name, value)

    def _id(self, trial: FrozenTrial) -> int:
        study = self._storage.get_study_id_from_name(self.optuna.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)

    def _ready(self, trial: FrozenTrial) -> bool:
        """Write its recipe. False where it cannot be run, or need not be, which is written down."""
        file = self.study.trial(trial.number, ".yaml")
        settings = trial.user_attrs[SETTINGS]
        twin = same_settings(trial, self.optuna.get_trials(deepcopy=False))
        if twin is not None:
            self._copy(trial, twin)
            return False
        try:
            threads = max(cpu_count() // self.workers, 1) if self.workers > 1 else None
            recipe = trial_recipe(
                self.study.config, self.study.base, settings, out=str(self.study.trial(trial.number)), threads=threads,
                train__keep=1,
            )  # fmt: skip
        except ConfigError as error:
            self._write_down(trial, {"state": "failed", "reason": error.message, "kind": "settings"})
            return False
        if not (self.study.trial(trial.number) / RECIPE).is_file():
            values = recipe.model_dump(mode="json", exclude_unset=True)
            about = {"description": f"trial {trial.number} of {self.study.path.name}", "base": self.study.config.recipe}
            with atomic_write(file) as opened:
                opened.write(dump_values({"job": self.study.config.job, **values, **about}))
        return True

    # --- one trial -------------------------------------------------------------------------------------------

    def _run(self, trial: FrozenTrial) -> dict[str, Any]:
        """How it ended."""
        command = [sys.executable, "-m", "shoestring.search.trial", str(self.study.path), str(trial.number)]
        log = self.study.trial(trial.number, ".log")
        with open(log, "a", encoding="utf-8") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8",
                start_new_session=True,
            )  # fmt: skip
        with self.lock:
            self._processes[trial.number] = process
            if self.stopping:
                _send(process, "stop")
        outcome: dict[str, Any] = {}
        assert process.stdout is not None
        for line in process.stdout:
            values = parse_json(line)
            if "evaluation" in values:
                _send(process, self._judge(trial, values))
            else:
                outcome = values
        code = process.wait()
        with self.lock:
            del self._processes[trial.number]
        if not outcome:
            killed = f"killed by {_signal(-code)}" if code < 0 else f"its process ended with exit code {code}"
            outcome = {"state": "failed", "reason": f"{killed}, see {log}", "kind": "crash"}
        return outcome

    def _judge(self, trial: FrozenTrial, values: dict[str, Any]) -> str:
        """Write an evaluation down; "prune" where the trial is hopeless beside the others, else "go"."""
        objective = self.study.config.objectives[0]
        if objective not in values or len(self.study.config.objectives) > 1:
            return "go"
        with self.lock:
            step, value = values["evaluation"], float(values[objective])
            if step not in self._frozen(trial.number).intermediate_values:
                self._storage.set_trial_intermediate_value(self._id(trial), step, value)
            if BASELINE in trial.user_attrs:
                return "go"
            hopeless = not math.isfinite(value) or self.optuna.pruner.prune(self.optuna, self._frozen(trial.number))
            return "prune" if hopeless else "go"

    # --- how it ended ----------------------------------------------------------------------------------------

    def _write_down(self, trial: FrozenTrial, outcome: dict[str, Any]) -> None:
        states = load_optuna().trial.TrialState
        for name in ("steps", "tokens", "seconds", "reason", "kind", "model"):
            if name in outcome:
                self._set(trial, name, outcome[name])
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[outcome["state"]]
        self.optuna.tell(trial.number, outcome.get("values"), state=state)
        self._show(trial.number)

    def _copy(self, trial: FrozenTrial, twin: FrozenTrial) -> None:
        """Equal settings, equally long: what came of them once is what comes of them."""
        self._set(trial, "same as", twin.number)
        self.optuna.tell(trial.number, twin.values if twin.state.name == "COMPLETE" else None, state=twin.state)
        self._show(trial.number)

    def _show(self, number: int) -> None:
        result = collect(self.study, self.optuna)
        write_results(self.study, self.optuna, result, whole=False)
        self._tidy(result.kept)
        if self.told is not None:
            self.told.done = result.ended
        console.say(trial_line(self.study, self._frozen(number), result))

    def _tidy(self, kept: set[int]) -> None:
        """Weights of trials that are finished and not among the best."""
        keep = self.study.config.keep
        if keep == "all":
            return
        for trial in self.optuna.get_trials(deepcopy=False):
            folder = self.study.trial(trial.number)
            if not trial.state.is_finished() or (keep == "best" and trial.number in kept) or not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.name in ("latest", "best"):
                    path.unlink()
                elif path.name.startswith("step-"):
                    shutil.rmtree(path, ignore_errors=True)


def _send(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except (BrokenPipeError, ValueError, OSError):  # it has just ended
        pass


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
