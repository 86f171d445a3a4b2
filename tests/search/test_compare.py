"""Runs side by side: what differs, what came of it, and paired tests held against brute force."""

import itertools
import json
import math
import random

import numpy
import pytest
import scipy.stats
import torch

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, RunError
from shoestring.evaluate.paired import TextLoss, sign_flips, text_difference, text_losses
from shoestring.generate.language_model import LanguageModel
from shoestring.pretraining.job import pretrain
from shoestring.search.compare import compare, curves, differing, read_run
from shoestring.train.metrics import read_metrics
from tests.search import studies


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one recipe at different rates, the second of which learns."""
    folder = tmp_path_factory.mktemp("compared")
    recipe = studies.recipe(folder)
    for name, rate in (("slow", 1e-6), ("fast", 1e-2)):
        pretrain(recipe, out=str(folder / name), train__steps=12, optimizer__learning_rate=rate)
    return folder


def test_two_runs_are_told_apart_by_what_differs_and_by_their_figures(runs, capsys):
    result = compare([runs / "slow", runs / "fast" / "latest"])
    assert result.differing == {"optimizer.learning_rate": [1e-6, 1e-2]}
    slow, fast = result.runs
    lines = [line for line in read_metrics(runs / "fast" / "metrics.jsonl") if "held_out_loss" in line]
    assert fast.held_out == lines[-1]["held_out_loss"] < slow.held_out
    assert fast.curve == [(line["tokens"], line["held_out_loss"]) for line in lines] and fast.tokens == 12 * 128
    text = str(result)
    assert "optimizer.learning_rate  1e-06  0.01" in text and f"{fast.bits_per_byte:.4f}" in text
    assert "a slow, b fast" in text
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in shown["runs"]] == ["slow", "fast"] and shown["texts"] == []


def test_models_are_measured_on_the_same_texts_pair_by_pair(runs):
    result = compare([runs / "slow", runs / "fast"], data=runs / "text", examples=10)
    (one,) = result.texts
    assert one.texts == 10 and one.second < one.first and one.real and one.low < one.second - one.first < one.high < 0
    assert "beyond chance" in str(result)
    same = compare([runs / "fast", runs / "fast"], data=runs / "text", examples=5)
    assert same.texts[0].chance == 1.0 and not same.texts[0].real and same.differing == {}


def test_the_loss_of_a_text_is_that_of_one_pass_over_it(runs):
    language = LanguageModel.load(runs / "fast")
    text = (runs / "text" / "part00.py").read_text()[:60]
    (runs / "one.txt").write_text(text)
    (loss,) = text_losses(language, str(runs / "one.txt"))
    tokenizer = language.tokenizer
    opening = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    ids = torch.tensor([[opening, *tokenizer.encode(text)]])
    with torch.no_grad():
        logits = language.decoder.head(language.decoder(ids[:, :-1])[0]).double()
    expected = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum")
    assert loss.bytes == len(text.encode()) and loss.nats == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ConfigError, match="not texts"):
        (runs / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "completion": "2"}\n' * 3)
        text_losses(language, str(runs / "rows.jsonl"))


def test_sign_flips_are_those_of_brute_force_and_of_scipy():
    drawn = random.Random(1)
    few = [drawn.gauss(0.3, 1) for _ in range(9)]
    every = [abs(sum(s * d for s, d in zip(signs, few, strict=True))) for signs in itertools.product((-1, 1), repeat=9)]
    exact = sum(total >= abs(sum(few)) - 1e-12 for total in every) / len(every)
    assert sign_flips(few) == pytest.approx(exact) and sign_flips([0.0, 0.0]) == 1.0 and sign_flips([1.0]) == 1.0
    many = numpy.array([drawn.gauss(0.2, 1) for _ in range(60)])
    theirs = scipy.stats.permutation_test(
        (many,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert sign_flips(list(many)) == pytest.approx(theirs.pvalue, abs=0.02)


def test_of_models_that_are_alike_few_are_said_to_differ():
    drawn, said = random.Random(4), 0
    for _ in range(120):
        first = [TextLoss(drawn.gauss(100, 20), 50) for _ in range(12)]
        second = [TextLoss(one.nats + drawn.gauss(0, 3), 50) for one in first]
        said += text_difference(first, second).real
    assert said <= 14  # 5% of 120 are 6, and what chance adds


def test_the_interval_holds_the_difference_that_there_is():
    drawn, held = random.Random(5), 0
    for number in range(60):
        first = [TextLoss(drawn.gauss(100, 20), 40) for _ in range(40)]
        second = [TextLoss(one.nats + drawn.gauss(2 * math.log(2), 3), 40) for one in first]
        found = text_difference(first, second, number)
        held += found.low <= 2 / 40 <= found.high
    assert held >= 50


def test_settings_that_stand_in_one_recipe_alone_are_told():
    first, second = {"a": {"b": 1, "c": 2}, "out": "x"}, {"a": {"b": 1}, "d": None, "out": "y"}
    assert differing([first, second]) == {"a.c": [2, "not set"], "d": ["not set", None]}


def test_a_curve_falls_from_left_to_right(runs):
    run = read_run(runs / "fast")
    lines = curves([run]).splitlines()[1:-2]
    places = [(row, line.index("a", 9)) for row, line in enumerate(lines) if "a" in line[9:]]
    assert places == sorted(places) and [column for _, column in places] == sorted(column for _, column in places)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{}/slow"], "compare takes two to 8 runs, found 1"),
        ([], "compare takes two to 8 runs, found 0"),
        (["{}/slow", "{}/nowhere"], "no run here: there is no recipe.yaml"),
        (["{}/slow", "{}/fast", "--examples", "3"], "--examples goes with --data"),
        (["{}/slow", "{}/fast", "--items", "3"], "--items goes with --suite"),
        (["{}/slow", "{}/fast", "--data", "{}/none.txt"], "none.txt"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(runs, capsys, arguments, sentence):
    assert main(["compare", *(argument.format(runs) for argument in arguments)]) == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises((ConfigError, RunError)):
        compare([runs / "slow"])
