"""The recipe of a trial: equally long, possible, and nothing in it that a trial may not choose."""

import re

import pytest
import yaml

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import FinetuneRecipe
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.search.config import EVALUATIONS
from shoestring.search.folder import dump_space
from shoestring.search.recipes import base_document, best_recipe, trial_recipe
from shoestring.search.run import planned
from shoestring.train import recipe
from shoestring.train.evaluation import TIMES
from tests.search import studies


def plan(file, space, **given):
    return planned(file, space, {}, given)


def test_trials_of_other_batches_read_as_many_tokens(tmp_path):
    config, loaded, _ = plan(studies.recipe(tmp_path), {"train.batch_tokens": [64, 256]}, budget={"tokens": 2048})
    for batch in (64, 256):
        train = trial_recipe(config, base_document(loaded), {"train.batch_tokens": batch}).train
        assert train.planned_tokens == 2048 and train.planned_steps == 2048 // batch
        assert train.steps is None and train.time is None and train.evaluate_every is None


def test_a_job_that_counts_steps_gets_as_many_as_the_tokens_make():
    given = {"budget": {"tokens": 4000}, "objectives": ["loss"]}
    config, loaded, _ = plan("elite-sft", {"train.batch_tokens": [512, 1024]}, **given)
    assert isinstance(loaded, FinetuneRecipe) and config.objectives == ("loss",)
    recipes = [trial_recipe(config, base_document(loaded), {"train.batch_tokens": tokens}) for tokens in (512, 1024)]
    assert [one.train.steps for one in recipes] == [8, 4]
    assert all(one.train.answers == 0 and one.evaluate.suite is None for one in recipes)


def test_another_optimizer_begins_from_its_own_usual_settings_and_says_nothing(tmp_path, capsys):
    config, loaded, _ = plan(studies.recipe(tmp_path), {"optimizer.kind": ["adamw", "muon"]})
    settings = {"optimizer.kind": "muon", "optimizer.learning_rate": 0.05}
    optimizer = trial_recipe(config, base_document(loaded), settings).optimizer
    assert optimizer.kind == "muon" and optimizer.learning_rate == 0.05
    assert optimizer.momentum == 0.95 and optimizer.weight_decay == 0.1
    assert capsys.readouterr().err == ""


def test_the_best_recipe_runs_as_long_as_the_recipe_itself_and_is_read_back(tmp_path):
    file = studies.recipe(tmp_path)
    config, loaded, _ = plan(file, {"optimizer.learning_rate": {"log": [1e-4, 1e-2]}}, budget={"tokens": 2048})
    best = best_recipe(config, base_document(loaded), {"optimizer.learning_rate": 7e-3}).values
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(best))
    again = load_pretrain_recipe(tmp_path / "best.yaml")
    assert again.optimizer.learning_rate == 7e-3 and again.train.steps == 8 and again.base == "tiny"


def test_a_time_out_is_shared_among_the_trials_of_a_recipe_that_is_bound_by_time(tmp_path):
    config, _, _ = planned("quickstart", None, {}, {"trials": 12}, timeout=360, workers=1)
    assert config.budget.time == 20 and config.budget.tokens is None
    config, _, _ = planned(studies.recipe(tmp_path), studies.space(tmp_path), {}, {"trials": 12}, timeout=360)
    assert config.budget.time is None and config.budget.tokens == 8 * 128  # eight steps, if of that size


@pytest.mark.parametrize("name", ["quickstart", "speedrun", "compact", "elite-112m", "elite-sft", "compact-distill"])
def test_the_usual_spaces_fit_the_recipes_that_come_along(name):
    _, _, space = planned(name, None, {}, {})
    assert {"optimizer.learning_rate", "schedule.warmup"} <= set(dump_space(space))


def test_a_package_that_is_not_there_takes_its_optimizer_out_of_the_usual_space(tmp_path, monkeypatch):
    file, need = studies.recipe(tmp_path), recipe.need

    def without(package, setting, extra):
        need("no_such_package" if package == "lion_pytorch" else package, setting, extra)

    monkeypatch.setattr(recipe, "need", without)
    written = dump_space(plan(file, "optimizers")[2])
    assert written["optimizer.kind"]["choices"] == ["adamw", "muon"] and len(written["optimizer.learning_rate"]) == 2
    with pytest.raises(ConfigError, match="optimizer.kind lion needs the package"):
        plan(file, {"optimizer.kind": ["adamw", "lion"]})


def test_evaluations_are_as_many_as_a_run_makes():
    assert EVALUATIONS == TIMES


@pytest.mark.parametrize(
    ("space", "given", "sentence"),
    [
        ({"optimizer.learning_rat": [1, 2]}, {}, "unknown setting optimizer.learning_rat\n.*optimizer.learning_rate"),
        ({"optimizer.lr": [1e-3, 1e-2]}, {}, "unknown setting optimizer.lr\n.*learning_rate"),
        (
            {"optimizer.learning_rate": {"log": [1e-4, 1e-2], "when": {"optimizer.knd": "muon"}}}, {},
            "optimizer.knd|can never",
        ),
        ({"train.steps": [1, 2]}, {}, "train.steps is how long a trial is"),
        ({"train.time": [1, 2]}, {}, "train.time is how long a trial is"),
        ({"train": [{"steps": 4}, {"steps": 8}]}, {}, "train is how long a trial is"),
        ({"out": ["a", "b"]}, {}, "out changes nothing of what a trial learns"),
        ({"data.validation": [0.1, 0.2]}, {}, "data.validation changes what a trial is measured on"),
        ({"train.evaluate_tokens": [10, 20]}, {}, "changes what a trial is measured on"),
        ({"data.tokenizer.vocabulary": [300, 320]}, {"objectives": ["loss"]}, "cannot be compared between tokenizers"),
        ({"train.batch_tokens": [128, 100]}, {}, "train.batch_tokens 100: .*must be a multiple"),
        ({"model.layers": {"uniform": [1, 3.5]}}, {}, "model.layers: expected a whole number.*write int or log_int"),
        ({"optimizer.kind": ["adamw", "adamm"]}, {}, 'optimizer.kind: unknown kind "adamm"'),
        ({"optimizer.learning_rate": {"uniform": [-1, 1]}}, {}, "optimizer.learning_rate: expected a number above 0"),
        ({"optimizer.momentum": [0.8, 0.9]}, {}, "optimizer.momentum"),
        ({"train.batch_tokens": [64, 128]}, {"sampler": "cmaes"}, "cmaes moves ranges without conditions"),
        (
            {name: {"uniform": [0, 0.5], "points": 900} for name in ("optimizer.weight_decay", "schedule.warmup")},
            {"sampler": "grid"}, "the grid has more than 100,000 points",
        ),
        ({"train.batch_tokens": [64, 128]}, {"objectives": ["bytes"]}, "one of them must be of quality"),
        ({"train.batch_tokens": [64, 128]}, {"objectives": ["loss", "loss"]}, "two different ones"),
        ({"train.batch_tokens": [64, 128]}, {"objectives": ["loss", "bits"]}, "objectives.1: expected one of"),
        (
            {"train.batch_tokens": [64, 128]}, {"objectives": ["loss", "bytes"], "pruner": "median"},
            "pruner median: with two objectives",
        ),
        ({"train.batch_tokens": [64, 128]}, {"trials": 0}, "trials: expected a number above 0"),
        ({"train.batch_tokens": [64, 128]}, {"suite": {"items": 3}}, "items and only are of the objective suite"),
    ],
)  # fmt: skip
def test_a_space_or_a_study_that_cannot_be_is_refused_before_anything_is_written(tmp_path, space, given, sentence):
    with pytest.raises(ConfigError) as error:
        plan(studies.recipe(tmp_path), space, **given)
    assert re.search(sentence, str(error.value), re.DOTALL), error.value
    assert "(in the call)" not in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_the_command_refuses_in_a_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, bad = studies.recipe(tmp_path), studies.space(tmp_path, "optimizer.learning_rat: {log: [1e-4, 1e-2]}\n")
    assert main(["search", str(file), "--space", str(bad), "--trials", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {bad}:1: unknown setting optimizer.learning_rat\n  did you mean")
    assert not (tmp_path / "runs").exists()
    assert main(["search"]) == 2 and "search needs a recipe" in capsys.readouterr().err


def test_without_optuna_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    import importlib.util
    import sys

    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "optuna" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert main(["search", str(studies.recipe(tmp_path))]) == 2
    assert "search needs the package optuna\n" in capsys.readouterr().err
