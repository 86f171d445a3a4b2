"""One optimizer step of the resident and the checkpointed engine, phase by phase (`train.resident`). Torch-free."""

from __future__ import annotations

from shoestring.nn.config import Recompute
from shoestring.plan.model import Model
from shoestring.plan.tape import FLOAT, HALF, Tape


def resident_step(
    tape: Tape, model: Model, rows: int, length: int, microbatches: int, recompute: Recompute, compute: int = FLOAT,
    labels: float | None = None, documents: bool = False,
) -> None:  # fmt: skip
    """Microbatches one after another: the first makes the gradients, the second adds to them, the others are like it."""
    for _ in range(min(microbatches, 2)):
        tape.memory.begin("the first hidden states")
        with tape.autocast(compute):
            hidden = model.forward(tape, model.context(tape, rows, length, documents), recompute)
            loss = model.loss(tape, hidden, labels)
        del hidden
        tape.backward([loss], [None])
        del loss
