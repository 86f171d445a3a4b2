"""`finetune(model, data, ...)`: from a model and examples to an adapter, or a model, in a run folder.

Examples become packed supervised batches; LoRA, DoRA, LoRA on a quantized base, or every weight is trained on them; the
best checkpoint by held-out loss is kept beside the newest. Checkpoints are PEFT folders, or model folders for full
fine-tuning, with the trainer's state inside. `resume` continues to bit-identical weights.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.errors import ConfigError
from shoestring.core.seeds import seed_everything
from shoestring.core.waiting import waiting
from shoestring.data.supervised.batches import SupervisedPass
from shoestring.data.supervised.rows import Rows
from shoestring.evaluate.samples import LONGEST, STREAMED_LONGEST, Prompt, Samples
from shoestring.finetuning.before_after import ANSWER, STREAMED_ANSWER, Interview, choose_questions, load_answers
from shoestring.finetuning.config import (
    SHORT,
    STREAMED,
    FinetuneRecipe,
    finetune_recipe,
    is_finetune_recipe,
    load_finetune_recipe,
)
from shoestring.finetuning.everyday import everyday_examples
from shoestring.finetuning.examples import kept_rows
from shoestring.finetuning.material import Material, open_material
from shoestring.finetuning.model import (
    adapted_model,
    check_split,
    job_shape,
    options,
    portions_of,
    read_speed,
    steps_of,
    stream_of,
)
from shoestring.finetuning.preserve import preserving
from shoestring.finetuning.result import FinetuneResult, collect, model_and_data
from shoestring.finetuning.suite_scores import SCORES, Asked, after, before, save
from shoestring.finetuning.write import read_files, write_files
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels import allocator
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.pipeline.engine import PipelineEngine
from shoestring.offload.pipeline.gather import together
from shoestring.offload.pipeline.place import Place, place_of
from shoestring.offload.pipeline.times import MachineTimes
from shoestring.train import parallel
from shoestring.train.early_stopping import EarlyStopping
from shoestring.train.engine import LocalEngine
from shoestring.train.evaluation import Evaluation, measure
from shoestring.train.exact_weights import saved_dtypes
from shoestring.train.loop import Callback
from shoestring.train.metrics import flops_per_token
from shoestring.train.objective import Objective, next_token
from shoestring.train.planning import settle, this_machine
from shoestring.train.precision import loss_scale, prepared
from shoestring.train.recipe_files import begun_with, recipe_name, with_short
from shoestring.train.resident import ResidentEngine
from shoestring.train.result import common_header, length_line
from shoestring.train.run import Opened, Wiring, dotted, execute
from shoestring.train.run_folder import AUTO, Start, begun
from shoestring.train.run_folder import resume as resume_run

_AFTERWARDS = "leave it out; afterwards: shoestring evaluate MODEL OUT"


def finetune(
    model: str | Path | None = None,
    data: str | Path | Rows | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    memory: str | int | None = None,
    batch_size: int | None = None,
    *,
    method: str | None = None,
    rank: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    time: str | float | None = None,
    compute: str | None = None,
    columns: dict[str, str] | None = None,
    preserve: str | None = None,
    on_bad_line: str | None = None,
    evaluate: str | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune `model` on the examples in `data`, or continue the run in the folder `resume`.

    resume: "auto" is the run in `out`, if one has begun there. model: or a recipe, by name or file, which may say which
    data. data: or rows: dictionaries, a `datasets.Dataset`, an iterator over such; they are kept in the cache, so that
    the run can be continued. memory: of the whole process at most, as "1GB". batch_size: rows of an optimizer step
    (train.batch_rows), in place of train.batch_tokens. These and the rest are the flags of `shoestring finetune`, and a
    recipe's other settings are keywords too, with two underscores for a dot: `finetune("smollm2-135m", "mine.jsonl",
    rank=8, time="10m", optimizer__learning_rate=1e-4)`. overrides: the same by their dotted names. Progress goes to
    stderr. Raises ConfigError, DataError, ModelFileError, RunError, BudgetError (before any work, with the least memory
    that would do), and Interrupted when the user stopped the run.
    """
    given = {
        "method": method, "rank": rank, "batch_size": batch_size, "steps": steps, "epochs": epochs, "time": time,
        "columns": columns, "on_bad_line": on_bad_line, "preserve": preserve, "memory": memory, "compute": compute,
        "evaluate": evaluate, "out": None if out is None else str(out),
    }  # fmt: skip
    changed = with_short(dotted(overrides, settings), SHORT, given)
    parallel.start()
    if data is not None and not isinstance(data, (str, Path)):
        data = kept_rows(data)
    place, of_recipe = changed.get("out"), model is not None and is_finetune_recipe(model)
    asked, auto = resume is not None, str(resume) == AUTO
    if place is None and of_recipe and (auto or not asked):
        place = load_finetune_recipe(model or "", changed).out
    resume = begun(resume, place)
    if resume is not None and not asked:
        start = resume_run(resume, load_finetune_recipe)  # whose recipe is what this call has asked for
    elif resume is not None:
        if of_recipe and auto:  # what it says besides stands in the run's own
            model = None
        named = {"model": model, "data.source": data}
        changed |= {key: str(value) for key, value in named.items() if value is not None}
        start = resume_run(resume, load_finetune_recipe, changed)
    elif model is None or (data is None and "data.mixture" not in changed and not is_finetune_recipe(model)):
        hint = "finetune(MODEL, FILE), finetune(RECIPE), or resume=OUT"
        raise ConfigError("fine-tuning needs a model and data", hint=hint)
    else:
        recipe = finetune_recipe(str(model), None if data is None else str(data), changed)
        origin = "as the command says"
        if is_finetune_recipe(model):
            origin = recipe_name(model)
            recipe = begun_with(recipe, origin, {"data.source": data, **changed})
        start = Start(recipe, "finetune", origin)
    job = FinetuneJob()
    with parallel.stages(start.recipe.budget.split is not None):
        run = execute(job, start)
        if run.opened is None:
            result = collect(run, load_answers(run.out))
        else:
            answers = job.interview().after(run, job.engine.decoder)
            job.engine.close()
            if run.recipe.budget.memory is not None:
                allocator.limit(target=0)  # to draw the curve takes 30 MB, where the run's were
            result = collect(run, answers)
    recipe = run.recipe
    if recipe.evaluate.suite is None or parallel.rank() != 0:
        return result
    del job, run  # the models that are asked take their place
    return replace(result, suite=after(recipe, result.out, result.best))


class FinetuneJob:
    """A `train.run.Job`: supervised examples, an adapter or every weight."""

    verb, held_out, splits = "finetune", "loss", True
    help = "a lower optimizer.learning_rate may help"
    material: Material
    recipe: FinetuneRecipe
    engine: LocalEngine
    place: Place | None = None  # of the layers here, where other processes have the others
    asked: Asked | None = None  # of the suite, before the first step

    def open(self, start: Start) -> Opened:
        recipe, device = start.recipe, resolve_device(start.recipe.device)
        check_split(recipe)
        material = self.material = open_material(start)
        place = self.place = place_of(recipe.budget.split, material.config)
        machine = this_machine(recipe, lambda: read_speed(material.base))
        portions = portions_of(recipe, material, place)
        recipe, choice = settle(recipe, job_shape(recipe, portions), options(recipe, portions), machine)
        self.recipe, spec, world = recipe, choice.spec, parallel.shares()
        self._ask_before(start)

        def make() -> Any:
            return adapted_model(recipe, spec, material, start.checkpoint, device, place)

        compute, scale = resolve_dtype(recipe.precision.dtype), loss_scale(recipe.precision)
        if place is not None:
            self.engine = PipelineEngine(make, compute, spec.recompute, scale, self.streams)
        elif self.streams:
            self.engine = StreamedEngine(make, compute)
        else:
            made = prepared(make, recipe.precision, recipe.quantize)
            self.engine = ResidentEngine(made, compute, spec.recompute, loss_scale=scale)
        with waiting("loading   the model"):
            decoder = self.engine.load()
        rows, length = material.rows, material.length
        stream = stream_of(recipe, material, spec.microbatch)
        steps = steps_of(recipe, material, stream, spec.microbatch)
        how_long = length_line(recipe, steps, f"up to {rows * world * length:,} tokens")
        header = model_and_data(recipe, decoder, material)
        header += common_header(recipe, choice.prediction, how_long, start.state)
        # A frozen weight costs no gradient of its own: four operations of six.
        flops = flops_per_token(material.config, length) * (1 if recipe.adapter.method == "full" else 4 / 6)
        return Opened(
            recipe, self.engine, stream, rows // spec.microbatch, steps, flops, choice.prediction, "\n".join(header)
        )

    def _ask_before(self, start: Start) -> None:
        """Put the suite to the model, while it is not yet in memory to be trained. Raises ConfigError."""
        recipe = self.recipe
        if recipe.evaluate.suite is None:
            return
        if self.streams:
            raise ConfigError(f"evaluate.suite {STREAMED}", hint=_AFTERWARDS)
        if parallel.world_size() > 1:
            raise ConfigError("evaluate.suite is asked by one process, and here are several", hint=_AFTERWARDS)
        if start.checkpoint is None:
            self.asked = before(recipe, self.material.base)
            seed_everything(recipe.seed)  # what follows is as without it
            allocator.reset_peaks()

    @property
    def streams(self) -> bool:
        """Whether every pass over the model reads it from disk."""
        return self.recipe.budget.engine == "streamed"

    def wire(self, out: Path, start: Start) -> Wiring:
        recipe, material, decoder = self.recipe, self.material, self.engine.decoder
        if isinstance(self.engine, StreamedEngine) and recipe.budget.inputs == "disk":
            self.engine.spill = out
        if self.asked is not None:
            save(out / SCORES, self.asked)
        callbacks: list[Callback] = []
        if material.held_out:
            if start.checkpoint is None:
                text = self._held_out()
                with waiting("before    loss on held-out examples, in tokens", text.tokens) as told:
                    before = measure(decoder, text, self.engine.compute, told=told)
                start.state.events.append({"event": "started", "step": 0, "before": before.loss})
            held_out, tokens = self._held_out(), material.rows * parallel.shares() * material.length
            evaluation = Evaluation(
                decoder, held_out, held_out, recipe.train.evaluate_every, tokens, self.engine.compute
            )
            callbacks = [evaluation, EarlyStopping(recipe.train.patience)]
        if start.checkpoint is None and (parallel.rank() == 0 or parallel.are_stages()):
            self.interview().before(decoder, out)
        objective: Objective = next_token
        if recipe.preserve.source is not None:
            ordinary = material.ordinary or everyday_examples(recipe.preserve, material, decoder, out)
            objective = preserving(next_token, recipe, ordinary, decoder, start.state.step)
        exact = recipe.quantize is not None
        dtypes = None
        if recipe.adapter.method == "full":
            here = None if self.place is None else self.place.holds(material.config, trained=True)
            dtypes = together(saved_dtypes(recipe.precision, material.base, exact, here))
        if recipe.log.samples:
            callbacks.append(self._samples())
        if isinstance(self.engine, PipelineEngine):
            callbacks.append(MachineTimes(self.engine, recipe.log.every))
        return Wiring(
            objective, lambda folder: write_files(recipe, material, self.engine.whole(), folder, dtypes), callbacks,
            read=lambda folder: read_files(recipe, decoder, folder),
        )  # fmt: skip

    def _samples(self) -> Samples:
        recipe, material, dataset = self.recipe, self.material, self.material.dataset
        asked = choose_questions(dataset, recipe.data, recipe.log.samples)
        prompts = [Prompt(f"{question.text}\n", question.ids) for question in asked]
        writing = functools.partial(
            LanguageModel, self.engine.decoder, dataset.tokenizer, defaults=material.generation
        )
        longest = STREAMED_LONGEST if self.streams else LONGEST
        return Samples(writing, prompts, recipe.train.evaluate_every, longest)

    def _held_out(self) -> SupervisedPass:
        recipe, material = self.recipe, self.material
        at_once = material.rows if self.streams else recipe.train.microbatch  # a pass may read the whole model
        assert at_once is not None
        return SupervisedPass(
            material.dataset, "validation", material.length, at_once, recipe.data.layout,
            recipe.train.evaluate_examples, parallel.share(), parallel.shares(),
        )  # fmt: skip

    def interview(self) -> Interview:
        recipe, material = self.recipe, self.material
        longest = STREAMED_ANSWER if self.streams else ANSWER
        return Interview(material.dataset, recipe.data, material.generation, recipe.train.answers, longest)
