"""Passes without gradients, phase by phase: reading a prompt and writing (`generate.engine`). Torch-free."""

from __future__ import annotations

from shoestring.nn.head_blocks import block_rows
from shoestring.plan.model import Model
from shoestring.plan.tape import BYTE, FLOAT, Tape

_PASS = 1024  # tokens of a pass over a prompt, over all rows


def pass_tokens(rows: int, prompt: int) -> int:
    """Tokens of each row that one pass reads."""
    return min(prompt, max(_PASS // rows, 1))


def decode(tape: Tape, model: Model, rows: int, prompt: int, source: int = 0) -> None:
    """The last pass over a prompt, which sees most of it; then the head. The cache is counted elsewhere.

    source: bytes of a number on disk, 0: the model is resident.
    """
    config = model.config
    at_once = pass_tokens(rows, prompt)
    passes = -(-prompt // at_once)
    with tape.recording(False):
        tape.memory.begin("one pass over the prompt")
        context = model.context(tape, rows, at_once)
        seen = tape.empty(at_once * prompt if passes > 1 else 0, BYTE)  # noqa: F841  by each token
        last = tape.empty(rows * config.width)
        embedded = model.embed_from_disk(tape, context, source) if source else model.embed(tape, context)
        x = embedded
        for index in model.order:
            tape.memory.begin("one block's work")
            x = model.blocks[index](tape, x, context)
        hidden = model.norm(tape, x)
        del x, hidden, embedded
        tape.memory.begin("the head")
        del context, seen
        logits = tape.empty(rows * config.vocabulary)
        if source:
            height = min(block_rows(config.width), config.vocabulary)
            block = tape.empty(height * config.width if source != FLOAT else 0)
            product = tape.empty(rows * height)
            del block, product
        del logits, last
