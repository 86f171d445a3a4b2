"""How much memory a training step will take: a sum of lines, in bytes, from shapes alone. Torch-free.

Tensors: the step is walked through without numbers (`plan.tape`), and its highest phase is told line by line; what the
first step lacks, the later ones have. Beside them stands the process, measured. docs/offload.md lists the lines;
tests/plan holds them to the bytes that the allocator counts, `benchmarks.prediction` to whole processes.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import replace

from shoestring.core.direct import BLOCK
from shoestring.core.filled import filled_sizes
from shoestring.core.units import counted
from shoestring.models.config import ModelConfig
from shoestring.models.count import cache_numbers
from shoestring.nn.feed_forward_config import MoEConfig
from shoestring.nn.head_blocks import block_rows
from shoestring.plan.calibration import corrected
from shoestring.plan.constants import BITS, KERNEL, LENGTH, TRAINING, USE
from shoestring.plan.divided import divided
from shoestring.plan.feed_forward import expert_rows
from shoestring.plan.model import Model
from shoestring.plan.moments import beside_step, kept_moments
from shoestring.plan.passes import decode
from shoestring.plan.peak import Walk, walked
from shoestring.plan.shapes import KEPT, EngineSpec, JobShape, Line, Machine, Prediction, Training, WeightFormat
from shoestring.plan.speed import step_time
from shoestring.plan.step import compared_step, resident_step
from shoestring.plan.streamed import kept_by_block, measured_pass, streamed_blocks, streamed_step
from shoestring.plan.tape import FLOAT, HALF, Leaf, Memory, Phase, Tape

_FLOATS = ("source", "float32", "bfloat16", "packed")  # packed: what is not in few bits
_HALVES = ("bfloat16", "float16")
_STEPS = 1000  # of a run, where it is not known
_LIKELY = 0.75  # a length that is met less often than in a quarter of all runs is left out
_NUMBERS = 32  # bytes of a token in a batch: four integers


def predict(shape: JobShape, spec: EngineSpec, machine: Machine) -> Prediction:
    """What a step takes with this engine, and how long."""
    walk = _walk(shape, _walked_spec(spec), machine.threads, machine.onednn, machine.gpu)
    lines = divided(shape, spec, walk) if spec.shards > 1 else [*_weights(shape, spec, walk), *_highest(shape, walk)]
    if spec.keeps and spec.stage is not None:
        each = spec.stage.under_way(shape.rows // spec.microbatch) * _kept_by_block(shape, spec, machine)
        lines.append((f"what {counted(spec.keeps, 'layer')} computed", int(spec.keeps * each)))
    half = shape.compute in _HALVES and not machine.gpu
    around = beside(machine.process, 0 if half else TRAINING, shape.tokens)
    if libraries := _libraries(shape, spec, machine, walk):
        around = (*around, ("matrix libraries, for each size of a product", libraries))
    time = tuple(step_time(shape, spec, machine, walk))
    found = Prediction(tuple(lines), around, sum(seconds for _, seconds in time), time, shape.tokens)
    return corrected(found, machine.correction(spec.engine))


def _libraries(shape: JobShape, spec: EngineSpec, machine: Machine, walk: Walk) -> int:
    """What they keep of every product of half precision, or of float32 where oneDNN multiplies it."""
    if machine.gpu:
        return 0
    if shape.compute not in _HALVES:
        return int((_lengths_met(shape, spec) - 1) * LENGTH) if machine.onednn else 0
    return KERNEL * _kernels(shape, spec, walk)


def _kernels(shape: JobShape, spec: EngineSpec, walk: Walk) -> int:
    """How many products a run makes that differ in their sizes or in how their operands lie."""
    experts = shape.config.feed_forward
    tokens = spec.microbatch * shape.length
    each = expert_rows(experts, tokens) if isinstance(experts, MoEConfig) else 0.0
    of_experts = {one for one in walk.products if each and one.has(each)}
    vocabulary, block = shape.config.vocabulary, block_rows(shape.config.width)
    outputs = {vocabulary, min(vocabulary, block), vocabulary % block}
    heads = {one for one in walk.products - of_experts if outputs.intersection(one[:3])}
    lengths = math.floor(_lengths_met(shape, spec) + _LIKELY)
    of_tokens = {one for one in walk.products if one.has(tokens)} | of_experts
    found = len(walk.products) + len(of_tokens) * (lengths - 1)
    if of_experts:  # whose rows are any number up to all tokens, filled up
        found += len(of_experts) * (filled_sizes(tokens) - 1) * lengths
    if shape.ignored:  # labels that count: so are those
        found += len(heads)
    if shape.measured and spec.engine != "streamed":  # held-out rows are as many as fit, and go forward alone
        found += sum(not (one.transposed or one.backwards) for one in of_tokens - of_experts)
    return found


def _lengths_met(shape: JobShape, spec: EngineSpec) -> float:
    """How many lengths of microbatches a run is expected to meet, each as long as the longest of its rows."""
    times, rows = (shape.steps or _STEPS) * -(-shape.rows // spec.microbatch), 1 if shape.alike else spec.microbatch
    found = below = 0.0
    for share in shape.lengths:
        upto = min(below + share, 1.0)
        found += 1 - (1 - (upto**rows - below**rows)) ** times
        below = upto
    return max(found, 1.0)


def beside(process: int, more: int = 0, tokens: int = 0) -> tuple[Line, ...]:
    """What a process has besides tensors. process: bytes now. more: than a plain use keeps. tokens: of a batch."""
    return (
        ("process, before the model", process),
        (KEPT, USE + more),
        ("tokens of a step", tokens * _NUMBERS),
    )


def _walked_spec(spec: EngineSpec) -> EngineSpec:
    """What matters to the walk."""
    shards = min(spec.shards, 2)  # whether there are several
    return EngineSpec(
        spec.engine, spec.microbatch, spec.recompute, 0, spec.weights, spec.spilled, shards, spec.stage
    )


def _kept_by_block(shape: JobShape, spec: EngineSpec, machine: Machine) -> float:
    """Bytes of one microbatch, beside the block's input."""
    return _block_walk(shape, spec.weights, spec.microbatch, machine.threads, machine.onednn)


@functools.lru_cache(maxsize=512)
def _block_walk(shape: JobShape, weights: WeightFormat, rows: int, threads: int, onednn: bool) -> float:
    tape = Tape(Memory(), onednn, threads)
    tape.bfloat = shape.compute != "float16"
    one = shape.config.model_copy(update={"layers": 1, "sharing": None})
    return kept_by_block(
        tape, Model(tape, one, _streamed_training(shape, weights)), rows, shape.length, _compute(shape), shape.documents
    )


def _streamed_training(shape: JobShape, weights: WeightFormat) -> Training:
    """Dense layers are float32 when they are used."""
    return replace(shape.training, frozen="float32" if weights in _FLOATS else weights)


def _compute(shape: JobShape) -> int:
    return HALF if shape.compute in ("bfloat16", "float16") else FLOAT


@functools.lru_cache(maxsize=512)
def _walk(shape: JobShape, spec: EngineSpec, threads: int, onednn: bool, gpu: bool = False) -> Walk:
    return walked(
        shape.config, lambda config: _walk_of_some(replace(shape, config=config), spec, threads, onednn, gpu)
    )


@functools.lru_cache(maxsize=64)  # from a few layers all depths are had
def _walk_of_some(shape: JobShape, spec: EngineSpec, threads: int, onednn: bool, gpu: bool) -> Walk:
    return _walk_of(shape.config, shape, spec, threads, onednn, gpu)


def _walk_of(
    config: ModelConfig, shape: JobShape, spec: EngineSpec, threads: int, onednn: bool, gpu: bool = False
) -> Walk:
    tape = Tape(Memory(), onednn, threads)
    tape.gpu = gpu
    tape.bfloat, tape.gathered = shape.compute != "float16", spec.shards > 1
    if shape.moving.in_backward:
        tape.beside = lambda weight: beside_step(shape.moving, Counter({weight: 1}))
    streamed = spec.engine == "streamed"
    model = Model(tape, config, _streamed_training(shape, spec.weights) if streamed else shape.training)
    compute, rows, length = _compute(shape), spec.microbatch, shape.length
    microbatches = -(-shape.rows // rows)
    if spec.engine == "streamed" and spec.stage is not None:
        source = int(BITS[shape.source]) // 8
        blocks = streamed_blocks(config.vocabulary, config.width, source, shape.training.integers)
        labels = rows * length if shape.ignored else None
        under_way, headed = spec.stage.under_way(microbatches), spec.stage.is_last
        streamed_step(
            tape, model, rows, length, under_way, compute, source, False, labels, shape.documents, blocks, headed
        )
        more = microbatches / min(under_way, 3)
        made, tensors = more * tape.memory.made, more * tape.memory.tensors
        if shape.measured:
            measured_pass(tape, model, shape.rows, length, compute, source, labels, shape.documents, blocks)
    elif spec.engine == "streamed":
        source = int(BITS[shape.source]) // 8
        blocks = streamed_blocks(config.vocabulary, config.width, source, shape.training.integers)
        step = (shape.tokens if shape.ignored else None, shape.documents, blocks)
        streamed_step(tape, model, rows, length, microbatches, compute, source, spec.spilled, *step)
        more = microbatches / min(microbatches, 3)
        made, tensors = more * tape.memory.made, more * tape.memory.tensors
        if shape.measured:
            measured_pass(tape, model, shape.rows, length, compute, source, *step)
    else:
        kept = tape.empty(shape.kept / FLOAT)  # noqa: F841  the base's hidden states
        if shape.compared:
            compared_step(tape, model, shape.compared, spec.recompute, compute)
        made, tensors = tape.memory.made, tape.memory.tensors
        labels = rows * length if shape.ignored else None
        resident_step(tape, model, rows, length, microbatches, spec.recompute, compute, labels, shape.documents)
        more = microbatches / min(microbatches, 2)  # those that are like the second were not walked
        made, tensors = more * (tape.memory.made - made), more * (tape.memory.tensors - tensors)
    tape.training = False
    if shape.asked[0]:
        _answer(tape, model, shape, int(BITS[shape.source]) // 8 if spec.engine == "streamed" else 0)
    trained = Counter(tape.trained)
    return Walk(
        tuple(tape.memory.phases[1:]), model.matrices, tape.adapters, tape.stored, trained, made, tensors,
        frozenset(tape.products),
    )  # fmt: skip


def _answer(tape: Tape, model: Model, shape: JobShape, source: int) -> None:
    questions, prompt, answer = shape.asked
    for weight in tape.parameters:  # no step's gradients are there
        if isinstance(weight.node, Leaf):
            weight.node.grad = None
    tape.memory.gradients = 0.0
    tape.memory.begin("one pass over the questions")
    cache = tape.empty(cache_numbers(model.config) * questions * (prompt + answer))  # noqa: F841
    decode(tape, model, questions, prompt, source)


def _weights(shape: JobShape, spec: EngineSpec, walk: Walk) -> list[Line]:
    config, integers = shape.config, shape.training.integers
    if spec.engine == "streamed":
        lines = streamed_weights(config, spec.weights, shape.source, spec.slots, walk, integers)
        if spec.stage is not None and not spec.stage.is_last:
            lines = lines[:-1]  # the head is elsewhere
    else:
        head = 0  # in int8: beside a tied embedding's floats, or instead of its own
        if integers:
            head = config.vocabulary * (config.width * (1 if config.tied_head else 1 - FLOAT) + FLOAT)
        lines = [("weights", int(config.unique_layers * walk.matrices + walk.stored + head))]
    state = kept_moments(shape.moving, walk.trained)
    if shape.training.full:
        return [*lines, ("moments", state)]
    return [*lines, ("adapters and their moments", int(walk.adapters) + state)]


def streamed_weights(
    config: ModelConfig, weights: str, source: str, slots: int, walk: Walk, integers: bool = False
) -> list[Line]:
    """Buffers of layers and of the head, and the small weights that stay. integers: the head is kept in int8. weights:
    "packed" where those of the walk are in few bits, as the files have them."""
    kept = source if weights == "source" else weights
    layer = walk.matrices * (BITS[kept] / 32 if kept in ("float32", "bfloat16", "float16") else 1)
    wide = walk.matrices if kept in ("bfloat16", "float16") else 0  # one layer made float32
    slots = max(min(slots, config.unique_layers), min(2, config.unique_layers))
    tables = config.vocabulary * config.width * FLOAT * (1 if config.tied_head else 2)
    head = 2 * block_rows(config.width) * config.width * BITS["int8" if integers else source] / 8
    head += integers * config.vocabulary * FLOAT + 2 * BLOCK
    shown = "few bits" if kept == "packed" else kept
    name = f"{slots} layers of {config.unique_layers} in {shown}" + (", one in float32" if wide else "")
    return [
        (name, int(slots * (layer + BLOCK) + wide)),
        ("norms and biases", int(walk.stored - tables)),
        ("blocks of the head", int(head)),
    ]


def _highest(shape: JobShape, walk: Walk) -> list[Line]:
    """The phase that sets the peak: what was kept for it, and what it takes itself."""
    phase = walk.highest
    every = 0 if shape.moving.in_backward else FLOAT * sum(n * weight.numbers for weight, n in walk.trained.items())
    beside = 0 if shape.moving.in_backward else beside_step(shape.moving, walk.trained)
    if shape.kept + every + beside > phase.peak:
        phase = Phase("moving the weights", shape.kept + every, every, shape.kept + every + beside, every)
    gradients = phase.gradients_at_peak
    kept = min(phase.kept - phase.gradients, phase.peak - gradients)
    lines = [
        ("gradients", int(gradients)),
        ("kept activations", int(kept)),
        (phase.name, int(phase.peak - gradients - kept)),
    ]
    return [line for line in lines if line[1]]
