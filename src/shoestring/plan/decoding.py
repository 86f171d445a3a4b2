"""How much memory decoding and scoring take, resident or streamed: passes without gradients. Torch-free.

A prompt is read in passes of at most `generate.engine`'s tokens over all rows, every later one holding a mask over what
the cache has; then a token of each row at a time, which takes less. Scoring is what a held-out pass takes.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace

from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers
from shoestring.plan.calibration import corrected, corrections_of
from shoestring.plan.constants import BITS, LARGE_PASS, LARGE_PASS_TOKENS, SCORING
from shoestring.plan.model import Model
from shoestring.plan.passes import decode, pass_tokens
from shoestring.plan.peak import Walk, walked
from shoestring.plan.predict import beside, streamed_weights
from shoestring.plan.shapes import Machine, Packed, Prediction, Training, WeightFormat
from shoestring.plan.speed import use_time
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


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded for use, with all that predicting a use of it takes.

    machine: as it was before, without corrections. source, weights, slots: as `predict_use` has them. compute, packed:
    as `Use` has them. promised: whether memory was planned, inside a budget. before: the process's peak until then.
    """

    config: ModelConfig
    machine: Machine
    source: str
    compute: str = "float32"
    weights: WeightFormat = "source"
    slots: int = 0
    packed: Packed = frozenset()
    promised: bool = False
    before: int = 0

    @property
    def engine(self) -> str:
        return "streamed" if self.slots else "resident"

    def predict(self, job: str, rows: int, prompt: int, new: int = 0, scored: bool = False) -> Prediction:
        """Corrected by what runs of this job have said of this machine."""
        machine = replace(self.machine, corrections=corrections_of(job, self.machine.threads))
        use = Use(rows, prompt, new, scored, scored, self.compute, self.packed)
        return predict_use(self.config, use, machine, self.source, self.weights, self.slots)


def predict_use(
    config: ModelConfig, use: Use, machine: Machine, source: str, weights: WeightFormat = "source", slots: int = 0
) -> Prediction:
    """slots: layers in memory of a streamed model, 0: all of it, resident. source: the dtype of its files. Its seconds
    are those of the whole use.
    """
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
    more = SCORING if use.scored else LARGE_PASS if tokens > LARGE_PASS_TOKENS else 0
    share = 1.0 if use.scored else use.prompt / max(pass_tokens(use.rows, use.prompt), 1)
    layer = BITS[source if weights in ("source", "packed") else weights] / 8 if slots else 0.0
    shape = use.rows, use.prompt, use.new
    time = tuple(use_time(config, shape, use.scored, machine, walk, share, FLOAT if slots else size, layer))
    found = Prediction(tuple(lines), beside(machine.process, more, tokens), sum(s for _, s in time), time, tokens)
    return corrected(found, machine.correction("streamed" if slots else "resident"))


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
    memory = tape.memory
    return Walk(
        tuple(memory.phases[1:]), model.matrices, tape.adapters, tape.stored, Counter(), memory.made, memory.tensors
    )
