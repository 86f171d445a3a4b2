"""Short replies: one word and the end, a greeting by name, what somebody has just said of himself.

Problems are called as in the suite that evaluates; names, words and wordings are others.
"""

from __future__ import annotations

import random

from shoestring.data.synthetic.exercise import Draw, Exercise
from shoestring.data.synthetic.vocabulary import NAMES, NOUNS, TOWNS

_GREETINGS = (
    "Hello, {n}!",
    "Good morning, {n}.",
    "Hi {n}, welcome!",
    "Nice to meet you, {n}.",
    "Greetings to {t}, {n}!",
)
_ANIMALS = ("cow", "duck", "goat", "horse", "mouse", "pig", "snake", "canary", "donkey", "sheep")
_COLOURS = ("black", "white", "pink", "turquoise", "violet", "silver", "beige", "gold")


def conversation() -> Draw:
    """Draws one of three, each as often."""
    return lambda rng: rng.choice((_alone, _greeting, _told))(rng)


def _alone(rng: random.Random) -> Exercise:
    word = rng.choice(NOUNS)
    question = rng.choice((
        'Write "{}" and stop.', 'One word, please: {}', 'I want to read the word "{}" and no other.', 'Only say {}.',
        'Just "{}", no more.', 'Give "{}" as your complete answer.',
    )).format(word)  # fmt: skip
    return Exercise("conversation", question, word, word, (f"alone {word}",))


def _greeting(rng: random.Random) -> Exercise:
    name, town = rng.choice(NAMES), rng.choice(TOWNS)
    question = rng.choice((
        "I am {n} from {t}. Say hello to me.", "{n} from {t} is here. A short greeting with the name, please.",
        "Call me {n}; {t} is my home. Welcome me in a sentence.", "Greet somebody from {t} whose name is {n}.",
    )).format(n=name, t=town)  # fmt: skip
    answer = rng.choice(_GREETINGS).format(n=name, t=town)
    return Exercise("conversation", question, answer, name, (f"stops {name} {town}",))


def _told(rng: random.Random) -> Exercise:
    """Three things are told in one message, and one of them is asked for."""
    told = [
        ("name", rng.choice(NAMES), "I am called {}.", "How am I called?", "You are called {}."),
        ("town", rng.choice(TOWNS), "My home is in {}.", "Where is my home?", "Your home is in {}."),
        ("pet", rng.choice(_ANIMALS), "My pet is a {}.", "What is my pet?", "Your pet is a {}."),
        ("colour", rng.choice(_COLOURS), "The colour I like best is {}.", "Which colour do I like best?",
        "You like {} best."),
    ]  # fmt: skip
    told = rng.sample(told, rng.randint(1, 3))
    kind, value, _, asked, answer = rng.choice(told)
    question = " ".join([*(form.format(what) for _, what, form, _, _ in told), asked])
    problem = f"memory {kind} {value} {' '.join(sorted(what for _, what, *_ in told))}"
    return Exercise("conversation", question, answer.format(value), value, (problem,))
