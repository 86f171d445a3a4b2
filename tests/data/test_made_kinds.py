"""Exercises of form: every answer keeps to what is asked, by the checks of the suite; words are not the suite's."""

import json
import re

import pytest

from shoestring.data.synthetic import vocabulary
from shoestring.data.synthetic.functions import _TASKS
from shoestring.data.synthetic.kinds import make
from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.categories import code, conversation, instructions, sequences, structure, text
from shoestring.evaluate.suite.question import Reply

NEW = ("annotated", "instructions", "functions", "structure", "letters", "conversation")
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


@pytest.fixture(scope="module")
def sets():
    return {kind: make(kind, 1500, seed=5) for kind in NEW}


def everything(sets, kind):
    return [*sets[kind].train, *sets[kind].test]


@pytest.mark.parametrize("kind", NEW)
def test_the_same_arguments_give_the_same_exercises(kind):
    assert make(kind, 60, seed=3) == make(kind, 60, seed=3) != make(kind, 60, seed=4)


def test_no_word_topic_name_or_task_is_one_of_the_suites():
    ours = {*vocabulary.NOUNS, *vocabulary.TOPICS, *vocabulary.NAMES, *vocabulary.TOWNS}
    theirs = {*sequences.WORDS, *text._SHORT, *instructions._TOPICS, *structure._ITEMS, *structure._PEOPLE,
    *structure._TOWNS,
              *conversation._NAMES, *conversation._TOWNS}  # fmt: skip
    assert len(ours) > 250 and not ours & theirs
    assert not {(task[0], task[2]) for task in _TASKS} & {(task[0], task[2]) for task in code._TASKS}


def test_every_annotated_sum_is_right_and_one_that_was_asked_for(sets):
    several = 0
    for exercise in everything(sets, "annotated"):
        lines = exercise.answer.split("\n")
        asked = {re.sub(r"\s", "", found) for found in re.findall(r"\d+ ?[-+*] ?\d+", exercise.question)}
        for line in lines:
            sum_, inside, value, result = re.fullmatch(r"(.*)=<<(.*)=(-?\d+)>>(-?\d+)", line).groups()
            a, sign, b = re.fullmatch(r"(\d+)([-+*])(\d+)", sum_).groups()
            right = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert sum_ == inside in asked and value == result == str(right) and right >= 0
        assert exercise.result == result
        several += len(lines) > 1
    assert 500 < several < 1200


def test_every_sum_of_many_is_right_and_in_the_order_asked():
    differences = counted = 0
    exercises = make("sums", 600, seed=5)
    for exercise in [*exercises.train, *exercises.test]:
        asked = re.findall(r"\d+ [-+*] \d+", exercise.question)
        lines = [re.fullmatch(r"((\d+) ([-+*]) (\d+)) = (\d+)", line).groups() for line in exercise.answer.split("\n")]
        assert [line[0] for line in lines] == asked and exercise.result == lines[-1][4]
        for _, a, sign, b, result in lines:
            assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            differences += sign == "-"
        counted += len(lines)
    assert 0.55 < differences / counted < 0.68 and counted > 4 * 600 * 0.9


def kept(exercise):
    """Whether an answer keeps to its instruction, read from the question's words."""
    asked, reply = exercise.question, Reply(exercise.answer)
    kind, word = exercise.problems[0].removeprefix("instruction "), exercise.problems[0].rsplit(" ", 1)[1]
    numbers = [int(found) for found in re.findall(r"\b\d+\b", asked)]
    numbers += [
        COUNTS[found] for found in re.findall(r"\b\w+\b", asked.casefold()) if found in COUNTS and found != "one"
    ]
    wanted = [checks.with_words(word)]
    quoted = re.findall(r'"([^"]+)"', asked)
    first = kind.split()[0]
    if first == "most":
        wanted.append(checks.word_count(2, numbers[0]))
    elif first == "least":
        wanted.append(checks.word_count(numbers[0], 400))
    elif first == "sentences":
        wanted.append(checks.sentence_count(numbers[0] if numbers else 1))
    elif first in ("upper", "lower"):
        wanted.append(checks.upper() if first == "upper" else checks.lower())
    elif first == "both":
        wanted.append(checks.with_words(*quoted[:2]))
    elif first == "without":
        wanted.append(checks.without_words(kind.split()[1]))
        assert kind.split()[1] in quoted
    elif first == "no":
        wanted += [checks.lacks(","), checks.word_count(numbers[0], 400)]
    elif first in ("begins", "opens"):
        wanted.append(checks.begins(quoted[0]))
    elif first == "ends":
        wanted.append(checks.ends(next(closing for closing in quoted if closing in kind)))
    elif first == "quoted":
        wanted += [checks.begins('"'), checks.ends('"')]
    elif first == "items":
        mark = re.search(r'"([-*+>#]) ?"', asked)[1]
        wanted.append(checks.item_lines(rf"{re.escape(mark)} .*\w.*", int(kind.split()[1])))
        assert int(kind.split()[1]) in numbers
    else:
        opening = kind.split()[1]
        closing = {"<<": ">>", "[": "]", "(": ")", "{{": "}}", "P.S.": ""}[opening]
        parts = exercise.answer.partition(opening)
        wanted.append(lambda reply: bool(parts[1]) and closing in parts[2] and bool(checks.words(parts[2])))
    return first, checks.all_of(*wanted)(reply)


def test_every_instruction_is_kept(sets):
    kinds = set()
    for exercise in everything(sets, "instructions"):
        kind, right = kept(exercise)
        kinds.add(kind)
        assert right, (exercise.question, exercise.answer)
    assert len(kinds) == 14


def test_answers_to_instructions_are_about_the_topic_in_clean_english(sets):
    topics = sorted(vocabulary.TOPICS, key=len, reverse=True)
    for exercise in everything(sets, "instructions"):
        topic = next(topic for topic in topics if f" {topic} " in exercise.problems[0])
        assert topic in exercise.answer.casefold()
        assert not re.search(
            r"  | [,.!]|\b(\w+) \1\b|\b[aA] [aeiou]|\ban [^aeiou]|[{}]",
            exercise.answer.replace("{{", "").replace("}}", ""),
        )
    assert len({exercise.answer for exercise in everything(sets, "instructions")}) > 1400


TRIED = {
    "triple": ("4", 12), "halve": ("5", 2.5), "cube": ("-2", -8), "negate": ("3", -3), "distance": ("2, 9", 7),
    "difference": ("2, 9", -7), "product": ("3, 4", 12), "mean_of_two": ("3, 4", 3.5), "smallest": ("[4, 2, 9]", 2),
    "total": ("[4, 2, 9]", 15), "spread": ("[4, 2, 9]", 7), "odds": ("[1, 2, 3]", [1, 3]), "positives": ("[-1, 0, 2]",
    [2]),
    "squares": ("[1, -3]", [1, 9]), "descending": ("[1, 3, 2]", [3, 2, 1]), "last": ("[1, 3, 2]", 2),
    "without_first": ("[1, 3, 2]", [3, 2]), "backwards": ("[1, 3, 2]", [2, 3, 1]), "last_word": ("'a bc d'", "d"),
    "lower": ("'AbC'", "abc"), "title": ("'ab cd'", "Ab Cd"), "trim": ("'  a b '", "a b"),
    "count_letter": ("'banana', 'a'", 3),
    "starts_with": ("'banana', 'ba'", True), "greet": ("'Zoe'", "Hello, Zoe!"), "join_words": ("['a', 'b']", "a b"),
    "shortest": ("['abc', 'd']", "d"), "lengths": ("['abc', 'd']", [3, 1]), "shout": ("['abc', 'd']", ["ABC", "D"]),
    "minutes": ("3", 180), "is_negative": ("-1", True), "is_between": ("3, 1, 2", False), "power_sum": ("3", 14),
    "count_down": ("3", [3, 2, 1]), "digits": ("405", [4, 0, 5]), "count_value": ("[1, 2, 1], 1", 2),
    "divide_by": ("15", 5),
    "last_entries": ("[1, 2, 3, 4]", [2, 3, 4]), "first_entries": ("[1, 2, 3, 4]", [1, 2, 3]), "every": ("[0, 1, 2, 3]",
    [0, 3]),
    "pad": ("'a'", "a  "), "dashes": ("'a'", "---a---"), "at_most": ("5", 3), "at_least": ("2", 3), "raised": ("[1]",
    [4]),
    "has_length": ("'abc'", True), "equals": ("4", False), "skip": ("'abcd'", "d"),
}  # fmt: skip


def test_every_task_does_what_it_says():
    assert TRIED.keys() == {task[0] for task in _TASKS}
    for name, arguments, _, body in _TASKS:
        space = {}
        exec(f"def {name}({arguments}):\n    {body}".replace("{k}", "3"), space)
        given, result = TRIED[name]
        assert eval(f"{name}({given})", space) == result, name


def test_every_function_has_the_name_and_the_arguments_that_are_asked_for(sets):
    tasks = 0
    for exercise in everything(sets, "functions"):
        if exercise.problems[0].startswith("function "):
            name, listed = exercise.problems[0].removeprefix("function ").split(" ", 1)
            arguments = re.findall(r"\w+", listed)
            assert [found for found in re.findall(r"\w+", exercise.question) if found in arguments][
                : len(arguments)
            ] == arguments
        else:
            call = re.search(r"`(\w+)\(([\w, ]+)\)`", exercise.question)
            name, arguments = call[1], call[2].split(", ")
            tasks += 1
        assert name in exercise.question and checks.defines(name, arguments)(Reply(exercise.answer))
        program = checks.fenced(exercise.answer)
        assert all(re.search(rf"\b{one}\b", program.partition(":")[2]) for one in arguments), program
    assert tasks > 250


def test_every_form_holds_what_was_told(sets):
    seen = set()
    for exercise in everything(sets, "structure"):
        asked, answer, (kind, *values) = exercise.question, exercise.answer, exercise.problems[0].split()
        reply = Reply(answer)
        if kind == "items":
            items = sorted(values, key=lambda item: re.search(rf"\b{item}\b", asked).start())
            form = "array" if "JSON" in asked else "numbers" if answer[0] == "1" else "bullets"
            seen.add(form)
            if form == "array":
                assert checks.as_json(items)(reply)
                continue
            mark = answer[1] if form == "numbers" else answer[0]
            lines = [f"{n}{mark} {item}" if form == "numbers" else f"{mark} {item}" for n, item in enumerate(items, 1)]
            assert checks.as_lines(lines)(reply) and (f"1{mark}" if form == "numbers" else f'"{mark} "') in asked
        elif kind == "record":
            name, age, town = values
            key = next((key for key in ("place", "home") if re.search(rf"\b{key}\b", asked)), "city")
            as_object = checks.as_json({"name": name, "age": int(age), key: town})
            assert as_object(reply) if "JSON" in asked else answer == f"{name},{age},{town}"
            assert {name, age, town} <= set(re.findall(r"\w+", asked))
            seen.add("object" if "JSON" in asked else "csv")
        elif kind == "stock":
            found = json.loads(answer)
            (outer, town), (inner, stock) = found.items()
            assert f'"{outer}"' in asked and f'"{inner}"' in asked
            assert town in asked and all(f"{item} {number}" in asked for item, number in stock.items())
            seen.add("nested")
        elif kind == "table":
            rows = re.findall(r"([A-Z]\w+) (?:has )?(\d+)", asked)
            header = next(
                pair for pair in (("Name", "Age"), ("Person", "Points"), ("Who", "Years")) if pair[0] in asked
            )
            assert checks.as_table(header, rows)(reply) and len(rows) >= 2
            seen.add("table")
        else:
            inside = re.search(r"\w+ (?:and|or|with) \w+", answer)[0]
            form = answer.replace(inside, "T")
            told = {"**T**": "in bold", "*T*": "in italics", "`T`": "code", "> T": "quotation", "~~T~~": "crossed"}
            expected = told.get(form) or f"level {form.count('#')}"
            assert expected in asked and inside in asked
            seen.add("markup")
    assert seen == {"array", "numbers", "bullets", "object", "csv", "nested", "table", "markup"}


def test_every_task_on_letters_and_words_is_done(sets):
    seen = set()
    for exercise in everything(sets, "letters"):
        asked, answer, result, problem = exercise.question, exercise.answer, exercise.result, exercise.problems[0]
        kind = problem.split()[0]
        seen.add(kind)
        listed = [item for item in re.findall(r"[a-z]+", asked) if item in vocabulary.NOUNS]
        if kind == "repeats":
            words = problem.split()[1:]
            unit = listed[: len(words)]
            assert sorted(unit) == words and listed == [unit[n % len(unit)] for n in range(len(listed))]
            assert result == unit[len(listed) % len(unit)] and len(listed) > len(unit)
            assert answer == f"{listed[-1]}, {result}. The next one is {result}."
        elif kind == "copy":
            assert f'"{answer}"' in asked
        elif kind == "turned":
            assert answer == result == " ".join(reversed(listed[-len(problem.split()) + 1 :]))
        elif kind == "count":
            assert answer.endswith(f": {result}") and int(result) == len(problem.split()) - 1
        elif kind == "which":
            places = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
            place = next(n for n, place in enumerate(places) if f"the {place} " in asked)
            assert [item for item in listed if item in problem.split()[1:]][place] == answer
        elif kind == "alphabet":
            assert answer.split(", ") == sorted(problem.split()[1:])
        else:
            word = problem.split()[1]
            if "hyphen" in asked:
                assert answer == "-".join(word)
            elif "often" in asked or "Count" in asked:
                letter = re.search(r'"(\w)"', asked)[1]
                assert answer.endswith(f": {word.count(letter)}")
            else:
                assert result == word[::-1] and answer.endswith(f": {result}")
    assert seen == {"repeats", "copy", "turned", "count", "which", "alphabet", "text"}


def test_short_replies_are_the_word_the_greeting_or_what_was_told(sets):
    for exercise in everything(sets, "conversation"):
        kind, *values = exercise.problems[0].split()
        if kind == "alone":
            assert exercise.answer == exercise.result == values[0] and values[0] in exercise.question
        elif kind == "stops":
            assert values[0] in exercise.answer and len(checks.words(exercise.answer)) <= 8
        else:
            told = {"name": "called", "town": "home", "pet": "pet", "colour": "colour"}[values[0]]
            assert values[1] in exercise.answer and told in exercise.question.rsplit(". ", 1)[1]
            assert re.search(rf"{told}[^.]*\b{values[1]}\.", exercise.question)
