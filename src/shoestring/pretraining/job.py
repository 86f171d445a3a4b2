"""`pretrain(recipe)`: from a recipe to a trained model in a run folder. What `shoestring pretrain` does.

Text becomes packed batches, every weight of a fresh or given model is trained on them, held-out text is measured beside
`xz -9e`; a Hugging Face folder, metrics and a plot are left. `resume` continues a run to bit-identical weights.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.errors import ConfigError
from shoestring.core.waiting import waiting
from shoestring.data.corpus import HeldOutPass
from shoestring.data.loader import RowLoader
from shoestring.evaluate.samples import Samples, openings
from shoestring.evaluate.xz import xz_bytes
from shoestring.generate.language_model import LanguageModel
from shoestring.models.external import open_external
from shoestring.models.folder import read_config
from shoestring.offload.pipeline.engine import PipelineEngine
from shoestring.offload.pipeline.gather import together
from shoestring.offload.pipeline.place import Place, place_of
from shoestring.offload.pipeline.planned import refuse
from shoestring.offload.pipeline.times import MachineTimes
from shoestring.pretraining.config import SHORT, InitFrom, PretrainRecipe, load_pretrain_recipe
from shoestring.pretraining.epochs import check_epochs, epochs, told
from shoestring.pretraining.example_prompt import first_words
from shoestring.pretraining.material import open_material
from shoestring.pretraining.result import PretrainResult, model_and_data
from shoestring.pretraining.staged import cut, plan, stages
from shoestring.train import parallel
from shoestring.train.early_stopping import EarlyStopping
from shoestring.train.engine import LocalEngine
from shoestring.train.evaluation import Evaluation
from shoestring.train.exact_weights import read_trained, saved_dtypes, write_trained
from shoestring.train.fsdp import engine_of
from shoestring.train.loop import Callback
from shoestring.train.memory_banks import MemoryBanks
from shoestring.train.metrics import flops_per_token
from shoestring.train.objective import next_token
from shoestring.train.precision import loss_scale, prepared
from shoestring.train.quantize_command import quantize_command
from shoestring.train.recipe_files import begun_with, is_built_in, recipe_name, with_short
from shoestring.train.resident import ResidentEngine
from shoestring.train.result import common_header, length_line
from shoestring.train.run import Opened, Run, Wiring, dotted, execute, find_once, say
from shoestring.train.run_folder import Start, begun
from shoestring.train.run_folder import resume as resume_run


def pretrain(
    recipe: str | Path | PretrainRecipe | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    time: str | float | None = None,
    memory: str | int | None = None,
    fp8: bool | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> PretrainResult:
    """Train as the recipe says, or continue the run in the folder `resume` (then `recipe` may be left out); "auto": the
    one in `out`, if one has begun there.

    time, memory, fp8, out: the flags of `shoestring pretrain`; a recipe's other settings are keywords too, with two
    underscores for a dot: `pretrain("quickstart", time="2m", optimizer__learning_rate=1e-3)`. overrides: the same by
    their dotted names. Progress goes to stderr. Raises ConfigError, DataError, ModelFileError, RunError, BudgetError,
    and Interrupted when the user stopped the run.
    """
    short = {"time": time, "memory": memory, "fp8": fp8, "out": None if out is None else str(out)}
    changed = with_short(dotted(overrides, settings), SHORT, short)
    parallel.start()
    given = load_pretrain_recipe(recipe, changed) if recipe is not None else None
    if given is not None:
        resume = begun(resume, given.out)
    if resume is not None:
        start = resume_run(resume, load_pretrain_recipe, changed, given)
    elif given is not None and recipe is not None:
        name = recipe_name(recipe)
        built_in = not isinstance(recipe, PretrainRecipe) and is_built_in(recipe)
        if not isinstance(recipe, PretrainRecipe):
            given = begun_with(given, name, changed)
        start = Start(given, name, f"{name} (built in)" if built_in else name)
    else:
        raise ConfigError("give a recipe, or a run to resume", hint="shoestring recipe list names the built-in ones")
    job = PretrainJob()
    with parallel.stages(start.recipe.budget.split is not None):
        run = execute(job, start)
        if run.opened is not None:
            job.engine.close()
        checkpoint = run.checkpoint
        parameters = parallel.by_first(lambda: read_config(checkpoint).parameter_count())
        figures = run.figures()
    held_out, xz = run.state.held_out, None
    if run.opened is not None and held_out is not None and parallel.rank() == 0:
        with waiting("xz -9e    on the held-out text"):
            xz = xz_bytes(job.material.corpus, held_out)
    return PretrainResult(
        **figures,
        parameters=parameters,
        bits_per_byte=held_out.bits_per_byte if held_out else None,
        held_out_loss=held_out.loss if held_out else None,
        held_out_bytes=held_out.bytes if held_out else 0,
        xz_bytes=xz,
        prompt=_prompt(run, job),
        quantize=_quantize(run),
        plot=run.plot(8 * xz / held_out.bytes if xz is not None and held_out is not None else None),
    )


def _quantize(run: Run) -> str | None:
    recipe = run.recipe
    if recipe.quantize is None:
        return None
    origin = find_once(recipe.model.init) if isinstance(recipe.model, InitFrom) else None
    return quantize_command(recipe.quantize, run.out, run.out / "latest", origin)


def _prompt(run: Run, job: PretrainJob) -> str:
    """Of the text itself, but "def " for code, and where a finished run opens nothing."""
    if run.opened is None or run.recipe.data.source == "stdlib":
        return "def "
    return first_words(job.material.corpus) or "The "


def _in_int8(recipe: PretrainRecipe) -> bool:
    return recipe.precision.compute == "int8"


class PretrainJob:
    """A `train.run.Job`: packed text, every weight, next-token loss."""

    verb, held_out, splits = "pretrain", "bits/byte", True
    engine: LocalEngine
    place: Place | None = None  # of the layers here, where other processes have the others
    help = "a lower optimizer.learning_rate or a longer schedule.warmup may help"

    def open(self, start: Start) -> Opened:
        recipe, device = start.recipe, resolve_device(start.recipe.device)
        refuse(recipe, {"train.stages": bool(recipe.train.stages), "precision.compute int8": _in_int8(recipe)})
        self.material = material = open_material(start, device)
        config, world = material.config, parallel.shares()
        place = self.place = place_of(recipe.budget.split, config)
        tokens = material.corpus.token_count("train")
        if tokens is not None and (start.checkpoint is None or start.another_length):
            parallel.by_first(lambda: check_epochs(recipe.train, tokens, recipe.data.named))
        planned = plan(recipe, config, place)
        recipe, spec = planned.recipe, planned.choices[-1].spec
        settings = recipe.train
        compute, scale = resolve_dtype(recipe.precision.dtype), loss_scale(recipe.precision)
        if place is not None:
            make = functools.partial(material.make, place)
            self.engine = PipelineEngine(make, compute, spec.recompute, scale)  # type: ignore[arg-type]
        else:
            made = prepared(material.make, recipe.precision, recipe.quantize)
            self.engine = engine_of(recipe)(made, compute, spec.recompute, loss_scale=scale)
        with waiting("loading   the model"):
            self.engine.load()
        lanes = settings.rows if recipe.data.continue_documents else None
        self.stream = RowLoader(
            material.corpus.rows(settings.sequence_length, recipe.seed, lanes), spec.microbatch, parallel.share(),
            world, recipe.data.separate_documents, recipe.data.prefetch, material.external.get("train"),
        )  # fmt: skip
        if settings.stages:
            cut(self.stream, settings.portions[start.state.stage])
        steps = settings.planned_steps
        portion = f"{settings.batch_tokens:,} tokens" if not settings.stages else "several sizes"
        text = recipe.data.named + told(epochs(recipe.train, tokens))
        header = [
            *model_and_data(config, text, material.corpus, self.stream.rows),
            *common_header(recipe, planned.prediction, length_line(recipe, steps, portion), start.state),
            *planned.lines(),
        ]
        return Opened(
            recipe, self.engine, self.stream, settings.rows // world // spec.microbatch, steps,
            flops_per_token(config, settings.sequence_length), planned.prediction, "\n".join(header),
            stages(planned, self.stream, self.engine) if isinstance(self.engine, ResidentEngine) else None,
        )  # fmt: skip

    def wire(self, out: Path, start: Start) -> Wiring:
        recipe, material, decoder = start.recipe, self.material, self.engine.decoder
        settings, rank, world = recipe.train, parallel.share(), parallel.shares()
        microbatches = settings.rows // world // settings.microbatch
        banks = MemoryBanks.of(
            decoder, recipe.data.continue_documents, settings.microbatch, microbatches, out, parallel.world_size()
        )
        if banks is not None and settings.stages:
            raise ConfigError("a memory that outlives a batch needs rows that stay the same: leave out train.stages")
        if banks is not None and start.checkpoint is not None:
            banks.read(start.checkpoint)
        if isinstance(self.engine, ResidentEngine):
            self.engine.banks = banks

        def held_out(tokens: int | None) -> HeldOutPass:
            return material.corpus.held_out(
                settings.sequence_length, settings.microbatch, recipe.data.separate_documents, tokens, rank, world,
                material.external.get("validation"),
            )  # fmt: skip

        here = None if self.place is None else self.place.holds(material.config, trained=True)
        dtypes = together(saved_dtypes(recipe.precision, material.origin, recipe.quantize is not None, here))

        def write(folder: Path) -> None:
            write_trained(self.engine.whole(), folder, material.corpus.tokenizer, None, dtypes)
            if banks is not None:
                banks.write(folder)

        evaluation = Evaluation(
            decoder, held_out(settings.evaluate_tokens), held_out(settings.final_evaluate_tokens),
            settings.evaluate_every, settings.batch_tokens, self.engine.compute,
        )  # fmt: skip
        callbacks: list[Callback] = [evaluation]
        if settings.keep_best:
            callbacks.append(EarlyStopping(None, of_samples=evaluation.sample.tokens < evaluation.whole.tokens))
        if recipe.log.samples:
            callbacks.append(self._samples(recipe))
        if isinstance(self.engine, PipelineEngine):
            callbacks.append(MachineTimes(self.engine, recipe.log.every))

        def read(folder: Path) -> None:
            read_trained(decoder, folder)
            if banks is not None:
                banks.read(folder)

        position = {"shards": material.digest}
        return Wiring(next_token, write, callbacks, lambda: {**self.stream.state(), **position}, read)

    def _samples(self, recipe: PretrainRecipe) -> Samples:
        corpus, decoder = self.material.corpus, self.engine.decoder
        external = open_external(self.material.config, corpus.tokenizer, say)
        prompts = openings(corpus, recipe.log.samples)
        writing = functools.partial(LanguageModel, decoder, corpus.tokenizer, external=external)
        return Samples(writing, prompts, recipe.train.evaluate_every)
