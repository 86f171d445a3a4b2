"""Four controls for each category: a perfect oracle, an echo, constant answers, and what is written at random."""

import functools
import random
import re
import string
from pathlib import Path

import pytest

from shoestring.data.synthetic.arithmetic import SIGNS, problem
from shoestring.data.synthetic.exercise import is_held_out
from shoestring.data.synthetic.kinds import KINDS, make
from shoestring.evaluate.suite import sandbox
from shoestring.evaluate.suite.categories.every import CATEGORIES, GROUPS
from shoestring.evaluate.suite.categories.sequences import WORDS
from shoestring.evaluate.suite.question import HELD_OUT, ITEMS, Reply, questions

SIDES = ("development", "held-out")
OPERATIONS = {sign: operation for operation, sign in SIGNS.items()}
CONSTANTS = ("Yes", "No", "0", "1", "7", "42", "I do not know.", "the", "Paris", "red", "[]", "A", "Monday",
             "Thank you!", "The answer is in the text.", "```python\npass\n```", "- ",
             "Hello! How can I help you today?")  # fmt: skip
every = pytest.mark.parametrize("category", CATEGORIES, ids=[category.name for category in CATEGORIES])


@functools.cache
def asked_of(category, side):
    return questions(category, side)


def share(category, said, side="held-out"):
    asked = asked_of(category, side)
    return sum(question.right(Reply(said(question))) for question in asked) / len(asked)


@pytest.fixture(autouse=True)
def without_a_sandbox(monkeypatch):
    """Programs of these tests are ours."""

    def passes(program, tests):
        try:
            exec(f"{program}\n{tests}", {})
        except Exception:
            return False
        return True

    monkeypatch.setattr(sandbox, "passes", passes)
    monkeypatch.setattr("shoestring.evaluate.suite.categories.code.passes", passes)


def test_there_are_forty_categories_and_more_with_names_of_their_own():
    names = [category.name for category in CATEGORIES]
    assert len(names) == len(set(names)) >= 40 and len(GROUPS) >= 15 and ITEMS >= 25
    assert not set(names) & set(GROUPS)


@every
@pytest.mark.parametrize("side", SIDES)
def test_an_oracle_has_all_right(category, side):
    assert share(category, lambda question: question.answer, side) == 1


@every
def test_an_echo_has_next_to_nothing_right(category):
    assert share(category, lambda question: question.asked) <= 0.05
    assert share(category, lambda question: f"{question.asked} {question.asked}") <= 0.05


@every
def test_a_constant_answer_is_no_better_than_chance(category):
    asked = asked_of(category, "held-out")
    replies = {*CONSTANTS, *(question.answer for question in asked[:5])}
    best = max(share(category, lambda question, said=said: said) for said in replies)
    assert best <= max(category.chance, 1 / ITEMS) + 1e-9


@every
def test_words_at_random_are_at_chance_at_most(category):
    rng = random.Random(category.name)
    words = "the a red blue seven 12 yes no Paris house of in is and water sum 3 list run day".split()
    found = share(category, lambda question: " ".join(rng.choices(words, k=rng.randint(1, 12))))
    assert found <= category.chance + 0.2


@every
@pytest.mark.parametrize(
    "all_of", [[str(n) for n in range(150)], string.ascii_lowercase, string.ascii_uppercase, WORDS[:12]],
    ids=["numbers", "letters", "capitals", "words"],
)  # fmt: skip
def test_naming_everything_is_no_better_than_chance(category, all_of):
    """A dozen words, as a reply has them; all letters, and more numbers than a reply has room for."""
    listed = " ".join(all_of)
    for said in (listed, listed.replace(" ", ", ")):
        assert share(category, lambda question, said=said: said) <= category.chance + 0.2


@every
def test_sides_are_apart_and_the_same_again(category):
    development, held_out = (asked_of(category, side) for side in SIDES)
    assert not {question.problem for question in development} & {question.problem for question in held_out}
    assert [q.messages for q in held_out] == [q.messages for q in questions(category, "held-out")]
    assert [q.messages for q in held_out] != [q.messages for q in questions(category, "held-out", seed=2)]
    assert all(0 < len(question.messages[-1]["content"]) < 8000 for question in held_out)


def test_no_problem_that_is_held_out_is_trained_on_whatever_the_seed():
    held_out = {question.problem for category in CATEGORIES for question in questions(category, "held-out")}
    for kind in KINDS:
        for seed in (1, 2):
            for exercise in make(kind, 400, seed, test=0.0).train:
                assert not held_out & set(exercise.problems)
                assert not any(is_held_out(problem, HELD_OUT) for problem in exercise.problems)


def test_no_text_of_a_held_out_question_is_trained_on_whatever_the_seed():
    """Neither its words, nor a sum of it inside something longer, such as a list or an example that is shown."""
    held_out = [question for category in CATEGORIES for question in asked_of(category, "held-out")]
    texts = {question.asked for question in held_out}
    pairs = {(question.asked, question.answer) for question in held_out}
    sums = {question.problem for question in held_out}
    looked_at = 0
    for kind in KINDS:
        for seed in (1, 2, 3):
            for exercise in make(kind, 300, seed, test=0.0).train:
                said = [message["content"] for message in exercise.row()["messages"]]
                assert not texts & set(said) and tuple(said) not in pairs
                for a, sign, b in re.findall(r"(?<![\d.=*+-])(\d+) ?([-+*]) ?(\d+)(?= ?=)", "\n".join(said)):
                    assert problem(int(a), OPERATIONS[sign], int(b)) not in sums
                    looked_at += 1
    assert len(texts) > 1500 and looked_at > 1000


def test_the_docs_list_every_category_as_it_is():
    root = Path(__file__).parents[3]
    lines = (root / "docs" / "evaluation.md").read_text(encoding="utf-8").splitlines()
    for category in CATEGORIES:
        chance = f"{category.chance:.0%}" if category.chance else ""
        assert f"| {category.group} | {category.name} | {category.about} | {chance} |" in lines
    counted = f"{len(CATEGORIES)} categories in {len(GROUPS)} groups"
    assert any(counted in line for line in lines)
    assert f"{len(CATEGORIES)} categories" in (root / "README.md").read_text(encoding="utf-8")
