"""What a distillation takes in memory: the student's step, and beside it the teacher, resident or streamed.

Of the student's step the plan knows all; the teacher's share stands in lines of its own.
"""

from __future__ import annotations

from dataclasses import replace

from shoestring.compression.distill.config import DistillRecipe
from shoestring.compression.distill.material import Material
from shoestring.compression.distill.on_policy import asked
from shoestring.compression.distill.teacher import SLOTS
from shoestring.core.errors import BudgetError
from shoestring.core.filled import filled_down
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.families.common import dense_parts
from shoestring.models.families.registry import read_quantization
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.head_blocks import compared_rows
from shoestring.plan.choose import Choice, usual_microbatch
from shoestring.plan.constants import KERNEL, MICROBATCH_TOKENS, PASSES
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.shapes import JobShape, Line, Machine, Options, Prediction, Training
from shoestring.plan.tape import FLOAT, HALF
from shoestring.train.optimizer_config import moving
from shoestring.train.planning import applied, chosen, engines

_STATES = "teacher, hidden states of a step"  # of one that is streamed
_COMPARED, _HEAD = "teacher and student compared", "the head and its loss"
_HALVES = ("bfloat16", "float16")
# Arrays of the size of a chunk's logits, while two distributions are compared (`distill.divergence`).
_HELD = {"forward": 3, "reverse": 4, "mixture": 5}


def settle(recipe: DistillRecipe, material: Material, machine: Machine) -> tuple[DistillRecipe, Choice]:
    """The recipe with engine, microbatch and the teacher's place, and the choice; shows a budget's sum.

    Raises BudgetError where nothing fits.
    """
    shape = job_shape(recipe, material)
    options = options_of(recipe, material)
    refused: list[BudgetError] = []
    for streamed in places(recipe, material, recipe.budget.memory is not None):
        rows = recipe.train.microbatch or options.usual
        more = teacher_lines(recipe, material, rows, streamed, machine)
        try:
            choice = chosen(recipe, shape, options, beside_teacher(machine, more))
        except BudgetError as error:
            refused.append(error)
            continue
        more = teacher_lines(recipe, material, choice.spec.microbatch, streamed, machine)
        choice = replace(choice, prediction=with_teacher(choice.prediction, more, material, recipe, machine))
        settled = applied(recipe, choice, shape, machine)
        budget = settled.budget.model_copy(update={"teacher": "streamed" if streamed else "resident"})
        return settled.model_copy(update={"budget": budget}), choice
    raise refused[-1]


def places(recipe: DistillRecipe, material: Material, limited: bool) -> tuple[bool, ...]:
    """Whether the teacher is streamed, what is tried first. limited: by a budget, without which it is in memory."""
    ways = {"resident": (False,), "streamed": (True,)}.get(recipe.budget.teacher, (False, True))
    if not limited or (recipe.budget.teacher == "auto" and not _streams(material)):
        return ways[:1]
    return ways


def beside_teacher(machine: Machine, more: list[Line]) -> Machine:
    """A machine whose process holds the teacher already."""
    return replace(machine, process=machine.process + sum(size for _, size in more))


def _streams(material: Material) -> bool:
    """Whether the teacher can be read layer by layer (`offload.model`)."""
    config, base = material.teacher.config, material.teacher.base
    plain = config.block == "sequential" and not config.value_residual
    return (
        plain and config.memory is None and config.embedding_convolution is None
        and base is not None and read_quantization(base) is None
    )  # fmt: skip


def job_shape(recipe: DistillRecipe, material: Material) -> JobShape:
    """The student's step, as the plan sees it."""
    config, training = material.student.config, Training()
    if material.lora:
        adapter = recipe.adapter
        linears = attach(build(config, device="meta"), adapter.lora(), modules=adapter.modules)
        names = frozenset(linear.split(".", 2)[2] for linear in linears)  # without blocks.NUMBER
        training = Training(False, adapter.rank, names)
    return JobShape(
        config, material.rows, material.padded, training, ignored=True, compute=recipe.precision.settled,
        documents=True, measured=material.held_out, asked=asked(recipe.distill, material.length),
        lengths=material.lengths, alike=recipe.data.layout != "packed",
        steps=recipe.train.steps or 0, moving=moving(recipe.optimizer),
    )  # fmt: skip


def teacher_lines(
    recipe: DistillRecipe, material: Material, rows: int, streamed: bool, machine: Machine
) -> list[Line]:
    """What it adds. rows: of a microbatch. Its pass is over when the two are compared."""
    config, prediction = material.teacher.config, _teachers_pass(material, rows, streamed, machine)
    *kept, phase = [(f"teacher, {name}", size) for name, size in prediction.tensors]
    lines: list[Line] = kept
    if streamed:
        lines.append((_STATES, 2 * material.rows * material.padded * config.width * FLOAT))
    compared = (_COMPARED, _compared_bytes(recipe, material, rows * material.padded))
    return [*lines, max(phase, compared, key=lambda line: line[1])]


def _compared_bytes(recipe: DistillRecipe, material: Material, tokens: int) -> int:
    """The most that comparing a microbatch takes, chunk by chunk: a later one holds the head's gradient as well."""
    config, settings = material.student.config, recipe.distill
    half, most = recipe.precision.settled in _HALVES, compared_rows(config.vocabulary)
    first = min(tokens, filled_down(most) if half else most)
    later = min(tokens - first, first)
    held = _HELD[settings.divergence] + (settings.labels > 0) + (config.logit_softcap is not None)
    table = 0 if material.lora else config.vocabulary * config.width
    gradient = table * FLOAT  # of the head, added up
    share = table * (HALF + FLOAT) if half else gradient  # of a chunk
    going = FLOAT + HALF * half  # bytes of a logit's gradient, as it is and as it is multiplied
    peaks = [held * first * config.vocabulary * FLOAT, going * first * config.vocabulary + share]
    if later:
        peaks.append(held * later * config.vocabulary * FLOAT + gradient)
        peaks.append(going * later * config.vocabulary + gradient + share * half)
    hidden = tokens * (config.width + material.teacher.config.width) * FLOAT
    return max(peaks) + table * HALF * half + hidden


def _teachers_pass(material: Material, rows: int, streamed: bool, machine: Machine) -> Prediction:
    """Of its own, over a microbatch, before any correction."""
    base = material.teacher.base
    assert base is not None
    with WeightFiles(base, packed=True) as files:
        source = str(files.dtype_of("embedding.weight")).removeprefix("torch.")
    use = Use(rows, material.padded, scored=True, documents=True)
    plain = replace(machine, corrections=())
    return predict_use(material.teacher.config, use, plain, source, slots=SLOTS if streamed else 0)


def _linears(material: Material) -> set[tuple[int, int]]:
    """Shapes of the teacher's matrices."""
    parts = dense_parts(material.teacher.config)
    width = material.teacher.config.width
    return set() if parts is None else {*parts[0].linears(width), *parts[1].linears(width)}


def options_of(recipe: DistillRecipe, material: Material) -> Options:
    return Options(
        engines(recipe),
        usual=usual_microbatch(material.rows, material.padded, MICROBATCH_TOKENS),
        microbatch=recipe.train.microbatch,
        recompute=recipe.train.activation_checkpointing,
        advice=("a smaller train.batch_tokens takes less, and so does a smaller teacher",),
    )


def with_teacher(
    prediction: Prediction, more: list[Line], material: Material, recipe: DistillRecipe, machine: Machine
) -> Prediction:
    """The student's prediction was made in a process that held the teacher: here its lines stand among tensors. Its
    passes and the comparison, five arrays of logits written and read, take time too."""
    held = sum(size for _, size in more)
    (name, process), *others = prediction.beside
    own = prediction.tensors
    if recipe.distill.cache_samples is None and own[-1][0] == _HEAD and own[-1][1] <= more[-1][1]:
        own = own[:-1]  # the comparison is the student's loss
    time: list[tuple[str, float]] = []
    if recipe.distill.cache_samples is None:
        rows, streamed = options_of(recipe, material).usual, any(line == _STATES for line, _ in more)
        passes = _teachers_pass(material, rows, streamed, machine).seconds * material.rows / rows
        logits = material.rows * material.padded * material.teacher.config.vocabulary
        compared = PASSES * _HELD[recipe.distill.divergence] * logits * FLOAT / machine.bandwidth
        time = [("the teacher's passes", passes), (_COMPARED, compared)]
    factor = 1.0 if prediction.correction is None else prediction.correction.seconds
    time = [(what, factor * seconds) for what, seconds in time]
    beside = ((name, process - held), *others)
    if recipe.precision.settled in _HALVES:  # products of the teacher's blocks, training and held out
        beside = (*beside, ("matrix libraries, for the teacher's products", 2 * len(_linears(material)) * KERNEL))
    return replace(
        prediction, tensors=(*own, *more), beside=beside,
        seconds=prediction.seconds + sum(seconds for _, seconds in time), time=(*prediction.time, *time),
    )  # fmt: skip
