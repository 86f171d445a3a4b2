"""Lists of sums, and several exercises in one conversation: right, and nothing of the test set in them."""

import json
import re

import pytest

from shoestring.core.errors import ConfigError
from shoestring.data.synthetic.exercise import is_held_out, write
from shoestring.data.synthetic.kinds import make

N = 2000


def sums(**settings):
    return make("arithmetic", N, seed=3, **{"stories": 0, "lists": 0.5, **settings})


def test_every_sum_of_a_list_is_asked_for_and_answered_truly_in_its_order():
    exercises = sums(operations=["add", "subtract", "multiply"], digits=3, negative=True)
    lengths = set()
    for exercise in exercises.train:
        if exercise.kind == "list":
            lines = exercise.answer.split("\n")
            assert re.findall(r"\d+ [-+*] \d+", exercise.question) == [line.split(" = ")[0] for line in lines]
            assert all(eval(line.replace("=", "==")) for line in lines)
            assert lines[-1].split(" = ")[1] == exercise.result
            lengths.add(len(lines))
    assert lengths == set(range(2, 7))


def test_no_sum_of_a_list_is_held_out_and_tests_ask_one_by_one():
    exercises = sums(operations=["add", "subtract"])
    test = {problem for exercise in exercises.test for problem in exercise.problems}
    assert test and all(is_held_out(problem, 0.1) for problem in test)
    for exercise in exercises.train:
        for a, sign, b in re.findall(r"(\d+) ([-+]) (\d+) =", exercise.answer):
            assert f"{min(int(a), int(b))} {sign} {max(int(a), int(b))}" not in test
    assert sum(exercise.kind == "list" for exercise in exercises.test) < len(exercises.test) / 10


def test_an_operation_named_twice_is_drawn_twice_as_often():
    drawn = [e.problems[0].split(" ")[1] for e in sums(lists=0, operations=["add", "subtract", "subtract"]).train]
    assert 0.6 < drawn.count("-") / len(drawn) < 0.73


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


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="0 turns"):
        write(make("arithmetic", 10), tmp_path / "sums", turns=0)
    assert not (tmp_path / "sums").exists()
    with pytest.raises(ConfigError, match="lists 1.5"):
        sums(lists=1.5)
