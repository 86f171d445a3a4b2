"""Keeps in mind the best held-out loss, and ends a run that no longer improves on it.

Stands right behind the evaluation. What it decides is in the trainer's state, so a resumed run decides the same.
"""

from __future__ import annotations

from shoestring.train.loop import Callback, StepEvent


class EarlyStopping(Callback):
    """patience: evaluations in a row without a better one that end the run; None only keeps the best in mind."""

    def __init__(self, patience: int | None):
        self.patience = patience

    def after_step(self, event: StepEvent) -> None:
        state = event.state
        held_out = state.held_out
        if held_out is None or held_out.step != state.step:
            return
        if state.best_loss is None or held_out.loss < state.best_loss:
            state.best_loss, state.best_step, state.evaluations_since_best = held_out.loss, state.step, 0
            return
        state.evaluations_since_best += 1
        if self.patience is not None and state.evaluations_since_best >= self.patience and not event.last:
            state.events.append({"event": "stopped_early", "step": state.step, "best_step": state.best_step})
            event.last = True
