"""Keeps in mind the best held-out loss, and ends a run that no longer improves on it.

Stands right behind the evaluation. What it decides is in the trainer's state, so a resumed run decides the same.
"""

from __future__ import annotations

from shoestring.train.loop import Callback, StepEvent


class EarlyStopping(Callback):
    """patience: evaluations in a row without a better one that end the run; None only keeps the best in mind.

    of_samples: what is compared are measurements of a sample; one of other text is passed over.
    """

    def __init__(self, patience: int | None, of_samples: bool = False):
        self.patience, self.of_samples = patience, of_samples

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        held_out = state.held_out
        if held_out is None or held_out.step != state.step or held_out.sample != self.of_samples:
            return
        if state.skipped_in_a_row:  # of weights that may no longer be sound: they are judged once steps are done again
            return
        if state.best_loss is None or held_out.loss < state.best_loss:
            state.best_loss, state.best_step, state.evaluations_since_best = held_out.loss, state.step, 0
            return
        state.evaluations_since_best += 1
        if self.patience is not None and state.evaluations_since_best >= self.patience and not event.last:
            state.events.append({"event": "stopped_early", "step": state.step, "best_step": state.best_step})
            event.last = True
