"""Sums reckoned by places, and several exercises in one conversation: right, and nothing of the test set in them."""

import json
import re

import pytest

from shoestring.core.errors import ConfigError
from shoestring.data.synthetic.exercise import is_held_out, write
from shoestring.data.synthetic.kinds import make

N = 3000


def sums(**settings):
    return make("arithmetic", N, seed=3, **{"stories": 0, "places": True, **settings})


def test_every_part_of_a_sum_by_places_is_equal_and_its_step_parts_tens_from_ones():
    exercises = sums(operations=["add", "subtract", "multiply"], digits=3, negative=True)
    steps = 0
    for exercise in [*exercises.train, *exercises.test]:
        parts = exercise.answer.split(" = ")
        assert len({eval(part) for part in parts}) == 1 and parts[-1] == exercise.result
        a, sign, b = re.fullmatch(r"(\d+) ([-+*]) (\d+)", parts[0]).groups()
        if len(parts) == 3:
            tens, rest, ones = re.fullmatch(r"(-?\d+) ([-+]) (\d+)", parts[1]).groups()
            apart = int(a[-1]) + int(b[-1]) if sign == "+" else int(a[-1]) - int(b[-1])
            assert int(tens) % 10 == 0 and int(rest + ones) == apart and parts[1] != parts[0]
            steps += 1
        else:
            assert sign == "*" or max(int(a), int(b)) < 10 or parts[0] in ("0 + 0", f"{int(a) // 10 * 10} {sign} {b}")
    assert steps > N / 3


def test_places_change_answers_and_not_what_is_asked_in_a_test():
    plain, by_places = sums(places=False).test, sums().test
    assert [e.question for e in plain] == [e.question for e in by_places]
    assert [e.answer.split(" = ")[-1] for e in by_places] == [e.result for e in plain]


def test_no_held_out_problem_is_reckoned_on_the_way_to_another():
    exercises = sums()
    test = {problem for exercise in exercises.test for problem in exercise.problems}
    assert test and all(is_held_out(problem, 0.1) for problem in test)
    for exercise in exercises.train:
        parts = exercise.answer.split(" = ")[:-1]
        for part in parts:
            a, sign, b = part.split(" ")
            assert f"{min(int(a), int(b))} {sign} {max(int(a), int(b))}" not in test
    # As a control, answers in the test do go by way of held-out problems.
    assert any(is_held_out(shown, 0.1) for exercise in exercises.test for shown in exercise.shown)


def test_a_conversation_has_as_many_exercises_as_asked_and_a_test_has_one(tmp_path):
    exercises = make("arithmetic", 100, seed=1)
    folder = write(exercises, tmp_path / "sums", turns=7)
    train, test = ([json.loads(line) for line in open(folder / f"{name}.jsonl")] for name in ("train", "test"))
    assert [len(row["messages"]) for row in train] == [14] * 12 + [12]  # 90 = 12 * 7 + 6
    said = [message["content"] for row in train for message in row["messages"]]
    assert said == [text for exercise in exercises.train for text in (exercise.question, exercise.answer)]
    roles = {tuple(message["role"] for message in row["messages"][n : n + 2]) for row in train for n in range(0, 12, 2)}
    assert roles == {("user", "assistant")}
    assert [row["answer"] for row in train] == [e.result for e in [*exercises.train[6::7], exercises.train[-1]]]
    assert [row["messages"][0]["content"] for row in test] == [e.question for e in exercises.test]
    assert all(len(row["messages"]) == 2 for row in test)


def test_no_problem_of_a_conversation_is_held_out(tmp_path):
    folder = write(make("arithmetic", N, seed=4, stories=0.2), tmp_path / "sums", turns=5)
    problems = [p for line in open(folder / "train.jsonl") for p in json.loads(line)["problem"].split("; ")]
    assert len(problems) > N / 2 and not any(is_held_out(problem, 0.1) for problem in problems)
    held_out = [p for line in open(folder / "test.jsonl") for p in json.loads(line)["problem"].split("; ")]
    assert held_out and all(is_held_out(problem, 0.1) for problem in held_out)


def test_a_conversation_without_a_turn_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="0 turns"):
        write(make("arithmetic", 10), tmp_path / "sums", turns=0)
    assert not (tmp_path / "sums").exists()
