"""One optimizer step of the resident and the checkpointed engine, phase by phase (`train.resident`). Torch-free."""

from __future__ import annotations

from shoestring.nn.config import Recompute
from shoestring.plan.heads import chosen, distance
from shoestring.plan.model import Model
from shoestring.plan.tape import FLOAT, Tape


def resident_step(
    tape: Tape, model: Model, rows: int, length: int, microbatches: int, recompute: Recompute, compute: int = FLOAT,
    labels: float | None = None, documents: bool = False,
) -> None:  # fmt: skip
    """Microbatches one after another: the first makes gradients, the second adds to them, the others are like it."""
    for _ in range(min(microbatches, 2)):
        tape.memory.begin("the first hidden states")
        with tape.autocast(compute):
            hidden = model.forward(tape, model.context(tape, rows, length, documents), recompute)
            loss = model.loss(tape, hidden, labels)
        del hidden
        tape.backward([loss], [None])
        del loss


def compared_step(tape: Tape, model: Model, tokens: int, recompute: Recompute, compute: int) -> None:
    """Before the microbatches of some steps: predictions held to the base's (`finetuning.preserve`)."""
    config = model.config
    with tape.autocast(compute):
        with tape.recording(False):
            base = model.forward(tape, model.context(tape, 1, tokens, True), recompute)
        hidden = model.forward(tape, model.context(tape, 1, tokens, True), recompute)
        tape.memory.begin("predictions beside the base's")
        counted = chosen(tape, hidden, hidden.numbers)
        theirs = tape.like(base)
        del hidden
        loss = distance(tape, counted, theirs, config.vocabulary, config.width, config.logit_softcap is not None)
        del theirs, counted
    tape.backward([loss], [None])
