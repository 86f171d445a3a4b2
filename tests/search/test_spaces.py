"""What a space says, what is drawn from it, and what it is refused for."""

import random
import re

import pytest

from shoestring.core.errors import ConfigError
from shoestring.search.folder import dump_space
from shoestring.search.parameters import Choices, Range, same
from shoestring.search.recipes import Drawn
from shoestring.search.space import read_space, space_names

BASE = {
    "optimizer": {"kind": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95]},
    "schedule": {"kind": "wsd", "decay": 0.2},
    "train": {"batch_tokens": 1024, "steps": 10},
    "model": {"layers": 4},
}


def drawn(space, seed=0):
    return space.settings(Drawn(random.Random(seed)), BASE)


def test_every_kind_of_range_stays_inside_and_reaches_everywhere():
    space = read_space(
        {
            "optimizer.learning_rate": {"log": [1e-4, 1e-2]},
            "schedule.decay": {"uniform": [0.1, 0.9], "step": 0.2},
            "model.layers": {"int": [2, 8], "step": 2},
            "train.batch_tokens": {"log_int": [16, 1024]},
            "optimizer.betas": [[0.9, 0.95], [0.9, 0.99]],
        },
        BASE,
    )
    seen = [drawn(space, seed) for seed in range(400)]
    rates = [one["optimizer.learning_rate"] for one in seen]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / len(rates) < 0.6  # even in the logarithm
    assert {round(one["schedule.decay"], 6) for one in seen} == {0.1, 0.3, 0.5, 0.7, 0.9}
    assert {one["model.layers"] for one in seen} == {2, 4, 6, 8}
    assert all(type(one["train.batch_tokens"]) is int and 16 <= one["train.batch_tokens"] <= 1024 for one in seen)
    assert {tuple(one["optimizer.betas"]) for one in seen} == {(0.9, 0.95), (0.9, 0.99)}


def test_a_condition_is_asked_of_what_was_chosen_else_of_the_recipe():
    space = read_space(
        {
            "schedule.decay": {"uniform": [0.1, 0.9], "when": {"schedule.kind": "wsd"}},
            "schedule.kind": ["wsd", "cosine"],
            "optimizer.betas": {"choices": [[0.9, 0.95], [0.8, 0.9]], "when": {"optimizer.kind": ["adamw", "lion"]}},
        },
        BASE,
    )
    for seed in range(50):
        chosen = drawn(space, seed)
        assert ("schedule.decay" in chosen) == (chosen["schedule.kind"] == "wsd")
        assert "optimizer.betas" in chosen


def test_a_condition_looks_into_a_section_that_was_chosen_as_a_whole():
    space = read_space(
        {
            "optimizer": [{"kind": "adamw"}, {"kind": "muon"}],
            "optimizer.learning_rate": [
                {"log": [1e-4, 1e-3], "when": {"optimizer.kind": "adamw"}},
                {"log": [1e-2, 1e-1], "when": {"optimizer.kind": "muon"}},
            ],
        },
        BASE,
    )
    for seed in range(50):
        chosen = drawn(space, seed)
        assert (chosen["optimizer.learning_rate"] >= 1e-2) == (chosen["optimizer"]["kind"] == "muon")


def test_ranges_around_the_recipes_own_value():
    source = {"optimizer.learning_rate": {"times": [0.1, 10]}, "train.batch_tokens": {"factors": [0.5, 1]}}
    space = read_space(source, BASE)
    rate, batch = space.parameters
    assert (rate.low, rate.high, rate.log) == (pytest.approx(1e-4), pytest.approx(1e-2), True)
    assert batch.values == (512, 1024)


def test_a_grid_has_every_point_once_and_no_setting_that_does_not_hold():
    space = read_space(
        {
            "optimizer.learning_rate": {"log": [1e-4, 1e-2], "points": 3},
            "schedule.kind": ["wsd", "cosine"],
            "schedule.decay": {"uniform": [0.2, 0.4], "points": 2, "when": {"schedule.kind": "wsd"}},
        },
        BASE,
    )
    points = list(space.grid(BASE))
    assert len(points) == 3 * (2 + 1) and len({str(point) for point in points}) == 9
    assert sorted({point["optimizer.learning_rate"] for point in points}) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert all(("schedule.decay" in point) == (point["schedule.kind"] == "wsd") for point in points)


def test_a_space_is_read_back_from_what_is_written_of_it():
    source = {
        "optimizer.learning_rate": {"times": [0.1, 10]},
        "model.layers": {"int": [2, 8], "step": 2},
        "schedule.kind": ["wsd", "cosine"],
        "schedule.decay": {"uniform": [0.1, 0.9], "when": {"schedule.kind": "wsd"}, "points": 7},
    }
    space = read_space(source, BASE)
    again = read_space(dump_space(space), BASE)
    assert dump_space(again) == dump_space(space)
    assert [drawn(again, seed) for seed in range(9)] == [drawn(space, seed) for seed in range(9)]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({}, "the space is empty"),
        ({"model.layers": 3}, "model.layers: expected a range or choices, found 3"),
        ({"model.layers": {"int": [3, 3]}}, "the range from 3 to 3 is empty"),
        ({"model.layers": {"int": [8, 2]}}, "the range from 8 to 2 is empty"),
        ({"model.layers": {"int": [1.5, 4]}}, "expected whole numbers"),
        ({"model.layers": {"int": [1, 2, 3]}}, r"expected two numbers, \[lowest, highest\]"),
        ({"model.layers": {"int": [1, True]}}, "expected two numbers"),
        ({"model.layers": {"log": [0, 1]}}, "a logarithm needs numbers above 0"),
        ({"model.layers": {"uniform": [0, float("inf")]}}, "expected two numbers"),
        ({"model.layers": {"uniform": [0, 1], "step": 2}}, "step: expected a number that fits into the range"),
        ({"model.layers": {"log": [1, 2], "step": 1}}, "step does not go with log"),
        ({"model.layers": {"int": [1, 2], "points": 0}}, "points: expected a whole number from 1"),
        ({"model.layers": {"int": [1, 2], "log": [1, 2]}}, "exactly one of .*, found log and int"),
        ({"model.layers": {"intt": [1, 2]}}, "unknown word intt\n.*did you mean int"),
        ({"model.layers": {"when": {"a": 1}}}, "found none of them"),
        ({"model.layers": []}, "expected at least two values"),
        ({"model.layers": [3]}, "expected at least two values"),
        ({"model.layers": [3, 3]}, "3 stands there twice"),
        ({"model.layers": {"choices": [2, 3], "step": 1}}, "step is for ranges"),
        ({"model.name": {"times": [1, 2]}}, "the recipe's own value, which is none"),
        ({"optimizer.kind": {"factors": [1, 2]}}, "the recipe's own value, which is adamw"),
        ({"model.layers": {"int": [1, 2], "when": 3}}, "when: expected settings and their values"),
        ({"model.layers": {"int": [1, 2], "when": {"model.layers": 1}}}, "cannot depend on itself"),
        (
            {"model.layers": {"int": [1, 2], "when": {"schedule.kind": "cosine"}}},
            r"can never be chosen: its condition \(schedule.kind is cosine\) is against what the recipe has",
        ),
        (
            {"schedule.kind": ["wsd", "linear"], "model.layers": {"int": [1, 2], "when": {"schedule.kind": "wd"}}},
            "against what the space gives it",
        ),
        (
            {
                "model.layers": {"int": [1, 2], "when": {"train.steps": 1}},
                "train.steps": {"int": [1, 2], "when": {"model.layers": 1}},
            },
            "the conditions of model.layers and train.steps go in a circle",
        ),
        ({"model.layers": [{"int": [1, 2], "when": {"train.steps": 10}}, {"int": [3, 4]}]}, "one of them has no"),
    ],
)
def test_a_space_with_a_mistake_is_refused_in_a_sentence(source, sentence):
    with pytest.raises(ConfigError) as error:
        read_space(source, BASE)
    assert re.search(sentence, str(error.value), re.DOTALL), error.value


def test_two_ranges_of_one_setting_that_both_hold_are_refused_where_they_meet():
    one = {"int": [1, 2], "when": {"schedule.kind": "wsd"}}
    space = read_space({"model.layers": [one, {"int": [3, 4], "when": {"optimizer.kind": "adamw"}}]}, BASE)
    with pytest.raises(ConfigError, match="model.layers: two of its ranges hold at once"):
        drawn(space)


def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path):
    (tmp_path / "s.yaml").write_text("model.layers: {int: [1, 4]}\ntrain.batch_tokens: {int: [9, 3]}\n")
    with pytest.raises(ConfigError, match=r"s.yaml:2: train.batch_tokens: int: the range from 9 to 3 is empty"):
        read_space(tmp_path / "s.yaml", BASE)
    with pytest.raises(ConfigError, match="there is no space 'pretrian'\n.*did you mean pretrain"):
        read_space("pretrian", BASE)
    assert space_names() == ["distill", "finetune", "optimizers", "pretrain"]


def test_values_have_places_on_their_axes():
    log = Range(name="a", key="a", low=1e-4, high=1e-2, log=True)
    assert log.position(1e-3) == pytest.approx(0.5) and log.at(0.5) == pytest.approx(1e-3)
    assert log.contains(1e-4) and not log.contains(1e-5) and not log.contains(True)
    stepped = Range(name="a", key="a", low=0, high=10, whole=True, step=4)
    assert [stepped.at(place / 10) for place in range(11)] == [0, 0, 0, 4, 4, 4, 8, 8, 8, 8, 8]
    assert stepped.contains(8) and not stepped.contains(10) and not stepped.contains(3)
    choices = Choices(name="a", key="a", values=(True, 1, [0.9, 0.95], None))
    assert [choices.position(value) for value in (True, 1, (0.9, 0.95), None)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert not same(True, 1) and same(1, 1.0) and not choices.contains(0)
