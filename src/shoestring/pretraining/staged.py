"""The stages of a pretraining run, planned and entered: model, rows and engine of each, the recipe's own last.

Every stage has the same engine, and its own plan chooses the rows at once, with no more tokens than the last stage's. A
run is predicted to take what its largest stage takes. Between stages the loader cuts its rows anew and the model grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from shoestring.core.errors import ConfigError, RunError
from shoestring.core.units import counted
from shoestring.data.loader import RowLoader
from shoestring.models.config import ModelConfig
from shoestring.offload.pipeline.place import Place
from shoestring.offload.pipeline.planned import config_of_part, filling_microbatch
from shoestring.plan.choose import Choice, usual_microbatch
from shoestring.plan.shapes import EngineName, JobShape, Options, Prediction
from shoestring.pretraining.config import PretrainRecipe
from shoestring.pretraining.stages_config import Portion, shown, stage_model
from shoestring.train import parallel
from shoestring.train.metrics import flops_per_token
from shoestring.train.optimizer_config import moving
from shoestring.train.planning import applied, chosen, engines, this_machine
from shoestring.train.resident import ResidentEngine
from shoestring.train.stages import Stage, Stages, stage_steps
from shoestring.train.state import TrainerState


@dataclass(frozen=True)
class Planned:
    """recipe: with what was chosen. models, portions, choices: of every stage. largest: the stage that takes most."""

    recipe: PretrainRecipe
    models: list[ModelConfig]
    portions: list[Portion]
    choices: list[Choice]
    largest: int

    @property
    def prediction(self) -> Prediction:
        return self.choices[self.largest].prediction

    def lines(self) -> list[str]:
        """Of the header; none for a run of one stage."""
        if len(self.portions) == 1:
            return []
        until, steps = self.recipe.train.stage_ends, self.recipe.train.planned_steps
        if steps is not None:
            ends = [counted(n, "step") for n in stage_steps(until, steps)]
        else:
            ends = [f"until {share:.0%}" for share in until] + ["to the end"]
        found = []
        for number, (model, portion, end) in enumerate(zip(self.models, self.portions, ends, strict=True), 1):
            name = "stages" if number == 1 else ""
            largest = "; takes most memory" if number - 1 == self.largest else ""
            found.append(
                f"{name:<10}{number}: {end} of {portion.batch_tokens:,} tokens in rows of {portion.sequence_length:,},"
                f" {counted(model.layers, 'layer')}{largest}"
            )
        return found


def plan(recipe: PretrainRecipe, config: ModelConfig, place: Place | None = None) -> Planned:
    """config: of the last stage. place: of the layers that this process has, where it has not all. Raises ConfigError
    for rows that processes cannot share, and BudgetError."""
    world, portions = parallel.shares(), recipe.train.portions
    for portion in portions:
        if portion.rows % world:
            raise ConfigError(f"the {portion.rows} rows of a batch cannot be shared by {world} processes")
    shapes, machine = job_shapes(recipe, config, world), this_machine(recipe)
    models, count = [shape.config for shape in shapes], 1
    if place is not None:
        shapes, count = [replace(each, config=config_of_part(each.config, place)) for each in shapes], place.stages
    choices = choose_all(recipe, shapes, lambda shape, options: chosen(recipe, shape, options, machine), count)
    largest = largest_of(choices)
    recipe = applied(recipe, choices[largest], shapes[largest], machine)
    microbatches = [choice.spec.microbatch for choice in choices]
    stages = tuple(
        stage.model_copy(update={"microbatch": rows})
        for stage, rows in zip(recipe.train.stages, microbatches, strict=False)
    )
    train = recipe.train.model_copy(update={"microbatch": microbatches[-1], "stages": stages})
    return Planned(recipe.model_copy(update={"train": train}), models, train.portions, choices, largest)


def job_shapes(recipe: PretrainRecipe, config: ModelConfig, world: int = 1) -> list[JobShape]:
    """Of every stage, as the plan sees it. config: of the last one. world: processes that share the rows."""
    return [
        JobShape(
            stage_model(config, portion.layers), portion.rows // world, portion.sequence_length,
            compute=recipe.precision.settled, documents=recipe.data.separate_documents,
            moving=moving(recipe.optimizer),
        )
        for portion in recipe.train.portions
    ]  # fmt: skip


def options_of(
    recipe: PretrainRecipe, shape: JobShape, portion: Portion, left: tuple[EngineName, ...], tokens: int,
    processes: int = 1,
) -> Options:  # fmt: skip
    """left: engines that are open. tokens: of all rows at once, where the recipe does not say how many they are.
    processes: that have a part of the model each."""
    usual, asked = usual_microbatch(shape.rows, portion.sequence_length, tokens), portion.microbatch
    if processes > 1:
        usual = filling_microbatch(shape.rows, portion.sequence_length, tokens, processes)
    if asked is not None:  # of another number of processes, maybe
        asked = usual_microbatch(shape.rows, 1, asked)
    shards = parallel.world_size() if recipe.parallel.kind == "fsdp" else 1
    return Options(left, usual, asked, recipe.train.activation_checkpointing, shards=shards)


def choose_all(
    recipe: PretrainRecipe, shapes: list[JobShape], choose: Callable[[JobShape, Options], Choice], processes: int = 1
) -> list[Choice]:
    """Of every stage: the last one's engine is all others', and so are its tokens at once. processes: as in
    `options_of`."""
    portions = recipe.train.portions
    left, tokens = engines(recipe), portions[-1].batch_tokens
    last = choose(shapes[-1], options_of(recipe, shapes[-1], portions[-1], left, tokens, processes))
    tokens, engine = last.spec.microbatch * portions[-1].sequence_length, last.spec.engine
    first = [
        choose(shape, options_of(recipe, shape, portion, (engine,), tokens, processes))
        for shape, portion in zip(shapes[:-1], portions, strict=False)
    ]
    found = [*first, last]
    return [found[0], *(_growing(before, one) for before, one in zip(found, found[1:], strict=False))]


def largest_of(choices: list[Choice]) -> int:
    """Which stage takes most."""
    return max(range(len(choices)), key=lambda number: choices[number].prediction.total)


def _growing(before: Choice, choice: Choice) -> Choice:
    """With the instant at which a model grows, where that takes more than a step: the old moments and the new ones."""
    old, new = (dict(one.prediction.tensors) for one in (before, choice))
    if old.get("moments") == new.get("moments"):
        return choice
    lines = (("weights", new["weights"]), ("moments", new["moments"]), ("moments before they grew", old["moments"]))
    if sum(size for _, size in lines) <= choice.prediction.tensor_bytes:
        return choice
    return replace(choice, prediction=replace(choice.prediction, tensors=lines))


def last_model(recipe: PretrainRecipe, config: ModelConfig, state: TrainerState) -> ModelConfig:
    """The model of the last stage, by that of a checkpoint. Raises RunError where it is of none of the stages."""
    if not recipe.train.stages:
        return config
    number, portions = state.stage, recipe.train.portions
    if number >= len(portions):
        raise RunError(f"the checkpoint is of stage {number + 1}, and the run has {len(portions)}")
    if not isinstance(recipe.model, ModelConfig):
        return config
    expected = portions[number].layers or recipe.model.layers
    if config.layers != expected:
        raise RunError(f"stage {number + 1} has {expected} layers, the checkpoint {config.layers}")
    return stage_model(config, recipe.model.layers)


def stages(planned: Planned, stream: RowLoader, engine: ResidentEngine) -> Stages | None:
    """What the loop takes; None for a run of one stage."""
    portions, models, world = planned.portions, planned.models, parallel.shares()
    if len(portions) == 1:
        return None

    def enter(number: int) -> None:
        layers, now = models[number].layers, engine.decoder.config.layers
        if layers != now:  # as the last stage of this depth says
            growth = [p.growth for p, m in zip(portions, models, strict=True) if m.layers == now][-1]
            engine.grow(layers, growth or ("zero" if models[-1].sharing is None else "stack"))
        cut(stream, portions[number])

    every = [
        Stage(
            portion.rows // world // choice.spec.microbatch, flops_per_token(model, portion.sequence_length),
            choice.prediction.seconds, portion.learning_rate_scale, shown(portion, model.layers),
        )
        for portion, model, choice in zip(portions, models, planned.choices, strict=True)
    ]  # fmt: skip
    return Stages(tuple(every), planned.recipe.train.stage_ends, enter)


def cut(stream: RowLoader, portion: Portion) -> None:
    """Rows as this stage has them."""
    assert portion.microbatch is not None
    stream.cut(portion.sequence_length, portion.rows, portion.microbatch)
