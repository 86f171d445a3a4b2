"""Back to the last checkpoint, when a run cannot go on from where it is: step after step was skipped, or one was torn.

Weights and moments are taken from it; the count of steps, the schedule, the clock and the place in the data go on, so
the batches since then are left out and no step comes twice. What PaLM did by hand (arXiv 2204.02311, section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shoestring.core.errors import ModelFileError, RunError
from shoestring.train import parallel
from shoestring.train.brought import bring_folder
from shoestring.train.checkpoint import STATE, checkpoints, drop_after, read_state, restore_moments
from shoestring.train.engine import Engine
from shoestring.train.state import TrainerState


class RollBack:
    """read: the weights of a checkpoint into the live model; None where a job has no way to. most: times in a run."""

    def __init__(self, out: Path, engine: Engine, read: Callable[[Path], None] | None, most: int):
        self.out, self.engine, self.read, self.most = out, engine, read, most

    def __call__(self, state: TrainerState, reason: str) -> bool:
        """Whether the run stands at a checkpoint again. Raises RunError for one that is damaged."""
        if self.read is None or state.rollbacks >= self.most:
            return False
        name = parallel.by_first(lambda: self._sound(state))
        if name is None:
            return False
        folder = self.out / name
        bring_folder(folder, STATE)
        try:
            self.engine.abandon()
            self.read(folder)
            restore_moments(folder, self.engine)
        except ModelFileError as error:
            raise RunError(error.message, error.where, "remove this checkpoint folder and resume") from error
        parallel.by_first(lambda: drop_after(folder))
        saved = read_state(folder)
        state.rollbacks += 1
        state.skipped_in_a_row, state.recent_losses = 0, saved.recent_losses
        state.best_loss, state.best_step = saved.best_loss, saved.best_step
        state.evaluations_since_best = saved.evaluations_since_best
        state.events.append({"event": "rolled_back", "step": state.step + 1, "to": saved.step, "reason": reason})
        return True

    def _sound(self, state: TrainerState) -> str | None:
        """The newest checkpoint of this stage from which a step was done: the very last step that was done may be what
        ruined the weights."""
        last_done = state.step + 1 - state.skipped_in_a_row
        for folder in reversed(checkpoints(self.out)):
            saved = read_state(folder)
            if saved.step < last_done and not saved.skipped_in_a_row and saved.stage == state.stage:
                return folder.name
        return None
