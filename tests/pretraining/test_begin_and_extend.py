"""A run that could not begin leaves nothing behind; a finished one can be made longer; a small corpus is told."""

from pathlib import Path

import pytest
import yaml

from shoestring.core.errors import ConfigError, RunError
from shoestring.pretraining.config import PretrainTrainSection, load_pretrain_recipe
from shoestring.pretraining.epochs import check_epochs, epochs, told
from shoestring.pretraining.job import pretrain
from shoestring.train.checkpoint import checkpoints, read_state
from shoestring.train.metrics import read_metrics
from shoestring.train.run_folder import save_recipe
from tests.train import tiny


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text"), steps=4))
    return file


def test_a_mistake_leaves_no_folder_and_the_corrected_command_works(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="no such file or folder"):
        pretrain(recipe, out="run", data__source="nowhere")
    monkeypatch.setattr("shoestring.train.run.build_loggers", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain(recipe, out="run")
    assert not Path("run").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert pretrain(recipe, out="run", train__steps=1).steps == 1


def test_a_finished_run_is_made_longer_with_its_optimizer_and_the_schedule_is_told(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out))
    moments = (checkpoints(out)[-1] / "trainer" / "optimizer.safetensors").read_bytes()
    capsys.readouterr()
    result = pretrain(resume=out, overrides={"train.steps": "7"})
    said = capsys.readouterr().err
    assert result.steps == 7 and "schedule" in said
    state = read_state(checkpoints(out)[-1])
    assert state.finished and state.step == 7 and state.schedule_step == 4
    assert (checkpoints(out)[-1] / "trainer" / "optimizer.safetensors").read_bytes() != moments
    steps = [line["step"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 8))
    assert yaml.safe_load((out / "recipe.yaml").read_text())["train"]["steps"] == 7
    with pytest.raises(RunError, match="the run has done 7 steps already"):
        pretrain(resume=out, overrides={"train.steps": "5"})


def rates(out):
    return {line["step"]: line["lr"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line}


def test_a_run_under_way_takes_the_longer_runs_schedule(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out))
    (checkpoints(out)[-1] / "trainer" / "state.json").unlink()  # as if it had been killed after step 3
    pretrain(resume=out, train__steps=8)
    assert "from step 4 on the schedule is that of the longer run" in capsys.readouterr().err
    pretrain(recipe, out=str(tmp_path / "whole"), train__steps=8)
    longer, whole = rates(out), rates(tmp_path / "whole")
    assert {step: longer[step] for step in range(4, 9)} == {step: whole[step] for step in range(4, 9)}


def test_a_run_may_go_on_for_a_time_that_is_not_used_up(recipe, tmp_path):
    out = tmp_path / "run"
    first = pretrain(recipe, out=str(out))
    with pytest.raises(RunError, match="of training already"):
        pretrain(resume=out, time=0.001)
    longer = pretrain(resume=out, time=first.seconds + 1.5)
    assert longer.steps > 4 and longer.seconds < first.seconds + 3
    assert load_pretrain_recipe(out / "recipe.yaml").train.steps is None


def test_before_its_first_checkpoint_a_run_takes_other_settings(recipe, tmp_path):
    """It was killed there: nothing depends on the old ones."""
    out = tmp_path / "run"
    out.mkdir()
    save_recipe(load_pretrain_recipe(recipe, {"out": str(out)}), out)
    assert pretrain(resume=out, overrides={"optimizer.learning_rate": "1e-4", "seed": "3"}).steps == 4
    assert load_pretrain_recipe(out / "recipe.yaml").seed == 3


def test_a_folder_that_was_there_stays(recipe, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("shoestring.train.run.build_loggers", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain(recipe, out=str(tmp_path / "mine"))
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_run_says_what_it_began_with_and_not_what_its_recipe_was_about(recipe, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, out=str(out), train__steps=1)
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert saved["base"] == "mine" and "train.steps 1" in saved["description"]


def test_the_next_command_begins_as_the_text_does(recipe, tmp_path):
    folder = tmp_path / "poems"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number}.txt").write_text(f"the owl and the pussycat number {number} went to sea\n" * 20)
    result = pretrain(recipe, out=str(tmp_path / "run"), train__steps=1, data__source=str(folder))
    assert '--prompt "the owl and the"' in str(result)


SECTION = {"steps": 10, "batch_tokens": 100, "sequence_length": 10}


def test_many_passes_over_a_small_corpus_are_told_and_refused_where_nobody_can_be_asked():
    settings = PretrainTrainSection.model_validate(SECTION)
    assert epochs(settings, 500) == 2 and told(2) == "; read 2.0 times" and told(1.0) == told(None) == ""
    check_epochs(settings, 50, "mine")  # twenty
    with pytest.raises(ConfigError, match=r"1.0k tokens are 25 epochs of mine, which has 40 to train on") as raised:
        check_epochs(settings, 40, "mine")
    assert "--train.most_epochs 25" in str(raised.value) and "--train.tokens 800" in str(raised.value)
    check_epochs(PretrainTrainSection.model_validate({**SECTION, "most_epochs": 25}), 40, "mine")


def test_recipes_named_after_systems_stand_for_them():
    elite = load_pretrain_recipe("elite-112m")
    assert (elite.optimizer.learning_rate, elite.schedule.kind, elite.train.tokens) == (8e-4, "cosine", 2_500_000_000)
    assert (elite.train.batch_tokens, elite.train.sequence_length) == (128 * 2048, 2048)
    assert "fineweb-edu" in elite.data.source and elite.precision.compute == "bfloat16"
    velocity = load_pretrain_recipe("velocity-2b")
    assert (velocity.optimizer.learning_rate, velocity.schedule.kind) == (6e-4, "cosine_restarts")
    assert (velocity.schedule.warmup, velocity.schedule.final) == (2000, 0.1)
    assert velocity.train.batch_tokens == 4 * 8 * 2048 and velocity.train.microbatch == 4
    assert "falcon-refinedweb" in velocity.data.source and "gpt2" in velocity.data.tokenizer
