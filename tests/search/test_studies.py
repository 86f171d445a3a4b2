"""Studies whose trials are formulas: who proposes, who ends, what is kept, what a killed process leaves."""

import json
import math
import multiprocessing
import os
import random
import re
import shutil
import threading
import time

import pytest
from optuna.storages.journal import JournalFileBackend

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, RunError, ShoestringError
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.search.folder import open_study
from shoestring.search.proposing import SETTINGS
from shoestring.search.results import counted_trials
from shoestring.search.run import begin, search
from shoestring.search.session import Session
from tests.fuzz.mutations import damaged, damaged_lines
from tests.search import studies
from tests.search.studies import formula

assert formula  # a fixture


@pytest.fixture
def place(tmp_path):
    return studies.recipe(tmp_path), studies.space(tmp_path), tmp_path / "study"


def trials_of(out):
    return counted_trials(open_study(out).opened()[0])


def test_a_study_finds_better_settings_than_the_recipes_and_writes_them_down(place, formula):
    recipe, space, out = place
    result = search(recipe, space, trials=30, out=out, seed=3)
    assert (result.ended, result.finished + result.pruned, result.failed) == (30, 30, 0)
    assert formula.ran == list(range(30)) and result.pruned > 0
    assert result.baseline.number == 0 and result.baseline.settings == {}
    assert result.improved and result.best.values[0] < result.baseline.values[0] - 0.1
    assert math.log10(result.best.settings["optimizer.learning_rate"]) == pytest.approx(-2, abs=0.35)
    best = load_pretrain_recipe(out / "best.yaml")
    assert best.optimizer.learning_rate == pytest.approx(result.best.settings["optimizer.learning_rate"])
    assert best.train.steps == 8 and "optimizer.learning_rate" in best.description
    assert f"trial {result.best.number} of 30 trials" in (out / "best.yaml").read_text()
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4 and "http" not in page and "Which settings" in page and "What matters" in page


def test_the_same_seed_proposes_the_same_trials(place, formula, tmp_path):
    recipe, space, out = place
    first = search(recipe, space, trials=6, out=out)
    second = search(recipe, space, trials=6, out=tmp_path / "again")
    settings = [[trial.user_attrs[SETTINGS] for trial in trials_of(one.out)] for one in (first, second)]
    assert settings[0] == settings[1] and len({str(one) for one in settings[0]}) == 6
    third = search(recipe, space, trials=6, out=tmp_path / "other", seed=2)
    assert [trial.user_attrs[SETTINGS] for trial in trials_of(third.out)] != settings[0]


def test_a_study_that_is_made_longer_goes_on_and_does_not_propose_its_first_trials_again(place, formula):
    recipe, space, out = place
    search(recipe, space, trials=5, out=out, sampler="random")
    result = search(resume=out, trials=9)
    assert formula.ran == list(range(9)) and result.ended == 9
    assert len({str(trial.user_attrs[SETTINGS]) for trial in trials_of(out)}) == 9
    assert search(resume=out).ended == 9 and len(formula.ran) == 9


def test_a_trial_that_is_good_enough_ends_the_search(place, formula):
    recipe, space, out = place
    result = search(recipe, space, trials=40, sampler="random", pruner="none", until=2.3, out=out)
    values = [trial.values[0] for trial in trials_of(out)]
    assert values[-1] <= 2.3 < min(values[:-1]) and result.ended < 40
    assert search(resume=out, until=2.3).ended == len(values)


def test_a_grid_is_walked_once_through(place, formula, tmp_path):
    recipe, _, out = place
    space = {"optimizer.learning_rate": {"log": [1e-3, 1e-1], "points": 3}, "train.batch_tokens": [64, 128]}
    result = search(recipe, space, sampler="grid", baseline=False, out=out)
    settings = [trial.user_attrs[SETTINGS] for trial in trials_of(out)]
    assert len(settings) == 6 == result.finished and len({str(one) for one in settings}) == 6
    assert result.best.settings["optimizer.learning_rate"] == pytest.approx(1e-2)
    more = search(resume=out, trials=20)
    assert more.ended == 6 and len(formula.ran) == 6


def test_cma_es_closes_in_on_the_best(place, formula):
    recipe, _, out = place
    formula.value = lambda settings: (
        2 + (math.log10(settings.get("optimizer.learning_rate", 3e-3)) + 1.3) ** 2
        + 4 * (settings.get("optimizer.weight_decay", 0.1) - 0.25) ** 2
    )  # fmt: skip
    space = {"optimizer.learning_rate": {"log": [1e-4, 1e-1]}, "optimizer.weight_decay": {"uniform": [0, 0.3]}}
    result = search(recipe, space, sampler="cmaes", pruner="none", trials=37, out=out)
    values = [trial.values[0] for trial in trials_of(out)]
    assert sum(values[-12:]) / 12 < sum(values[1:13]) / 12 and result.best.values[0] < 2.05


@pytest.mark.parametrize("pruner", ["hyperband", "median"])
def test_hopeless_trials_end_early_and_the_recipe_itself_never(place, formula, pruner):
    recipe, space, out = place
    formula.value = lambda settings: studies.loss(settings) if settings else 9.0
    result = search(recipe, space, trials=24, pruner=pruner, sampler="random", out=out)
    assert result.pruned >= 4 and result.baseline.values == (9.0,)
    assert result.tokens < 0.85 * 24 * 1000
    ended = [trial for trial in trials_of(out) if trial.state.name == "PRUNED"]
    kept = [trial.values[0] for trial in trials_of(out) if trial.state.name == "COMPLETE" and trial.number]
    would = [studies.loss(trial.user_attrs[SETTINGS]) for trial in ended]
    assert min(kept) < min(would)  # the best was not ended


def test_trials_that_fail_are_written_down_and_the_study_goes_on(place, formula):
    recipe, space, out = place
    budget = {"state": "failed", "reason": "the least this needs is 9 GB", "kind": "budget"}
    formula.value = lambda settings: budget if settings.get("train.batch_tokens") == 256 else studies.loss(settings)
    result = search(recipe, space, trials=15, sampler="random", pruner="none", out=out)
    assert result.ended == 15 and 0 < result.failed < 12
    failed = [trial for trial in trials_of(out) if trial.state.name == "FAIL"]
    assert {trial.user_attrs["reason"] for trial in failed} == {"the least this needs is 9 GB"}
    assert {trial.user_attrs[SETTINGS]["train.batch_tokens"] for trial in failed} == {256}
    assert "the least this needs is 9 GB" in str(result) and "9 GB" in (out / "report.html").read_text()


def test_settings_that_do_not_go_together_are_a_failed_trial_without_a_run(place, formula):
    recipe, _, out = place
    space = {"train.sequence_length": [16, 64], "train.batch_tokens": [32, 64]}  # rows of 64 in batches of 32
    result = search(recipe, space, sampler="grid", baseline=False, out=out)
    assert (result.finished, result.failed) == (3, 1) and len(formula.ran) == 3
    assert "must be a multiple of sequence_length" in result.last_failure


def test_equal_settings_are_not_run_twice(place, formula):
    recipe, _, out = place
    result = search(recipe, {"train.batch_tokens": [64, 256]}, trials=9, pruner="none", out=out)
    assert result.finished == 9 and len(formula.ran) == 3
    same = [trial for trial in trials_of(out) if "same as" in trial.user_attrs]
    assert len(same) == 6 and all(trial.values == trials_of(out)[trial.user_attrs["same as"]].values for trial in same)


def test_two_objectives_have_a_front_of_recipes(place, formula):
    recipe, space, out = place
    formula.value = lambda settings: (studies.loss(settings), float(settings.get("train.batch_tokens", 128)))
    result = search(recipe, space, objective="loss,seconds", trials=24, sampler="random", out=out)
    everyone = [tuple(trial.values) for trial in trials_of(out)]
    front = sorted(
        {pair for pair in everyone if not any(o != pair and o[0] <= pair[0] and o[1] <= pair[1] for o in everyone)}
    )
    assert [found.values for found in result.front] == front and len(front) > 1
    files = sorted(file.name for file in out.glob("front-*.yaml"))
    assert files == sorted(f"front-{found.number:04d}.yaml" for found in result.front)
    assert all(load_pretrain_recipe(out / name).job == "pretrain" for name in files)
    assert result.pruned == 0 and "The front" in (out / "report.html").read_text() and "front" in str(result)


def test_a_recipe_that_nothing_beats_is_said_to_be_the_best(place, formula):
    recipe, space, out = place
    formula.value = lambda settings: 5.0 if settings else 1.0
    result = search(recipe, space, trials=4, pruner="none", out=out)
    assert result.improved is False and "no trial was better than the recipe as it is" in str(result)
    assert load_pretrain_recipe(out / "best.yaml").optimizer.learning_rate == 3e-3


def test_workers_share_the_trials(place, formula):
    recipe, space, out = place
    both, met = threading.Barrier(2, timeout=30), []

    def value(settings):
        if len(met) < 2:
            met.append(both.wait())  # two are under way at once
        return studies.loss(settings)

    formula.value = value
    result = search(recipe, space, trials=8, workers=2, out=out)
    assert sorted(formula.ran) == list(range(8)) and result.ended == 8


FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def in_a_process(function, *arguments):
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def searched(out, ran, dies_at=None):
    """In a process of its own: search on, write down which trials were run, and die at that write to the journal."""
    made, write, left = studies.Formula(), JournalFileBackend.append_logs, [dies_at]

    def run(session, trial):
        time.sleep(0.01)
        return made(session, trial)

    def append(self, logs):
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                with open(self._file_path, "ab") as file:
                    file.write(b'{"op_code":4,"worker')  # half a line
                os._exit(9)
        write(self, logs)

    Session._run, JournalFileBackend.append_logs = run, append
    search(resume=out)
    ran.write_text(json.dumps(made.ran))


@pytest.mark.skipif(FORK is None, reason="the processes are forks")
def test_several_processes_search_in_one_folder_and_no_trial_is_run_twice(place, tmp_path):
    recipe, space, out = place
    begin(recipe, space, {}, {"trials": 12}, out=out)
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    processes = [in_a_process(searched, out, file) for file in files]
    for process in processes:
        process.join()
    ran = [json.loads(file.read_text()) for file in files]
    assert sorted(ran[0] + ran[1]) == list(range(12)) and all(ran)
    assert all(trial.state.is_finished() for trial in trials_of(out))


@pytest.mark.skipif(FORK is None, reason="the processes are forks")
def test_a_process_that_is_killed_anywhere_loses_and_repeats_nothing(place, tmp_path):
    """Each of its writes to the journal is a place to die at; the study ends with as many trials."""
    recipe, space, out = place
    begin(recipe, space, {}, {"trials": 10}, out=out)
    drawn, finished, codes = random.Random(5), {}, []
    for _ in range(8):
        process = in_a_process(searched, out, tmp_path / "ran.json", drawn.randrange(3, 40))
        process.join()
        codes.append(process.exitcode)
        ended = {trial.number: trial.user_attrs[SETTINGS] for trial in trials_of(out) if trial.state.is_finished()}
        assert finished.items() <= ended.items()
        finished = ended
    assert codes.count(9) >= 3, codes
    process = in_a_process(searched, out, tmp_path / "ran.json")
    process.join()
    assert process.exitcode == 0
    trials = trials_of(out)
    assert len(trials) == 10 and all(trial.state.is_finished() for trial in trials)
    assert sum("baseline" in trial.user_attrs for trial in trials) == 1


def test_what_was_under_way_when_a_time_out_came_goes_on_under_its_own_number(place, monkeypatch):
    recipe, space, out = place
    made, ran = studies.Formula(), []

    def run(session, trial):
        ran.append(trial.number)
        if trial.number == 2 and ran.count(2) == 1:
            while not session.stopping:
                time.sleep(0.01)
            return {"state": "stopped"}
        return made(session, trial)

    monkeypatch.setattr(Session, "_run", run)
    result = search(recipe, space, trials=5, timeout=1.0, out=out)
    assert result.ended == 2 and [trial.state.name for trial in trials_of(out)][2] == "RUNNING"
    assert f"shoestring search --resume {out}" in str(result)
    assert search(resume=out).ended == 5 and ran == [0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"space": "pretrain"}, "has its space"),
        ({"overrides": {"train.steps": "9"}}, "has its recipe: train.steps cannot change now"),
        ({"objective": "loss"}, "has another objectives"),
        ({"trial_tokens": "4k"}, "has another budget"),
        ({"seed": 7}, "has another seed"),
        ({"out": "elsewhere"}, "stays in its folder"),
    ],
)
def test_a_study_that_goes_on_keeps_what_its_trials_depend_on(place, formula, given, sentence):
    recipe, space, out = place
    search(recipe, space, trials=2, out=out)
    before = (out / "journal.log").read_bytes()
    with pytest.raises((ConfigError, RunError), match=sentence):
        search(resume=out, **given)
    assert (out / "journal.log").read_bytes() == before


def test_a_study_of_another_recipe_is_refused_by_what_differs(place, formula, tmp_path, capsys):
    recipe, space, out = place
    search(recipe, space, trials=2, out=out)
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text().replace("layers: 2", "layers: 1"))
    assert main(["search", str(other), "--resume", str(out)]) == 2
    assert "is of another recipe, which differs in model.layers" in capsys.readouterr().err
    assert main(["search", "elite-sft", "--resume", str(out)]) == 2
    assert "is of a recipe of pretrain, not of finetune" in capsys.readouterr().err
    assert search(recipe, resume=out).ended == 2
    assert main(["search", str(recipe), "--space", str(space), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: [*lines[:3], b"{not json", *lines[3:]], "journal.log:4: this is not the journal.*: no JSON"),
        (lambda lines: [*lines[:3], b"[1, 2]", *lines[3:]], r"journal.log:4: .*no operation"),
        (lambda lines: [*lines[:3], b'{"op_code": 99}', *lines[3:]], "not the journal of a study"),
        (lambda lines: [*lines[:3], b'{"op_code": 4, "worker_id": "x"}', *lines[3:]], "not the journal"),
        (lambda lines: lines[1:], "not the journal of a study: no study begins in it"),
        (lambda lines: [line.replace(b'"digest":"', b'"digest":"f') for line in lines], "of another recipe, space or"),
        (lambda lines: [b"\x00\xff\xfe" * 40], "not the journal of a study"),
        (lambda lines: [b"[" * 5000], "not the journal of a study"),
    ],
)
def test_a_damaged_journal_is_told_in_a_sentence_and_stays_as_it_is(place, formula, capsys, damage, sentence):
    recipe, space, out = place
    search(recipe, space, trials=2, out=out)
    file = out / "journal.log"
    file.write_bytes(b"\n".join(damage(file.read_bytes().splitlines())) + b"\n")
    before = file.read_bytes()
    capsys.readouterr()
    assert main(["search", "--resume", str(out), "--trials", "3"]) == 2
    error = capsys.readouterr().err
    assert re.search(sentence, error), error
    assert file.read_bytes() == before and len(formula.ran) == 2


def test_the_result_is_one_json_object(place, formula, capsys):
    recipe, space, out = place
    assert main(["search", str(recipe), "--space", str(space), "--trials", "3", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ended"] == 3 if "ended" in result else result["finished"] + result["pruned"] == 3
    assert result["best"]["recipe"].endswith("best.yaml") and result["report"].endswith("report.html")


def test_damage_anywhere_in_a_study_ends_in_an_answer_or_a_sentence(place, formula, tmp_path, monkeypatch):
    recipe, space, out = place
    search(recipe, space, trials=4, out=out)
    monkeypatch.setattr("shoestring.search.page.importances", lambda *_: [])
    refused = 0
    for number in range(40):
        drawn, it = random.Random(number), tmp_path / f"it-{number}"
        shutil.copytree(out, it)
        file = it / drawn.choice(["journal.log", "journal.log", "study.yaml", "space.yaml", "base.yaml"])
        damage = drawn.choice([damaged, damaged_lines] if file.name == "journal.log" else [damaged])
        file.write_bytes(damage(file.read_bytes(), drawn))
        try:
            search(resume=it, trials=5)
        except ShoestringError as error:
            refused += 1
            assert len(str(error)) < 2000
    assert 10 < refused < 40
