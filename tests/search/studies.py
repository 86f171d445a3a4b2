"""A tiny recipe, spaces over it, and studies whose trials are formulas instead of runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoestring.search.config import EVALUATIONS
from shoestring.search.proposing import SETTINGS
from shoestring.search.session import Session
from tests.train import tiny

SPACE = """
optimizer.learning_rate: {log: [1e-4, 1e-1]}
optimizer.weight_decay: {uniform: [0, 0.3]}
train.batch_tokens: [64, 128, 256]
"""


def recipe(folder: Path, extra: str = "", steps: int = 8) -> Path:
    """A file, with text beside it."""
    file = folder / "tiny.yaml"
    text = tiny.recipe_text(tiny.corpus(folder / "text"), steps, extra).replace("  microbatch: 2\n", "")
    file.write_text(text)
    return file


def space(folder: Path, text: str = SPACE) -> Path:
    file = folder / "space.yaml"
    file.write_text(text)
    return file


def loss(settings: dict[str, Any]) -> float:
    """Least at a rate of 1e-2."""
    rate = settings.get("optimizer.learning_rate", 3e-3)
    return 2.0 + (math.log10(rate) + 2) ** 2 + settings.get("optimizer.weight_decay", 0.1)


class Formula:
    """In the place of a run: how a trial ends, from its settings. ran: numbers of the trials that were run."""

    def __init__(self, value: Callable[[dict[str, Any]], Any] = loss):
        self.value, self.ran = value, []

    def __call__(self, session: Session, trial: Any) -> dict[str, Any]:
        self.ran.append(trial.number)
        value = self.value(trial.user_attrs[SETTINGS])
        if isinstance(value, dict):
            return value
        values = list(value) if isinstance(value, tuple) else [value]
        for step in range(1, EVALUATIONS):
            said = {"evaluation": step, "loss": values[0] + 1 / step, "bits_per_byte": values[0] + 1 / step}
            if session._judge(trial, said) == "prune":
                return {"state": "pruned", "tokens": 100 * step, "steps": step, "seconds": 0.1 * step}
        return {"state": "complete", "values": values, "tokens": 100 * EVALUATIONS, "steps": 10, "seconds": 1.0}


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Formula:
    made = Formula()
    monkeypatch.setattr(Session, "_run", lambda session, trial: made(session, trial))
    return made
