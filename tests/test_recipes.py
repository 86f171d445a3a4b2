"""Every built-in recipe is right, and its smoke variant trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.compression.distill.config import load_distill_recipe
from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import finetune_recipe, load_finetune_recipe
from shoestring.models.folder import read_config
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.train.recipe_files import list_recipes, recipe_job

NAMES = [name for name in list_recipes() if recipe_job(name) == "pretrain"]
FINETUNE = [name for name in list_recipes() if recipe_job(name) == "finetune"]
DISTILL = [name for name in list_recipes() if recipe_job(name) == "distill"]
SMOKE = [name for name in NAMES if name.endswith("-smoke")]


SIZES = {
    "elite-112m": 112_085_760,
    "elite-350m": 361_821_120,
    "velocity-2b": 1_713_639_424,
    "efficientlm": 349_852_696,
    "compact": 77_875_980,
}


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_has_exactly_the_parameters_of_the_system_it_reproduces(name):
    from shoestring.models.builder import build

    config = load_pretrain_recipe(name).model
    decoder = build(config, device="meta")
    assert config.parameter_count() == sum(p.numel() for p in decoder.parameters()) == SIZES[name]


def test_the_shapes_are_those_of_the_design():
    def shape(name):
        config = load_pretrain_recipe(name).model
        return config.layers, config.width, config.context, config.vocabulary

    assert shape("elite-112m") == (12, 768, 2048, 49_152)
    assert shape("velocity-2b")[:2] == (24, 2048) and shape("velocity-2b")[3] == 50_257
    assert shape("efficientlm")[2] == 8192
    compact = load_pretrain_recipe("compact").model
    assert compact.model_copy(update={"sharing": None}).parameter_count() >= 100_000_000


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("quickstart", "speedrun"))])
def test_a_recipe_with_a_budget_of_tokens_names_a_corpus_that_has_them(name):
    """stdlib has a few million; the smoke twins read no more of it."""
    recipe = load_pretrain_recipe(name)
    assert (recipe.data.source == "stdlib") == name.endswith("-smoke")


def test_quickstart_is_a_model_small_enough_for_two_minutes():
    assert 1e6 < load_pretrain_recipe("quickstart").model.parameter_count() < 2e6


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_a_description_and_a_smoke_variant_of_the_same_kinds(name):
    recipe, smoke = load_pretrain_recipe(name), load_pretrain_recipe(f"{name.removesuffix('-smoke')}-smoke")
    assert recipe.description
    assert smoke.model.parameter_count() < 1e6

    def kinds(values):
        if not isinstance(values, dict):
            return None
        return {
            k: v if k == "kind" else kinds(v) for k, v in values.items() if k == "kind" or isinstance(v, dict)
        }

    assert kinds(recipe.model_dump(exclude={"data"})) == kinds(smoke.model_dump(exclude={"data"}))


@pytest.mark.parametrize("name", SMOKE)
def test_smoke_recipes_train_a_few_steps_on_the_standard_library(name, tmp_path):
    from shoestring.pretraining.job import pretrain

    result = pretrain(name, out=str(tmp_path / "run"))
    assert result.steps == 8 and 0 < result.bits_per_byte < 8
    assert (result.checkpoint / "config.json").is_file() and result.plot.stat().st_size > 5000


@pytest.mark.parametrize("name", [name for name in FINETUNE if not name.endswith("-smoke")])
def test_a_fine_tuning_recipe_has_a_description_and_a_smoke_variant_of_the_same_kinds(name):
    recipe, smoke = load_finetune_recipe(name), load_finetune_recipe(f"{name}-smoke")
    assert recipe.description and smoke.description and recipe.description != smoke.description
    assert (recipe.adapter, recipe.optimizer, recipe.budget) == (smoke.adapter, smoke.optimizer, smoke.budget)
    assert smoke.train.steps < 10 and smoke.train.time is None


# The engine that each takes, as the recipe asks for it.
ENGINES = {"lazy-finetune-smoke": "streamed", "elite-sft-smoke": "resident"}


@pytest.mark.parametrize("name", [name for name in FINETUNE if name.endswith("-smoke")])
def test_smoke_recipes_of_fine_tuning_train_a_few_steps_on_a_tiny_model(name, tmp_path, monkeypatch):
    from benchmarks.random_models import SHAPES, large_model

    monkeypatch.setitem(SHAPES, "tiny", (32, 3, 4, 2, 64, 400, True))
    model = large_model("tiny", "bfloat16", tmp_path)
    command = [sys.executable, "-m", "shoestring", "finetune", name, "--out", str(tmp_path / "run"), "--json"]
    command += ["--model", str(model), "--train.sequence_length", "512"]  # its tokens are short
    # In a process of its own: a budget counts all that this one has ever held.
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result, recipe = json.loads(done.stdout), load_finetune_recipe(name)
    assert result["steps"] == recipe.train.steps and result["loss_after"] < result["loss_before"]
    assert result["engine"] == ENGINES[name]
    assert recipe.budget.memory is None or result["peak_memory"] <= recipe.budget.memory
    assert (recipe.budget.memory is None) == (name == "elite-sft-smoke")
    assert (Path(result["model"]) / "adapter_config.json").is_file()


def test_recipes_of_distilling_have_a_smoke_variant_that_trains_a_few_steps_on_a_tiny_teacher(tmp_path):
    from shoestring.compression.distill.job import distill
    from tests.finetuning import tiny

    recipe, smoke = map(load_distill_recipe, sorted(DISTILL))
    assert sorted(DISTILL) == ["compact-distill", "compact-distill-smoke"]
    assert recipe.description and smoke.description and recipe.description != smoke.description
    assert (recipe.distill, recipe.optimizer, recipe.teacher) == (smoke.distill, smoke.optimizer, smoke.teacher)
    assert smoke.model.parameter_count() < 1e6 < recipe.model.parameter_count() < 40e6
    teacher = tiny.chat_model(tmp_path / "teacher")
    (tmp_path / "text.txt").write_text("Some text to learn from, again and again.\n" * 400)
    result = distill(
        teacher, recipe="compact-distill-smoke", data=tmp_path / "text.txt", out=tmp_path / "run",
        model__vocabulary=read_config(teacher).vocabulary,
    )  # fmt: skip
    assert result.steps == 4 and result.after.loss < result.before.loss


def test_a_recipe_is_run_by_its_own_verb():
    with pytest.raises(ConfigError, match="shoestring finetune lazy-finetune"):
        load_pretrain_recipe("lazy-finetune")
    recipe = finetune_recipe("lazy-finetune", "mine.jsonl", {"train.steps": "5"})
    assert recipe.data.source == "mine.jsonl" and recipe.adapter.rank == 8
    assert (recipe.train.steps, recipe.train.epochs, recipe.train.time) == (5, None, None)
    assert finetune_recipe("quickstart", "mine.jsonl").model == "quickstart"  # a recipe of another verb is no model


def test_recipes_of_both_kinds_are_listed_shown_and_checked(capsys):
    from shoestring.cli.main import main

    assert main(["recipe", "list"]) == main(["recipe", "check", "lazy-finetune"]) == 0
    assert "lazy-finetune " in capsys.readouterr().out
    assert main(["recipe", "show", "lazy-finetune", "--adapter.rank", "4"]) == 0
    assert "rank: 4" in capsys.readouterr().out
    assert main(["recipe", "check", "lazy-finetune", "--adapter.rang", "4"]) == 2
    assert "did you mean adapter.rank?" in capsys.readouterr().err


def test_one_length_given_replaces_the_recipes_own():
    train = load_pretrain_recipe("quickstart", {"train.steps": "5"}).train
    assert (train.steps, train.tokens, train.time) == (5, None, None)
    assert load_pretrain_recipe("quickstart", {"train.time": "3m"}).train.time == 180


@pytest.mark.parametrize(("given", "means"), [("true", "full"), ("false", "selective"), ("none", "none")])
def test_what_is_recomputed_may_be_said_with_yes_or_no(given, means):
    train = load_pretrain_recipe("quickstart", {"train.activation_checkpointing": given}).train
    assert train.activation_checkpointing == means
    with pytest.raises(ConfigError, match="none"):
        load_pretrain_recipe("quickstart", {"train.activation_checkpointing": "some"})


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"model.sharing.unique_layers": "7"}, "must be at most layers"),
        ({"model.value_residual": "true", "model.block": "reversible"}, "reversible blocks exist to avoid"),
        ({"model.attention.kind": "mla"}, "latent_rank"),
        ({"model.feed_forward": "{kind: moe, width: 8, experts: 2, active: 3}"}, "must be at most experts"),
        ({"model.block": "reversibel"}, "did you mean reversible"),
        ({"model.linear.kind": "lowrank"}, "did you mean low_rank"),
    ],
)
def test_combinations_of_kinds_that_make_no_sense_are_refused_with_the_reason(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        load_pretrain_recipe("quickstart", overrides)


def test_a_model_to_start_from_replaces_the_shapes():
    assert load_pretrain_recipe("quickstart", {"model.init": "smollm2-135m"}).model.init == "smollm2-135m"


def test_unknown_names_and_settings_give_the_nearest():
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load_pretrain_recipe("quikstart")
    with pytest.raises(ConfigError, match="did you mean optimizer.learning_rate"):
        load_pretrain_recipe("elite-112m", {"train.learning_rat": "1"})


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.steps": "5", "train.time": "3m"},
        {"train.batch_tokens": "1000"},
        {"train.microbatch": "3"},
        {"model.attention.kv_heads": "3"},
    ],
)
def test_impossible_combinations_are_refused(overrides):
    with pytest.raises(ConfigError):
        load_pretrain_recipe("quickstart", overrides)


def test_reading_recipes_does_not_import_torch():
    code = "import sys; from shoestring.train.recipe_files import *; from shoestring.finetuning.config import *\n"
    code += "from shoestring.pretraining.config import *; load = load_pretrain_recipe\n"
    code += "from shoestring.compression.distill.config import *\n"
    code += "jobs = {'pretrain': load, 'finetune': load_finetune_recipe, 'distill': load_distill_recipe}\n"
    code += "[jobs[recipe_job(n)](n) for n in list_recipes()]\n"
    code += "print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
