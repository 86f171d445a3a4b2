"""`distill(teacher, student, data, ...)`: a student that predicts as its teacher does, in a run folder.

The student's weights, or an adapter on weights in few bits, are trained on the teacher's next-token distributions over
text, over the answers of supervised rows, or over what the student writes itself. The teacher stands beside the
student in memory, is read from disk layer by layer, or was asked once and its samples are kept. The result is an
ordinary model folder with a compression.json; `resume` continues to bit-identical weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from shoestring.compression.distill.config import (
    SHORT,
    DistillRecipe,
    distill_recipe,
    load_distill_recipe,
)
from shoestring.compression.distill.divergence import divergence_of
from shoestring.compression.distill.lesson import Taught
from shoestring.compression.distill.material import Material, open_material
from shoestring.compression.distill.memory import settle
from shoestring.compression.distill.objective import Distilling
from shoestring.compression.distill.on_policy import OnPolicy
from shoestring.compression.distill.result import STARTED, Distilled, collect, header_lines
from shoestring.compression.distill.samples import FOLDER, Asking, sample
from shoestring.compression.distill.student import read_student, student_model, write_student
from shoestring.compression.distill.teacher import Following, ResidentModel, Teacher, open_teacher
from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.data.supervised.batches import SupervisedPass, SupervisedStream
from shoestring.models.decoder import Decoder
from shoestring.train import parallel
from shoestring.train.early_stopping import EarlyStopping
from shoestring.train.evaluation import Evaluation, measure
from shoestring.train.exact_weights import saved_dtypes
from shoestring.train.loop import Callback
from shoestring.train.metrics import flops_per_token
from shoestring.train.planning import this_machine
from shoestring.train.precision import loss_scale, prepared
from shoestring.train.recipe_files import begun_with, recipe_name, with_short
from shoestring.train.resident import ResidentEngine
from shoestring.train.result import common_header, length_line
from shoestring.train.run import Opened, Wiring, dotted, execute, say
from shoestring.train.run_folder import Start
from shoestring.train.run_folder import resume as resume_run


def distill(
    teacher: str | Path | None = None,
    student: str | Path | None = None,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    divergence: str | None = None,
    beta: float | None = None,
    temperature: float | None = None,
    labels: float | None = None,
    on_policy: float | None = None,
    cache_samples: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    time: str | float | None = None,
    columns: dict[str, str] | None = None,
    on_bad_line: str | None = None,
    memory: str | int | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Distilled:
    """Teach `student` what `teacher` predicts on `data`, or continue the run in the folder `resume`.

    teacher: a MODEL. student: a MODEL of the same vocabulary, or a recipe whose `model` section says the shapes of a
    fresh one. data: text or rows, any source. recipe: one with job distill, by name or file, which the others change.
    These and the rest are the flags of `shoestring distill`, and a recipe's other settings are keywords too, with two
    underscores for a dot: `distill("smollm2-135m", "pruned", "mine.jsonl", time="10m", optimizer__learning_rate=1e-4)`.
    overrides: the same by their dotted names. Progress goes to stderr. Raises ConfigError, DataError, ModelFileError,
    RunError, BudgetError (before any work), and Interrupted when the user stopped the run.
    """
    given = {
        "teacher": None if teacher is None else str(teacher), "divergence": divergence, "beta": beta,
        "temperature": temperature, "labels": labels, "on_policy": on_policy, "cache_samples": cache_samples,
        "steps": steps, "epochs": epochs, "time": time, "columns": columns, "on_bad_line": on_bad_line,
        "memory": memory, "out": None if out is None else str(out),
    }  # fmt: skip
    changed = with_short(dotted(overrides, settings), SHORT, given)
    parallel.start()
    if parallel.world_size() > 1:
        raise ConfigError("distill runs in one process, and here are several", hint="start it without torchrun")
    if resume is not None:
        named = {"model.init": student, "data.source": data}
        changed |= {key: str(value) for key, value in named.items() if value is not None}
        start = resume_run(resume, load_distill_recipe, changed)
    else:
        whole = distill_recipe(recipe, student, data, changed)
        origin = "as the command says"
        if recipe is not None:
            origin = recipe_name(recipe)
            told = {"student": None if student is None else str(student), "data.source": data, **changed}
            whole = begun_with(whole, origin, told)
        start = Start(whole, "distill", origin)
    job = DistillJob()
    run = execute(job, start)
    if run.opened is not None:
        job.engine.close()
        job.teacher.close()
    del job  # the models that are measured take its place
    run.opened = None if run.opened is None else _without_models(run.opened)
    return collect(run)


def _without_models(opened: Opened) -> Opened:
    """What a result reads of it."""
    opened.engine = opened.stream = None  # type: ignore[assignment]
    return opened


class DistillJob:
    """A `train.run.Job`: a student, and an objective with a teacher."""

    verb, held_out = "distill", "loss"
    help = "a lower optimizer.learning_rate may help"
    material: Material
    recipe: DistillRecipe
    engine: ResidentEngine
    teacher: Teacher

    def open(self, start: Start) -> Opened:
        recipe, device = start.recipe, resolve_device(start.recipe.device)
        material = self.material = open_material(start)
        recipe, choice = settle(recipe, material, this_machine(recipe))
        self.recipe, spec, self.device = recipe, choice.spec, device

        def make() -> Decoder:
            return student_model(recipe, material, start.checkpoint, device)

        self.engine = ResidentEngine(
            prepared(make, recipe.precision, recipe.quantize), resolve_dtype(recipe.precision.dtype), spec.recompute,
            loss_scale=loss_scale(recipe.precision),
        )  # fmt: skip
        with waiting("loading   the student"):
            decoder = self.engine.load()
        rows, length, settings = material.rows, material.length, recipe.train
        examples = SupervisedStream(
            material.dataset, length, spec.microbatch, rows, recipe.data.layout, recipe.seed, "train",
            longest_first=recipe.data.longest_first,
        )  # fmt: skip
        steps = settings.steps
        if settings.epochs is not None:
            each = rows // spec.microbatch if recipe.data.layout == "grouped" else rows  # samples of a step
            steps = max(round(settings.epochs * examples.samples_per_epoch / each), 1)
        stream: Any = examples
        if recipe.distill.on_policy:
            stream = OnPolicy(
                examples, decoder, material.side, recipe.distill, recipe.seed, length, material.text
            )
        self.stream = Taught(stream, rows // spec.microbatch, self._look)
        header = header_lines(recipe, material, decoder)
        header += common_header(
            recipe, choice.prediction, length_line(recipe, steps, f"up to {rows * length:,} tokens"), start.state
        )
        # A frozen weight costs no gradient of its own: four operations of six.
        flops = flops_per_token(material.student.config, length) * (4 / 6 if material.lora else 1)
        return Opened(
            recipe, self.engine, self.stream, rows // spec.microbatch, steps, flops, choice.prediction,
            "\n".join(header),
        )  # fmt: skip

    def wire(self, out: Path, start: Start) -> Wiring:
        recipe, material, decoder = self.recipe, self.material, self.engine.decoder
        began = start.checkpoint is None
        opened: list[ResidentModel] = []

        def model() -> ResidentModel:
            if not opened:
                with waiting("loading   the teacher"):
                    opened.append(self._open_teacher())
            return opened[0]

        callbacks: list[Callback] = []
        if material.held_out:
            if began:
                start.state.events.append(self._before(model(), decoder))
            held_out = self._held_out()
            evaluation = Evaluation(
                decoder, held_out, held_out, recipe.train.evaluate_every, material.rows * material.length,
                self.engine.compute,
            )  # fmt: skip
            callbacks = [evaluation, EarlyStopping(recipe.train.patience)]
        if recipe.distill.cache_samples is None:
            follow = divergence_of(recipe.distill)
            self.teacher = Following(model(), follow, recipe.distill.temperature)
        else:
            together = material.rows // (recipe.train.microbatch or 1)
            try:
                samples = sample(out / FOLDER, self._asking(), material.dataset, model, together)
            except KeyboardInterrupt:
                goes_on = "the same command" if start.out is None else f"shoestring {self.verb} --resume {out}"
                say(f"stopped   what the teacher said is kept in {out / FOLDER}: {goes_on} goes on from there")
                raise
            for one in opened:
                one.close()
            opened.clear()
            count = recipe.distill.cache_samples
            say(f"samples   {count} draws of each distribution, {samples.size} in {out / FOLDER}")
            self.teacher = samples
        objective = Distilling(self.teacher, recipe.distill.labels)
        exact = recipe.quantize is not None
        dtypes = None if material.lora else saved_dtypes(recipe.precision, material.student.folder, exact)
        return Wiring(
            objective, lambda folder: write_student(material, decoder, folder, dtypes), callbacks,
            read=lambda folder: read_student(material, decoder, folder),
        )  # fmt: skip

    def _look(self, batches: list[Batch]) -> list[Batch]:
        return self.teacher.look(batches)

    def _open_teacher(self) -> ResidentModel:
        folder = self.material.teacher.folder
        assert folder is not None
        streamed = self.recipe.budget.teacher == "streamed"
        return open_teacher(folder, streamed, self.device, self.engine.compute, say)

    def _asking(self) -> Asking:
        recipe, material = self.recipe, self.material
        assert recipe.distill.cache_samples is not None and recipe.train.microbatch is not None
        return Asking(
            material.teacher.digest, material.dataset.fingerprint, recipe.distill.cache_samples,
            recipe.distill.temperature, recipe.seed, recipe.train.microbatch, material.padded,
            str(self.engine.compute).removeprefix("torch."), torch.get_num_threads(),
        )  # fmt: skip

    def _before(self, teacher: ResidentModel, decoder: Decoder) -> dict[str, Any]:
        """The event that says what was measured before the first step."""
        losses = []
        for name, one in (("teacher", teacher.decoder), ("student", decoder)):
            text = self._held_out()
            with waiting(f"{name:<9} loss on held-out examples, in tokens", text.tokens) as told:
                losses.append(measure(one, text, self.engine.compute, told=told).loss)
            if not math.isfinite(losses[-1]):
                raise ModelFileError(
                    f"the {name}'s loss on held-out examples is no number: its weights hold NaN or infinity, or are too"
                    " large", hint="fetch the model again, or train it again",
                )  # fmt: skip
        text = self._held_out()
        return {
            "event": STARTED, "step": 0, "before": losses[1], "teacher": losses[0], "labels": text.tokens,
            "bytes": text.bytes,
        }  # fmt: skip

    def _held_out(self) -> SupervisedPass:
        recipe, material = self.recipe, self.material
        assert recipe.train.microbatch is not None
        return SupervisedPass(
            material.dataset, "validation", material.length, recipe.train.microbatch, recipe.data.layout,
            recipe.train.evaluate_examples,
        )  # fmt: skip
