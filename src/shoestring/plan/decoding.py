"""How much memory decoding and scoring take, resident or streamed: passes without gradients. Torch-free.

A prompt is read in passes of at most `generate.engine`'s tokens over all rows, every later one holding a mask over what
the cache has; then a token of each row at a time, which takes less. Scoring is what a held-out pass takes.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers
from shoestring.plan.constants import BITS, LARGE_PASS, LARGE_PASS_TOKENS
from shoestring.plan.model import Model
from shoestring.plan.passes import decode
from shoestring.plan.peak import Walk, walked
from shoestring.plan.predict import beside, streamed_weights
from shoestring.plan.shapes import Machine, Packed, Prediction, Training, WeightFormat
from shoestring.plan.streamed import measured_pass, scored_pass, streamed_blocks
from shoestring.plan.tape import FLOAT, HALF, Memory, Tape


@dataclass(frozen=True)
class Use:
    """What is asked of a model: rows of `prompt` tokens to be read, and `new` ones to be written; or rows to be scored.

    compute: what weights are in memory. packed: what of a streamed model is in few bits, with weights "packed"; one in
    memory is made dense.
    """

    rows: int
    prompt: int
    new: int = 0
    scored: bool = False
    documents: bool = False
    compute: str = "float32"
    packed: Packed = frozenset()

    @property
    def capacity(self) -> int:
        return self.prompt + self.new


def predict_use(
    config: ModelConfig, use: Use, machine: Machine, source: str, weights: WeightFormat = "source", slots: int = 0
) -> Prediction:
    """slots: layers in memory of a streamed model, 0: all of it, resident. source: the dtype of its files."""
    walk = _walk(config, use, source if slots else "", weights, machine.threads, machine.onednn, machine.gpu)
    size = HALF if use.compute != "float32" else FLOAT
    if slots:
        lines = streamed_weights(config, weights, source, slots, walk)
    else:
        lines = [("weights", int(config.parameter_count() * size))]
    phase = walk.highest
    if use.new:
        cache = int(cache_numbers(config) * use.rows * use.capacity * size)
        lines.append(("cache of keys and values", cache))
    lines.append((phase.name, int(phase.peak)))
    tokens = use.rows * use.prompt
    more = LARGE_PASS if use.scored or tokens > LARGE_PASS_TOKENS else 0
    return Prediction(tuple(lines), beside(machine.process, more, tokens), 0.0)


@functools.lru_cache(maxsize=512)
def _walk(
    config: ModelConfig, use: Use, source: str, weights: str, threads: int, onednn: bool, gpu: bool
) -> Walk:
    return walked(config, lambda shallow: _walk_of(shallow, use, source, weights, threads, onednn, gpu))


def _walk_of(
    config: ModelConfig, use: Use, source: str, weights: str, threads: int, onednn: bool, gpu: bool
) -> Walk:
    tape = Tape(Memory(), onednn, threads)
    tape.gpu = gpu
    tape.training = False
    frozen: WeightFormat = "float32" if weights not in ("int8", "int4", "nf4") or not source else weights  # type: ignore
    model = Model(tape, config, Training(full=False, frozen=frozen, packed=use.packed))
    if use.scored and source:
        size = int(BITS[source]) // 8
        blocks = streamed_blocks(config.vocabulary, config.width, size)
        measured_pass(tape, model, use.rows, use.prompt, FLOAT, size, None, use.documents, blocks)
    elif use.scored:
        scored_pass(tape, model, use.rows, use.prompt, use.documents)
    else:
        decode(tape, model, use.rows, use.prompt, int(BITS[source]) // 8 if source else 0)
    return Walk(tuple(tape.memory.phases[1:]), model.matrices, tape.adapters, tape.stored, Counter())
