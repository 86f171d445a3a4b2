"""Exercises: every answer proven by other means, nothing of the test set learned, the same on every run."""

import contextlib
import datetime
import io
import json
import re
from decimal import Decimal

import pytest

from shoestring.core.errors import ConfigError
from shoestring.data.synthetic import patterns
from shoestring.data.synthetic.arithmetic import is_right
from shoestring.data.synthetic.exercise import is_held_out, write
from shoestring.data.synthetic.kinds import KINDS, make

N = 2000


@pytest.fixture(scope="module")
def sets():
    return {kind: make(kind, N, seed=5) for kind in KINDS}


def everything(sets, kind):
    found = [*sets[kind].train, *sets[kind].test]
    assert len(found) == N
    return found


# Answers


def test_every_plain_equation_is_true_and_answers_what_was_asked():
    exercises = make("arithmetic", N, operations=["add", "subtract", "multiply"], digits=3, stories=0, negative=True)
    words = {"plus": "+", "add": "+", "sum": "+", "minus": "-", "subtract": "-", "take": "-", "times": "*"}
    words |= {"multiply": "*", "product": "*"}
    for exercise in [*exercises.train, *exercises.test]:
        a, sign, b, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (-?\d+)", exercise.answer).groups()
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)
        asked = re.findall(r"\d+", exercise.question)
        reversed_order = re.match(r"(Subtract|Take)", exercise.question)
        assert (asked[::-1] if reversed_order else asked) == [a, b]
        named = {words[w] for w in re.findall(r"[a-z]+", exercise.question.lower()) if w in words}
        named |= set(re.findall(r" ([-+*]) ", exercise.question))
        assert named == {sign} and exercise.result == result


def test_every_storys_steps_follow_from_its_words(sets):
    exercises = make("arithmetic", N, operations=["add", "subtract", "multiply"], stories=1.0)
    steps = set()
    for exercise in [*exercises.train, *exercises.test]:
        have = None
        lines = exercise.answer.split("\n")
        told = re.split(r"(?<=\.) ", exercise.question)[:-1]
        for sentence, line in zip(told, [None, *lines], strict=False):
            amount = int(re.findall(r"\d+", sentence)[0])
            if have is None:
                have = amount
                continue
            left, right, result = re.search(r"(\d+[-+*]\d+)=<<(\d+[-+*]\d+)=(\d+)>>", line).groups()
            before = have
            have = have * amount if "times" in sentence else have + amount if " more" in sentence else have - amount
            assert left == right and left in (f"{before}{sign}{amount}" for sign in "+-*")
            assert eval(left) == int(result) == have >= 0 and f">>{result} " in line
        assert lines[-1] == f"#### {have}" and exercise.result == str(have) and len(lines) == len(told)
        steps.add(len(lines) - 1)
    assert steps == {1, 2, 3}


def sequences_of(exercise):
    """Items, what is told, what is to follow; nothing of the places of letters."""
    if exercise.problems[0].startswith("places"):
        return
    first, *listed = exercise.question.splitlines()
    alone = re.findall(r"(?:next: |sequence: |follows\? |one: )(.*)", first)
    for shown, answer in zip(listed or alone, exercise.answer.splitlines(), strict=True):
        told, _, last = answer.partition(". The next one is ")
        items = [item.strip("?. ") for item in shown.split(",")]
        yield [item for item in items if item], told, last.removesuffix(".")


def kind_of(items, told):
    if not items[0].isdigit():
        return "letters" if ":" in told else "repeats"
    return "factors" if "/" in told else "steps" if "-" in told else "sums"


def test_every_patterns_next_item_is_the_only_one_its_rule_gives(sets):
    seen = set()
    for exercise in everything(sets, "patterns"):
        found = list(sequences_of(exercise))
        if not found:
            seen.add("places")
            asked = re.findall(r"\b[A-Z]\b|\d+", exercise.question.partition(": ")[2])
            pairs = [pair.split() for pair in exercise.answer.split(", ")]
            assert [one for one, _ in pairs] == asked and pairs[-1][1] == exercise.result and len(pairs) >= 4
            letters = [pair if pair[0].isalpha() else pair[::-1] for pair in pairs]
            assert all(ord(letter) - ord("A") + 1 == int(place) for letter, place in letters)
            continue
        assert exercise.result == found[-1][-1] and len(found) in (1, 3, 4, 5)
        for items, told, following in found:
            kind = kind_of(items, told)
            seen.add(kind)
            sums = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", told)
            assert all(eval(f"{a} {sign} {b}") == int(result) for a, sign, b, result in sums)
            if kind == "repeats":
                unit = items[: items.index(items[0], 1)]
                assert items == [unit[n % len(unit)] for n in range(len(items))] and len(items) > len(unit)
                assert following == unit[len(items) % len(unit)] and told == f"{items[-1]}, {following}"
                continue
            numbers = [ord(item) - ord("A") + 1 if kind == "letters" else int(item) for item in items]
            pairs = list(zip(numbers, numbers[1:], strict=False))
            if kind == "factors":
                factor = numbers[1] // numbers[0]
                assert all(b == a * factor for a, b in pairs)
                assert [(int(b), int(a)) for b, sign, a, _ in sums if sign == "/"] == [(numbers[1], numbers[0])]
                assert f". The last is {numbers[-1]}: " in told
                expected = numbers[-1] * factor
            elif kind == "sums":
                assert all(a + b == c for a, b, c in zip(numbers, numbers[1:], numbers[2:], strict=False))
                expected = numbers[-1] + numbers[-2]
            else:
                steps = {b - a for a, b in pairs}
                assert len(steps) == 1 and all(number >= 0 for number in numbers)
                expected = numbers[-1] + steps.pop()
                (high, _, low, _), (last, *_) = sums
                assert (int(high), int(low)) == (max(numbers[:2]), min(numbers[:2])) and int(last) == numbers[-1]
            assert int(sums[-1][-1]) == expected
            if kind == "letters":
                numbered = re.findall(r"\b([A-Z]) (\d+)", told)
                places = [(item, str(place)) for item, place in zip(items, numbers, strict=True)]
                assert numbered == [*places[:2], places[-1]]
                assert told.endswith(f", {expected} {following}") and following == chr(ord("A") + expected - 1)
            else:
                assert following == str(expected)
    assert seen == {"steps", "factors", "letters", "sums", "repeats", "places"}


def test_a_product_in_parts_of_its_digits_is_that_product():
    for number, factor in ((76, 2), (509, 4), (120, 3), (700, 5), (9, 3), (1234, 10), (87654, 5)):
        told = patterns._in_parts(number, factor)
        if told is None:  # it would tell a sum that is held out
            continue
        sums = re.findall(r"(\d+) ([+*]) (\d+) = (\d+)", told)
        assert all(eval(f"{a} {sign} {b}") == int(result) for a, sign, b, result in sums)
        assert sums[-1][-1] == str(number * factor)
        parts = [int(a) for a, sign, *_ in sums if sign == "*"]
        assert sum(parts) == number and (factor == 10 or all(str(part).strip("0") in "123456789" for part in parts))


def test_every_comparison_is_true(sets):
    for exercise in everything(sets, "comparisons"):
        asked = re.findall(r"\d+(?:\.\d+)?", exercise.question)
        values = [Decimal(text) for text in asked]
        assert len(set(values)) == len(values)
        if "from" in exercise.question:
            descending = "largest to" in exercise.question
            assert exercise.answer == ", ".join(sorted(asked, key=float, reverse=descending))
        elif "larger" in exercise.question or "smaller" in exercise.question:
            best = max(values) if "larger" in exercise.question else min(values)
            found = re.fullmatch(r"(\S+) is (larger|smaller) than (\S+)\.", exercise.answer).groups()
            assert Decimal(found[0]) == best and {found[0], found[2]} == set(asked) and found[1] in exercise.question
        else:
            true = values[0] > values[1] if "greater" in exercise.question else values[0] < values[1]
            assert exercise.result == ("Yes" if true else "No")
            word = "greater" if values[0] > values[1] else "less"
            assert exercise.answer == f"{exercise.result}, {asked[0]} is {word} than {asked[1]}."


def test_every_form_can_be_read_back(sets):
    kinds = set()
    for exercise in everything(sets, "format"):
        asked, _, content = exercise.question.partition(": ")
        answer = exercise.answer
        if "JSON array" in asked:
            kinds.add("array")
            assert json.loads(answer) == content.split()
        elif "keys" in asked or "columns" in asked:
            values = list(json.loads(answer).values()) if "keys" in asked else answer.split(",")
            assert [str(value) for value in values] == [
                re.match(r"\w+", content).group(),
                re.search(r"\d+", content).group(),
                re.search(r"(\w+)\.$", content).group(1),
            ]
            kinds.add("record")
        elif "date" in asked:
            iso = re.search(r"\d{4}-\d\d-\d\d", exercise.question + answer).group()
            written = re.search(r"\d{1,2} [A-Z][a-z]+ \d{4}", exercise.question + answer).group()
            assert datetime.datetime.strptime(written, "%d %B %Y").date().isoformat() == iso and answer in (
                iso,
                written,
            )
            kinds.add("date")
        else:
            upper = "capital" in asked
            lines = answer.split(", ") if "comma" in asked else answer.split("\n")
            marks = {"bullet": r"- (\w+)", "numbered": r"\d+\. (\w+)"}
            pattern = next((mark for name, mark in marks.items() if name in asked), r"(\w+)")
            found = [re.fullmatch(pattern, line).group(1) for line in lines]
            assert found == [word.upper() if upper else word for word in content.split()]
            if "numbered" in asked:
                assert [int(line.split(".")[0]) for line in lines] == list(range(1, len(lines) + 1))
            kinds.add("list")
    assert kinds == {"array", "record", "date", "list"}


def test_every_program_prints_what_is_said_of_it(sets):
    written = 0
    for exercise in everything(sets, "code"):
        program = re.search(r"```python\n(.*)\n```", exercise.question + exercise.answer, re.S).group(1)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, {})
        if exercise.answer.startswith("```"):
            a, b = map(int, re.findall(r"\d+", exercise.question))
            assert printed.getvalue() == f"{a + b if 'sum' in exercise.question else a * b}\n"
            written += 1
        else:
            assert exercise.answer == f"It prints {printed.getvalue().rstrip(chr(10))}."
    assert 0 < written < N


# The split


def test_a_sum_and_its_exchange_fall_on_the_same_side():
    exercises = make("arithmetic", 20_000, seed=2, stories=0)

    def problems(part):
        found = set()
        for exercise in part:
            a, sign, b = re.match(r"(\d+) ([-+]) (\d+)", exercise.answer).groups()
            found.add((sign, frozenset((int(a), int(b)))))
        return found

    assert not problems(exercises.train) & problems(exercises.test)
    sums = {tuple(map(int, re.findall(r"\d+", e.answer)[:2])) for e in exercises.train if "+" in e.answer}
    assert sum((b, a) in sums for a, b in sums) > len(sums) / 3  # both orders are there to be told apart


def test_no_step_of_a_held_out_problem_is_learned_inside_a_story():
    exercises = make("arithmetic", 5000, seed=2, stories=0.5)
    steps = {True: set(), False: set()}
    for held_out, part in ((False, exercises.train), (True, exercises.test)):
        for exercise in part:
            for a, sign, b in re.findall(r"(?<!\d)(\d+) ?([-+]) ?(\d+) ?=", exercise.answer):
                steps[held_out].add((sign, frozenset((int(a), int(b)))))
    assert steps[True] and not steps[True] & steps[False]
    assert {exercise.kind for exercise in exercises.test} == {"arithmetic", "story"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_problem_stands_on_both_sides_whatever_the_seed(sets, kind):
    train = {p for exercise in sets[kind].train for p in exercise.problems}
    test = {p for exercise in sets[kind].test for p in exercise.problems}
    assert train and test and not train & test
    other = make(kind, 300, seed=6)
    assert other.train[0] != sets[kind].train[0]
    assert not {p for exercise in other.train for p in exercise.problems} & test
    assert all(is_held_out(p, 0.1) for p in test)


def test_runs_through_the_same_numbers_are_one_problem(sets):
    """What follows 7, 11, 15 is not given away by 3, 7, 11, 15 on the other side."""
    shown = {True: set(), False: set()}
    for held_out, part in ((False, sets["patterns"].train), (True, sets["patterns"].test)):
        for items, told, following in (found for exercise in part for found in sequences_of(exercise)):
            kind = kind_of(items, told)
            if kind not in ("repeats", "letters"):
                numbers = [int(item) for item in [*items, following]]
                numbers = sorted(numbers) if kind == "steps" else numbers
                shown[held_out] |= {(kind, *numbers[n : n + 3]) for n in range(len(numbers) - 2)}
    assert shown[True] and not shown[True] & shown[False]


# The set as a whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_many_different_questions_in_several_wordings(sets, kind):
    exercises = everything(sets, kind)
    assert len({(exercise.question, exercise.answer) for exercise in exercises}) == N and not sets[kind].repeated
    assert len({re.sub(r"[\d.,]+|\b[A-Z]\w*", "", exercise.question)[:12] for exercise in exercises}) >= 4
    assert len(sets[kind].test) == N // 10


def test_a_small_space_is_repeated_to_train_on_and_never_to_test_on():
    exercises = make("arithmetic", 20_000, digits=1, operations=["add"], stories=0)
    assert len(exercises.train) == 18_000 and exercises.repeated > 10_000
    assert len({e.question for e in exercises.test}) == len(exercises.test) < 2000


def test_one_and_two_digit_operands_are_equally_common(sets):
    plain = [e for e in sets["arithmetic"].train if e.kind == "arithmetic"]
    single = sum(len(number) == 1 for e in plain for number in re.findall(r"\d+", e.answer)[:2])
    assert 0.4 < single / (2 * len(plain)) < 0.6
    assert not any("-" in e.result for e in plain)


def test_the_written_files_are_byte_for_byte_the_same_on_every_run(tmp_path):
    folders = [write(make("arithmetic", 200, seed=1), tmp_path / name) for name in ("a", "b")]
    first, second = [(folder / "train.jsonl").read_bytes() for folder in folders]
    assert first == second and first.count(b"\n") == 180
    row = json.loads((folders[0] / "test.jsonl").read_text().splitlines()[0])
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] and set(row) > {"answer", "problem", "kind"}


def test_the_first_exercises_of_a_seed_are_those_they_have_always_been():
    first = [(e.question, e.answer) for e in make("arithmetic", 100, seed=1, stories=0).train[:3]]
    assert first == [
        ("94 + 92 = ?", "94 + 92 = 186"),
        ("Solve: 22 + 85", "22 + 85 = 107"),
        ("Compute 27 + 49.", "27 + 49 = 76"),
    ]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("algebra", {}, "unknown kind of exercise 'algebra'"),
        ("code", {"digits": 3}, "code has no setting digits"),
        ("arithmetic", {"operations": ["divide"]}, "unknown operation divide"),
        ("arithmetic", {"digits": 0}, "digits 0"),
        ("arithmetic", {"n": 0}, "cannot make 0 exercises"),
        ("arithmetic", {"n": 10**13}, "cannot make 10,000,000,000,000 exercises"),
        ("arithmetic", {"test": 1.0}, "share of 1.0"),
    ],
)
def test_wrong_settings_are_refused(kind, settings, said):
    with pytest.raises(ConfigError, match=said):
        make(kind, **{"n": 10, **settings})


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("47 + 38 = 85", True),
        ("The sum is 85.", True),
        ("It is 85, of course", True),
        ("85 is 47 + 38", False),  # the last number counts
        ("47 + 38 = 185", False),
        ("47 + 38 = -85", False),
        ("", False),
        ("eighty-five", False),
    ],
)
def test_the_last_whole_number_of_an_answer_is_its_result(text, right):
    assert is_right(text, "85") is right
    assert is_right("It is 1,085", "1085")
