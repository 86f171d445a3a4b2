"""Letters and words: what repeats, copying, turning round, spelling, counting, sorting."""

from __future__ import annotations

import random
import string

from shoestring.data.synthetic import sentences
from shoestring.data.synthetic.exercise import Draw, Exercise
from shoestring.data.synthetic.vocabulary import NOUNS, TOPICS

_FOLLOWS = (
    "Which comes after these: {shown}?",
    "{shown}, and then?",
    "What follows {shown}?",
    "Go on with one more: {shown}",
)
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_SHORT = tuple(noun for noun in NOUNS if len(noun) <= 5)


def letters() -> Draw:
    """Draws one of nine tasks."""
    return lambda rng: rng.choice(_TASKS)(rng)


def _exercise(question: str, answer: str, result: str, *problems: str) -> Exercise:
    return Exercise("letters", question, answer, result, tuple(dict.fromkeys(problems)))


def _repeats(rng: random.Random) -> Exercise:
    unit = rng.sample(NOUNS, rng.randint(2, 4))
    shown = [unit[n % len(unit)] for n in range(rng.randint(len(unit) + 2, 2 * len(unit) + 3))]
    following = unit[len(shown) % len(unit)]
    answer = f"{shown[-1]}, {following}. The next one is {following}."
    question = rng.choice(_FOLLOWS).format(shown=", ".join(shown))
    return _exercise(question, answer, following, f"repeats {' '.join(sorted(unit))}")


def _copy(rng: random.Random) -> Exercise:
    text = sentences.with_noun(rng, rng.choice(TOPICS), rng.choice(NOUNS))
    question = rng.choice(
        ('Say this again, word for word: "{}"', 'Write down exactly what stands here: "{}"', 'Echo: "{}"')
    ).format(text)
    return _exercise(question, text, text, f"copy {text}")


def _turned_words(rng: random.Random) -> Exercise:
    items = rng.sample(NOUNS, rng.randint(3, 6))
    result = " ".join(reversed(items))
    question = rng.choice(
        ("Turn the order of these words round: {}", "From the last word to the first: {}", "Reverse the words: {}")
    )
    return _exercise(question.format(" ".join(items)), result, result, f"turned {' '.join(sorted(items))}")


def _turned_letters(rng: random.Random) -> Exercise:
    word = rng.choice(_SHORT) if rng.random() < 0.5 else "".join(rng.sample(string.ascii_lowercase, rng.randint(3, 5)))
    question = rng.choice(
        ('Turn the letters of "{}" round.', '"{}" from back to front, please.', 'Reverse the word "{}".')
    )
    answer = f"{', '.join(word)} turned round is {', '.join(word[::-1])}: {word[::-1]}"
    return _exercise(question.format(word), answer, word[::-1], f"text {word}")


def _spelled(rng: random.Random) -> Exercise:
    word = rng.choice(NOUNS) if rng.random() < 0.5 else "".join(rng.sample(_SHORT, 2))
    question = rng.choice(
        (
            'The letters of "{}" with hyphens between them, please.',
            'Write "{}" letter by letter: a hyphen between two letters.',
        )
    )
    return _exercise(question.format(word), "-".join(word), "-".join(word), f"text {word}")


def _counted_letters(rng: random.Random) -> Exercise:
    word = rng.choice(NOUNS) if rng.random() < 0.4 else "".join(rng.sample(_SHORT, 2))
    letter = rng.choice(sorted(set(word)))
    question = rng.choice(('How often is there a "{1}" in "{0}"?', 'Count the letter "{1}" in "{0}".')).format(
        word, letter
    )
    return _exercise(question, f"{'-'.join(word)}: {word.count(letter)}", str(word.count(letter)), f"text {word}")


def _counted_words(rng: random.Random) -> Exercise:
    items = rng.sample(NOUNS, rng.randint(3, 9))
    question = rng.choice(("Count these words: {}", "How long is this list of words? {}")).format(", ".join(items))
    answer = ", ".join(f"{n} {item}" for n, item in enumerate(items, 1))
    return _exercise(question, f"{answer}: {len(items)}", str(len(items)), f"count {' '.join(sorted(items))}")


def _place(rng: random.Random) -> Exercise:
    items = rng.sample(NOUNS, rng.randint(4, 7))
    place = rng.randrange(len(items))
    question = rng.choice(("What is the {0} word here? {1}", "{1}: name the {0} of them.")).format(
        _PLACES[place], ", ".join(items)
    )
    return _exercise(question, items[place], items[place], f"which {' '.join(sorted(items))}")


def _sorted_words(rng: random.Random) -> Exercise:
    items = rng.sample(NOUNS, rng.randint(3, 5))
    result = ", ".join(sorted(items))
    question = rng.choice(("Sort by the alphabet: {}", "From A to Z, with commas: {}")).format(", ".join(items))
    return _exercise(question, result, result, f"alphabet {' '.join(sorted(items))}")


_TASKS = (
    _repeats, _copy, _turned_words, _turned_letters, _spelled, _counted_letters, _counted_words, _place, _sorted_words,
)  # fmt: skip
