"""Where metrics go besides the run's folder: one run there for one run here."""

from __future__ import annotations

import sys
import types

import pytest

from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.train import parallel
from shoestring.train.loggers import build_loggers


@pytest.fixture
def begun(monkeypatch) -> list[dict]:
    """What wandb is asked to begin."""
    asked: list[dict] = []
    run = types.SimpleNamespace(starting_step=0)
    fake = types.SimpleNamespace(init=lambda **settings: asked.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return asked


def test_a_run_is_known_by_a_number_of_its_own_that_it_keeps(begun, tmp_path):
    """Not by its folder's name: quickstart-1 is on every machine."""
    recipe = load_pretrain_recipe("quickstart-smoke", {"log.wandb": "mine"})
    folders = [tmp_path / machine / "quickstart-1" for machine in ("one", "other")]
    for folder in [*folders, folders[0]]:
        folder.mkdir(parents=True, exist_ok=True)
        assert len(build_loggers(recipe, folder)) == 1
    first, other, resumed = (settings["id"] for settings in begun)
    assert first == resumed != other and len(first) >= 16
    assert {settings["name"] for settings in begun} == {"quickstart-1"}
    assert {settings["resume"] for settings in begun} == {"allow"}


def test_the_first_process_alone_opens_loggers(begun, monkeypatch, tmp_path):
    recipe = load_pretrain_recipe("quickstart-smoke", {"log.wandb": "mine", "log.tensorboard": "true"})
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert build_loggers(recipe, tmp_path) == [] and not begun
