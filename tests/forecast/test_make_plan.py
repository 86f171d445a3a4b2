"""Plans: what they say is what jobs say of themselves, what fits is found, and what does not is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import shoestring
from shoestring.core.errors import BudgetError
from shoestring.forecast import own_size
from shoestring.forecast.largest import TOKENS, family
from shoestring.forecast.plan import Plan, make_plan
from shoestring.forecast.rows import GIGABYTE, Limits, predicted
from shoestring.models.folder import read_config
from shoestring.plan.constants import SPARE
from shoestring.plan.machine_file import MachineConfig
from shoestring.serve.http.sizes import sizes_within
from tests.finetuning import tiny
from tests.forecast.machines import GPU, PROCESS, described
from tests.generate.tiny import tiny_model
from tests.train import tiny as training

MACHINE = described()


def planned(name, job: str | None = None, machine: MachineConfig = MACHINE, **given) -> Plan:
    return make_plan(str(name), job, machine=machine, **given)


def tensors(plan: Plan, engine: str, at_once: int, precision: str = "float32", note: str = "") -> list[int]:
    """Of the rows that are so."""
    return [
        row.outcome.prediction.tensor_bytes
        for row in plan.rows
        if (row.form.engine, row.form.at_once, row.form.precision) == (engine, at_once, precision)
        and note in row.form.note
    ]


# --- as the jobs say ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return training.corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def recipe(source, tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(training.recipe_text(source, steps=2))
    return file


@pytest.mark.parametrize("settings", [{}, {"budget.engine": "checkpointed"}, {"train.microbatch": 1}])
def test_pretraining_is_predicted_as_the_run_predicts_it(recipe, tmp_path, settings):
    result = shoestring.pretrain(recipe, memory="2GB", out=tmp_path / "run", overrides=settings)
    plan = planned(recipe, memory="2GB", overrides=settings)
    rows = recipe_of(tmp_path / "run")["train"]["microbatch"]
    assert tensors(plan, result.engine, rows) == [result.predicted_tensor_memory]
    assert plan.chosen.form.engine == result.engine and plan.chosen.form.at_once == rows
    assert plan.chosen.outcome.steps == result.steps == 2


def recipe_of(folder):
    from shoestring.core.yaml_document import read_document

    return read_document(folder / "recipe.yaml").values


def test_a_run_of_stages_takes_what_its_largest_takes(recipe, source, tmp_path):
    stages = "[{until: 1, sequence_length: 8, batch_tokens: 64, layers: 1, growth: stack}]"
    settings = {"train.stages": stages}
    result = shoestring.pretrain(recipe, memory="2GB", out=tmp_path / "run", overrides=settings)
    plan = planned(recipe, memory="2GB", overrides=settings)
    assert plan.chosen.outcome.prediction.tensor_bytes == result.predicted_tensor_memory
    last = plan.chosen.step
    assert last is not None and plan.chosen.seconds is not None and last < plan.chosen.seconds < 2 * last


@pytest.mark.parametrize("engine", ["resident", "checkpointed", "streamed"])
def test_fine_tuning_is_predicted_as_the_run_predicts_it(base, examples, tmp_path, engine):
    settings = {**tiny.SHORT, "train.steps": 1, "budget.engine": engine}
    result = shoestring.finetune(base, examples, memory="2GB", overrides={**settings, "out": str(tmp_path / "run")})
    plan = planned(base, "finetune", memory="2GB", overrides={**settings, "data.source": str(examples)})
    rows = recipe_of(tmp_path / "run")["train"]["microbatch"]
    assert result.predicted_tensor_memory in tensors(plan, engine, rows)
    assert plan.chosen.form.engine == engine and plan.chosen.outcome.prediction.tensor_bytes == max(
        tensors(plan, engine, rows)
    )


def test_steps_follow_from_epochs_where_examples_are_named_and_are_unknown_else(base, examples, tmp_path):
    epochs = {"train.epochs": 1, "train.batch_tokens": 2048, "train.sequence_length": 128, "train.answers": 0}
    result = shoestring.finetune(base, examples, overrides={**epochs, "out": str(tmp_path / "run")})
    with_data = planned(base, "finetune", overrides={**epochs, "data.source": str(examples)})
    assert with_data.chosen.outcome.steps == result.steps > 1
    without = planned(base, "finetune")
    assert without.chosen.outcome.steps is None and without.chosen.seconds is None
    assert "no data are named" in without.work.assumed[0]


def test_distillation_is_predicted_as_the_run_predicts_it(base, examples, tmp_path):
    recipe = tmp_path / "distill.yaml"
    recipe.write_text(
        f"job: distill\nteacher: {base}\nmodel: {{init: {base}}}\ndata: {{source: {examples}}}\n"
        "train: {steps: 1, batch_tokens: 256, sequence_length: 128}\n"
    )
    result = shoestring.distill(recipe=recipe, memory="2GB", out=tmp_path / "run")
    plan = planned(recipe, memory="2GB")
    rows = recipe_of(tmp_path / "run")["train"]["microbatch"]
    assert result.predicted_tensor_memory in tensors(plan, result.engine, rows, note="teacher in memory")
    assert plan.chosen.outcome.prediction.tensor_bytes == result.predicted_tensor_memory


def test_serving_is_predicted_as_the_server_predicts_it(tmp_path):
    from shoestring.models.folder import save_model
    from tests.generate.tiny import byte_tokenizer

    model = tiny_model(context=400)
    save_model(model.decoder, tmp_path / "model", byte_tokenizer())
    found = sizes_within(model, 64 * 10**9, 1, 4, 300)
    plan = planned(tmp_path / "model", "serve", overrides={"serve.slots": 4, "serve.context": 300})
    row = next(row for row in plan.rows if row.form.precision == "float32")
    process = found.memory - row.outcome.prediction.total + PROCESS["decoding"]  # of the server, as it would have been
    assert found[:2] == (4, 300) and 0 < process < 10**10
    assert row.memory - PROCESS["decoding"] == found.memory - process


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "learned"])
def test_quantizing_takes_a_block_at_a_time_and_less_with_states_on_disk(base, method):
    plan = planned(
        base, "quantize", overrides={"quantize.method": method, "quantize.rows": 1000, "quantize.group": 16}
    )
    by_place = {row.form.engine: row for row in plan.rows}
    assert set(by_place) == {"in memory", "on disk"} and plan.chosen.outcome.steps == 2
    if method != "rtn":
        assert by_place["on disk"].memory < by_place["in memory"].memory
        assert by_place["on disk"].disk > by_place["in memory"].disk


# --- machines and limits --------------------------------------------------------------------------------------------


def test_a_plan_for_another_machine_has_its_figures(recipe):
    here = planned(recipe)
    larger = {name: size + 100_000_000 for name, size in PROCESS.items()}
    there = planned(recipe, machine=described(process=larger, products={"float32": 2e11, "bfloat16": 1e11}))
    for one, other in zip(here.rows, there.rows, strict=True):
        assert other.memory == one.memory + 100_000_000
        products = [dict(row.outcome.prediction.time)["products of matrices"] for row in (one, other)]
        faster = 2 if one.form.precision == "float32" else 1
        assert products[1] == pytest.approx(products[0] / faster) and other.step <= one.step


def test_bfloat16_comes_first_where_the_machine_favours_it(recipe, monkeypatch):
    from shoestring.train import precision

    monkeypatch.setattr(precision, "GAIN", 1.3)
    fast = described(products={"float32": 1e11, "bfloat16": 4e11})
    assert planned(recipe, machine=fast).chosen.form.precision == "bfloat16"
    assert planned(recipe).chosen.form.precision == "float32"


def test_every_rows_lines_add_up_and_json_says_all(recipe):
    plan = planned(recipe, memory="2GB", time="1h")
    found = json.loads(json.dumps(plan.to_json()))
    assert len(found["rows"]) == len(plan.rows) >= 4 and found["chosen"]["fits"]
    for row in plan.rows:
        assert sum(size for _, size in row.lines) == row.memory + row.gpu + row.disk
    assert {row["engine"] for row in found["rows"]} == {"resident", "checkpointed"}
    assert {row["precision"] for row in found["rows"]} == {"float32", "bfloat16"}


def test_what_does_not_fit_says_by_how_much_and_more_memory_makes_it_fit(base):
    settings = {"train.steps": 5, "train.sequence_length": 256, "train.batch_tokens": 2048, "budget.engine": "auto"}
    free = planned(base, "finetune", memory="8GB", overrides=settings)
    sizes = sorted({row.memory for row in free.rows})
    middle = int((sizes[0] + sizes[-1]) / 2 / SPARE)
    plan = planned(base, "finetune", memory=middle, overrides=settings)
    over = [row for row in plan.rows if not row.fits(plan.limits)]
    assert over and len(over) < len(plan.rows)
    for row in over:
        needed = plan.limits.memory + int(row.over(plan.limits)["memory"])
        assert row.fits(replace(plan.limits, memory=needed))
        assert not row.fits(replace(plan.limits, memory=needed - 10))
    assert "too much memory" in str(plan)


def test_one_more_gigabyte_buys_the_faster_engine():
    settings = {
        "train.steps": 10, "train.sequence_length": 1024, "train.batch_tokens": 8192, "train.microbatch": 2,
        "precision.compute": "float32",
    }  # fmt: skip
    free = planned("elite-112m", overrides=settings, memory="1TB")
    of = {row.form.engine: row for row in free.rows}
    assert of["checkpointed"].memory < of["resident"].memory and of["resident"].step < of["checkpointed"].step
    between = int((of["checkpointed"].memory + 1_000_000) / SPARE)
    plan = planned("elite-112m", memory=between, overrides=settings)
    assert plan.chosen.form.engine == "checkpointed"
    gains = [more for more in (plan.gigabyte, plan.faster) if more is not None and more.row is not None]
    assert gains and gains[0].row.form.engine == "resident"
    least = plan.faster
    assert least is not None and least.bytes > 0
    with_it = planned("elite-112m", memory=between + least.bytes, overrides=settings)
    assert with_it.chosen.form.engine == "resident" and with_it.faster is None
    assert plan.gigabyte.bytes == GIGABYTE


def test_time_is_a_limit_too(recipe):
    slow = described(products={"float32": 1e5, "bfloat16": 1e5})
    with pytest.raises(BudgetError, match="of time are too little") as refused:
        planned(recipe, machine=slow, time="1s")
    assert "is the least that is predicted to do" in str(refused.value)
    assert planned(recipe, machine=slow, time="100h").chosen.seconds < 360_000


def test_a_recipe_that_is_bounded_by_time_is_planned_for_the_time_that_there_is():
    short, long = (planned("quickstart", time=time) for time in ("2m", "4m"))
    assert (short.chosen.seconds, long.chosen.seconds) == (120, 240)
    assert long.chosen.outcome.steps == pytest.approx(2 * short.chosen.outcome.steps, abs=1)


def test_nothing_that_fits_is_one_sentence_with_what_would_do(recipe):
    with pytest.raises(BudgetError) as refused:
        planned(recipe, memory="1MB")
    enough = int(refused.value.hint.split("--memory ")[1].split("MB")[0]) * 1_000_000
    assert planned(recipe, memory=enough).chosen.memory <= enough * SPARE


def test_a_gpu_has_the_tensors_and_the_process_keeps_the_rest(recipe):
    plan = planned(recipe, machine=described(gpu=GPU))
    assert plan.chosen.place == "gpu" and {row.place for row in plan.rows} == {"cpu", "gpu"}
    for row in (row for row in plan.rows if row.place == "gpu"):
        assert row.gpu == row.outcome.prediction.tensor_bytes
        assert PROCESS["training"] < row.memory < PROCESS["checkpointing"] + 10**8
    unknown = planned(recipe, gpu_memory="6GB")
    assert unknown.chosen.place == "gpu" and unknown.chosen.step is None
    small = planned(recipe, gpu_memory="100kB")
    assert small.chosen.place == "cpu"
    assert {name for row in small.rows if row.place == "gpu" for name in row.over(small.limits)} == {"gpu_memory"}


# --- the largest ----------------------------------------------------------------------------------------------------


def fits_any(plan: Plan, work, limits: Limits) -> bool:
    return any(row.fits(limits) and row.form.exact for row in predicted(work, plan.machine, limits))


@pytest.mark.parametrize(("job", "share"), [("finetune", 0.5), ("finetune", 0.05), ("generate", 0.3)])
def test_the_largest_context_is_that_of_a_search_through_all(base, job, share):
    free = planned(base, job)
    config = read_config(base)
    sizes = [min(row.memory for row in predicted(free.work.at_context(n), MACHINE, free.limits)) for n in (64, 512)]
    memory = int((sizes[0] + share * (sizes[1] - sizes[0])) / SPARE)
    limits = replace(free.limits, memory=memory)
    every = [n for n in range(TOKENS, config.context + 1, TOKENS) if fits_any(free, free.work.at_context(n), limits)]
    found = planned(base, job, machine=described(memory=memory), largest="context").largest
    assert found is not None and found.size == max(every) < config.context
    assert every == list(range(TOKENS, found.size + 1, TOKENS)), "what fits are all that are shorter"


def test_a_context_ends_where_the_model_does_and_fresh_shapes_have_no_end(base, recipe):
    found = planned(base, "finetune", largest="context").largest
    assert found.size == 512 and "as far as the model can look" in found.told()
    plan = planned(recipe, memory="600MB", largest="context")
    assert plan.largest.settings["model.context"] == plan.largest.size > 1000
    again = planned(recipe, memory="600MB", overrides={**plan.largest.settings, "train.microbatch": 1})
    assert again.chosen.memory == plan.chosen.memory and again.chosen.form.engine == plan.chosen.form.engine


def test_the_largest_model_of_these_proportions_is_that_of_a_search_through_all(recipe):
    free = planned(recipe)
    shapes = family(free.work.config)
    sizes = [int(shape.parameter_count()) for shape in shapes[:40]]
    assert sizes == sorted(sizes)
    limits = replace(free.limits, memory=500_000_000)
    every = [n for n, shape in enumerate(shapes[:40]) if fits_any(free, free.work.of_model(shape), limits)]
    found = planned(recipe, machine=described(memory=500_000_000), largest="model").largest
    assert found is not None and found.size == sizes[max(every)] and every == list(range(len(every)))
    again = planned(recipe, machine=described(memory=500_000_000), overrides=found.settings)
    assert int(again.work.config.parameter_count()) == found.size


def test_a_process_that_has_grown_plans_for_a_fresh_one(monkeypatch):
    fresh = own_size.fresh_sizes()
    monkeypatch.setattr(own_size, "_GROWN", 0)
    assert own_size.sizes_for(training=True) == fresh
    assert 10**8 < fresh.decoding <= fresh.training <= fresh.checkpointing < 6 * 10**8
