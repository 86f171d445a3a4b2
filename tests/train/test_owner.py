"""A run's folder has one owner at a time; a budget is of a CPU's memory."""

from __future__ import annotations

import signal

import pytest
import torch

from shoestring.core.errors import ConfigError, RunError
from shoestring.core.files import hold
from shoestring.offload.load import load
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train import evaluation
from shoestring.train.interrupt import Interrupted, StopRequest
from shoestring.train.loop import Callback, train
from shoestring.train.memory_guard import MemoryGuard
from shoestring.train.metrics import read_metrics
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.pace import FixedSteps
from shoestring.train.resident import ResidentEngine
from shoestring.train.run import beside_its_budget
from shoestring.train.run_folder import LOCK
from shoestring.train.schedule import build_schedule
from shoestring.train.schedule_config import CosineConfig
from shoestring.train.state import TrainerState
from tests.train import tiny


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    return file


def test_a_run_that_is_alive_is_neither_resumed_nor_touched_and_is_free_at_its_end(recipe, tmp_path, monkeypatch):
    out, refusals, measure = tmp_path / "run", [], evaluation.measure

    def resume_meanwhile(*arguments):
        before = (out / "metrics.jsonl").read_bytes()
        for again in ({"resume": out}, {"recipe": recipe, "out": str(out)}):
            with pytest.raises(RunError) as error:
                pretrain(**again)
            refusals.append(error.value.message)
        assert (out / "metrics.jsonl").read_bytes() == before
        return measure(*arguments)

    monkeypatch.setattr(evaluation, "measure", resume_meanwhile)
    pretrain(recipe, out=str(out))
    assert refusals[:2] == ["another process is training this run", "there is a run in this folder already"]
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line] == list(range(1, 9))
    monkeypatch.undo()
    assert pretrain(resume=out).steps == 8


def test_a_resume_that_is_refused_leaves_the_run_free(recipe, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out))
    with pytest.raises(RunError, match="differs from the run's in seed"):
        pretrain(resume=out, seed=7)
    held = hold(out / LOCK)
    assert held is not None
    held.release()


def test_a_memory_budget_on_a_gpu_is_refused_before_anything(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="a memory budget counts the process's memory") as error:
        pretrain(recipe, out=str(tmp_path / "run"), device="cuda", budget__memory="1GB")
    assert "--device cpu" in error.value.hint and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="a memory budget"):
        load("no model is looked for", device="cuda", memory="1GB")


def test_with_a_memory_budget_a_run_that_leaves_it_open_stays_on_the_cpu_and_says_so(recipe, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    limited = load_pretrain_recipe(recipe, {"budget.memory": "1GB"})
    assert beside_its_budget(limited, begins=True).device == "cpu"
    assert "device    cpu: a memory budget is of the process" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="a memory budget"):  # it began elsewhere, and would not be the same run
        beside_its_budget(limited, begins=False)
    assert beside_its_budget(load_pretrain_recipe(recipe), begins=True).device == "auto"


def test_ctrl_c_while_a_run_saves_itself_for_want_of_memory_loses_nothing(tmp_path):
    saved = []

    class Saving(Callback):
        def after_step(self, event):
            if event.stopping:
                signal.raise_signal(signal.SIGINT)  # the first one: a second would end the process
                saved.append(event.state.step)

    class Batches:
        def __next__(self):
            return tiny.batch(1)

        def state(self):
            return {}

    guard = MemoryGuard(1)
    guard.before = 0
    engine = ResidentEngine.around(tiny.model(), next_token)
    engine.begin(next_token, AdamWConfig())
    with pytest.raises(Interrupted, match="more than its budget"), StopRequest() as stop:
        train(
            engine, Batches(), 1e-3, build_schedule(CosineConfig()), FixedSteps(5), TrainerState(),
            callbacks=[guard, Saving()], stop=stop,
        )  # fmt: skip
    assert saved == [1] and stop.requested
