"""Another kind given over a recipe: what went with the recipe's own kind goes, and is told."""

import pytest

from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import finetune_recipe
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.train.optimizer_config import AdafactorConfig, AdamWConfig, LionConfig, MuonConfig
from tests.train import tiny


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    text = tiny.recipe_text(tmp_path).replace("{learning_rate: 3e-3}", "{learning_rate: 3e-3, betas: [0.9, 0.99]}")
    file.write_text(text.replace("{kind: wsd, warmup: 2}", "{kind: cosine_restarts, warmup: 2, cycles: 3}"))
    return file


def test_another_optimizer_has_its_own_usual_settings(recipe, capsys):
    muon = load_pretrain_recipe(recipe, {"optimizer.kind": "muon", "optimizer.momentum": "0.9"}).optimizer
    assert muon == MuonConfig(momentum=0.9)
    assert capsys.readouterr().err == "optimizer muon: without the recipe's learning_rate, betas, which adamw had\n"
    over = {"optimizer.kind": "muon", "optimizer.learning_rate": "0.03", "optimizer.adamw.learning_rate": "2e-3"}
    given = load_pretrain_recipe(recipe, over).optimizer
    assert (given.learning_rate, given.adamw.learning_rate) == (0.03, 2e-3)
    for kind, usual in (("adafactor", AdafactorConfig()), ("lion", LionConfig())):
        assert load_pretrain_recipe(recipe, {"optimizer.kind": kind}).optimizer == usual


def test_the_same_optimizer_keeps_the_recipes_settings(recipe, capsys):
    same = load_pretrain_recipe(recipe, {"optimizer.kind": "adamw", "optimizer.state": "8bit"}).optimizer
    assert same == AdamWConfig(learning_rate=3e-3, betas=(0.9, 0.99), state="8bit")
    assert capsys.readouterr().err == ""


def test_another_schedule_keeps_what_it_has_too(recipe, capsys):
    schedule = load_pretrain_recipe(recipe, {"schedule.kind": "wsd"}).schedule
    assert (schedule.kind, schedule.warmup) == ("wsd", 2)
    assert capsys.readouterr().err == "schedule wsd: without the recipe's cycles, which cosine_restarts had\n"


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({"optimizer.kind": "moun"}, 'unknown kind "moun"; there are: adamw, muon, adafactor, lion'),
        ({"optimizer.kind": "muon", "optimizer.betas": "[0, 0]"}, "unknown setting optimizer.betas for kind muon"),
        ({"optimizer.momentum": "0.9"}, "optimizer.momentum for the usual kind .*\n.*optimizer.kind muon has it"),
        ({"optimizer.kind": "muon", "optimizer.adamw.lr": "1"}, "unknown setting optimizer.adamw.lr"),
        ({"optimizer.kind": "lion", "optimizer.betas": "[0.9, 1.0]"}, "expected a number below 1"),
        ({"optimizer.in_backward": "true"}, "optimizer.in_backward .* set train.clip null"),
        (
            {"optimizer.in_backward": "true", "train.clip": "null", "precision.compute": "float16"},
            "optimizer.in_backward: in float16",
        ),
    ],
)
def test_mistakes_are_one_sentence(recipe, over, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_pretrain_recipe(recipe, over)


def test_fine_tuning_takes_every_kind(tmp_path):
    rate = {"optimizer.learning_rate": "1e-3"}
    assert finetune_recipe("model", "text.jsonl", rate).optimizer.betas == (0.9, 0.99)
    muon = finetune_recipe("model", "text.jsonl", {**rate, "optimizer.kind": "muon"}).optimizer
    assert muon == MuonConfig(learning_rate=1e-3)
    held = {"optimizer.in_backward": "true", "train.clip": "null", "preserve.source": "everyday"}
    with pytest.raises(ConfigError, match="preserve adds another"):
        finetune_recipe("model", "text.jsonl", held)


def test_a_package_that_is_missing_is_one_sentence(recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(__import__("sys").modules, "lion_pytorch", raising=False)
    with pytest.raises(ConfigError, match="optimizer.kind lion needs the package lion_pytorch"):
        load_pretrain_recipe(recipe, {"optimizer.kind": "lion"}).check_packages()
