"""Trials that are real runs: what a run tells while it trains, one that is too large, a search killed at random."""

import os
import signal
import subprocess
import sys
import time

import pytest

from shoestring.compression.distill.config import distill_recipe
from shoestring.finetuning.config import finetune_recipe
from shoestring.pretraining.job import pretrain
from shoestring.search.folder import open_study
from shoestring.search.proposing import SETTINGS
from shoestring.search.results import counted_trials
from shoestring.search.run import search
from shoestring.search.trial import figures, held_out
from shoestring.train.checkpoint import checkpoints
from shoestring.train.metrics import read_metrics
from shoestring.train.watching import WATCHING, watched_by
from tests.search import studies
from tests.search.test_studies import trials_of


def test_a_watcher_sees_every_evaluation_and_can_end_a_run(tmp_path):
    from shoestring.search.trial import Watcher
    from shoestring.train.interrupt import Interrupted

    class Channel:
        stopping, said = False, []

        def ask(self, **values):
            self.said.append(values)
            return "prune" if values["evaluation"] >= 5 else "go"

    watcher = Watcher(Channel(), None)
    with watched_by(watcher), pytest.raises(Interrupted):
        pretrain(studies.recipe(tmp_path), out=str(tmp_path / "run"), train__steps=20, train__evaluate_every=None)
    assert [said["evaluation"] for said in Channel.said] == [1, 2, 3, 4, 5] and watcher.ended == "pruned"
    assert WATCHING.get() == ()
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "bits_per_byte" in line]
    assert [said["bits_per_byte"] for said in Channel.said] == [line["bits_per_byte"] for line in lines]
    assert figures(tmp_path / "run")["steps"] == 10 and held_out(tmp_path / "run", "held_out_loss") > 0


def test_trials_are_runs_and_one_that_is_too_large_fails_alone(tmp_path):
    recipe, out = studies.recipe(tmp_path), tmp_path / "study"
    space = {"budget.memory": ["30MB", "4GB"]}  # the least that a process takes is more
    result = search(recipe, space, sampler="grid", pruner="none", baseline=False, out=out, seed=2)
    assert (result.finished, result.failed) == (1, 1)
    failed, good = sorted(trials_of(out), key=lambda trial: trial.state.name == "COMPLETE")
    assert failed.user_attrs["kind"] == "budget" and "the least" in failed.user_attrs["reason"]
    lines = [line for line in read_metrics(out / "trials" / f"{good.number:04d}" / "metrics.jsonl")]
    assert good.values == [[line for line in lines if "bits_per_byte" in line][-1]["bits_per_byte"]]
    assert good.user_attrs["tokens"] == 8 * 128 == [line for line in lines if "loss" in line][-1]["tokens"]
    assert checkpoints(out / "trials" / f"{good.number:04d}") and not (out / "trials" / f"{failed.number:04d}").exists()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals")
def test_a_search_killed_at_random_ends_with_as_many_trials_each_trained_once(tmp_path):
    recipe, out = studies.recipe(tmp_path, steps=60), tmp_path / "study"
    command = [sys.executable, "-m", "shoestring", "search", str(recipe), "--space", str(studies.space(tmp_path))]
    command += ["--trials", "5", "--pruner", "none", "--out", str(out)]
    finished = {}
    for seconds in (9, 14, 19):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (out / "study.yaml").is_file():
            continue
        command = [sys.executable, "-m", "shoestring", "search", "--resume", str(out)]
        ended = {trial.number: trial.values for trial in trials_of(out) if trial.state.is_finished()}
        assert finished.items() <= ended.items()
        finished = ended
    assert search(resume=out).finished == 5
    study = open_study(out)
    for trial in counted_trials(study.opened()[0]):
        lines = read_metrics(study.trial(trial.number) / "metrics.jsonl")
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == list(range(1, steps[-1] + 1)) and SETTINGS in trial.user_attrs


@pytest.mark.long
def test_a_distillation_is_searched_for_its_students_held_out_loss(tmp_path, base, examples):
    recipe, out = tmp_path / "distill.yaml", tmp_path / "study"
    recipe.write_text(
        f"job: distill\nteacher: {base}\nmodel: {{init: {base}}}\ndata: {{source: {examples}, validation: 0.2}}\n"
        "train: {steps: 6, batch_tokens: 256}\noptimizer: {learning_rate: 1e-3}\n"
    )
    result = search(recipe, {"distill.divergence": ["forward", "reverse"]}, trials=2, sampler="random", out=out)
    assert result.objectives == ("loss",) and result.finished == 2, result.last_failure
    lines = read_metrics(out / "trials" / "0000" / "metrics.jsonl")
    assert result.baseline.values == (min(line["held_out_loss"] for line in lines if "held_out_loss" in line),)
    assert distill_recipe(recipe=str(out / "best.yaml")).train.steps == 6


@pytest.mark.long
def test_a_fine_tuning_recipe_is_searched_for_its_best_held_out_loss(tmp_path, base, examples):
    recipe, out = tmp_path / "tune.yaml", tmp_path / "study"
    recipe.write_text(
        f"job: finetune\nmodel: {base}\ndata: {{source: {examples}, validation: 0.2}}\n"
        "train: {steps: 6, batch_tokens: 256, answers: 0}\noptimizer: {learning_rate: 1e-3}\n"
    )
    space = {"adapter.rank": [2, 4]}
    result = search(recipe, space, trials=1, out=out)
    assert result.objectives == ("loss",) and result.finished == 1 and result.baseline.number == 0
    lines = read_metrics(out / "trials" / "0000" / "metrics.jsonl")
    losses = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert result.best.values == (min(losses),) and len(losses) > 1
    assert finetune_recipe(str(out / "best.yaml")).train.steps == 6
    assert (out / "trials" / "0000" / "best" / "adapter_model.safetensors").is_file()
