"""`resume="auto"`: one command that begins a run, and goes on with it however often it is given."""

import pytest

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, RunError
from shoestring.pretraining.job import pretrain
from shoestring.train import parallel
from shoestring.train.checkpoint import STATE, checkpoints
from shoestring.train.metrics import Metrics, read_metrics
from tests.train import tiny


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    return file


def test_the_same_command_begins_goes_on_and_finds_it_finished(recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    after_step = Metrics.after_step

    def die(metrics, event):
        after_step(metrics, event)
        if event.state.step == 5:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "after_step", die)
        with pytest.raises(ZeroDivisionError):
            pretrain(recipe, out=out, resume="auto")
    command = ["pretrain", str(recipe), "--out", str(out), "--resume", "auto"]
    assert main(command) == 0 and "resuming  after step 3" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line] == list(range(1, 9))
    assert main(command) == 0 and "is finished" in capsys.readouterr().err
    with pytest.raises(RunError, match="differs from the run's in optimizer.learning_rate"):
        pretrain(recipe, out=out, resume="auto", optimizer__learning_rate=1e-5)


def test_it_needs_the_folder_of_the_run(recipe):
    with pytest.raises(ConfigError, match="needs the folder of the run"):
        pretrain(recipe, resume="auto")


def test_a_fine_tuning_has_it_too(base, examples, tmp_path):
    from shoestring.finetuning.job import finetune

    settings = {"out": tmp_path / "run", "steps": 2, "train__answers": 1, "resume": "auto"}
    assert finetune(base, examples, **settings).steps == 2
    assert finetune(base, examples, **settings).steps == 2


def test_a_checkpoint_that_another_process_does_not_see_is_refused(recipe, tmp_path, monkeypatch):
    """Its folder is on the first one's own disk."""
    out = pretrain(recipe, out=tmp_path / "run", train__steps=2).out
    assert (checkpoints(out)[-1] / STATE).is_file()
    monkeypatch.setattr(parallel, "sum_numbers", lambda *numbers: [1.0])
    with pytest.raises(RunError, match="not every process sees step-000002 here"):
        pretrain(resume=out, train__steps=4)
