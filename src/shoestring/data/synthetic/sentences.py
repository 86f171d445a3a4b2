"""Short English sentences about a topic, from a small grammar: who does what, where and when.

A caller that wants one of a certain length, or without a certain word, draws until it has one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from shoestring.data.synthetic.vocabulary import PEOPLE, PLACES, TIMES

_DETERMINERS = ("a", "the", "my", "this", "our", "that", "one", "another")
# {t}: the topic, {n}: the noun with a determiner, {m}: another one, {w}: who ({v} as an object), {p}: where, {o}: when.
_ABOUT = (
    "{w} could talk about {t} for hours", "There was much to say about {t} {o}",
    "{t} can surprise anyone who looks closely",
    "{w} learned a lot about {t} {o}", "{o}, {w} wrote a letter about {t}", "Nobody {p} knew more about {t}",
    "{w} often dreamed of {t}", "We read two books about {t} {o}", "I never get tired of {t}",
    "{w} laughed and spoke of {t}",
    "{t} can make any day better", "There is something quiet about {t}", "{w} asked me about {t} {p}",
    "Few things bring people together like {t}", "{o}, {w} saw pictures of {t}", "Some of us cannot live without {t}",
    "{w} wanted to hear more about {t}", "It is easy to love {t} {o}", "Most visitors come here for {t}",
)  # fmt: skip
_WITH = (
    "{w} painted {n} and thought about {t}", "For {v}, {t} and {n} always went together",
    "{w} found {n} {p} and talked about {t}",
    "{o}, {w} kept {n} {p} because of {t}", "{n} {p} tells us something about {t}",
    "{w} took {n} along to learn about {t}",
    "When it comes to {t}, {n} can help", "{t} made {v} think of {n}", "{w} bought {n} after reading about {t}",
    "There is {n} {p} in every story about {t}", "{w} would give {n} for a day with {t}",
    "With {n} and {t}, {w} felt at home",
    "{w} saw {n} {p} while dreaming of {t}", "Without {n}, {t} would not be half as good", "{n} reminds me of {t}",
    "{n} loves {t}", "{n} belongs to {t}", "No {x} without {t}", "{n} goes with {t}", "{n} speaks of {t}",
    "{n} fits {t}",
    "{w} put {n} {p} and sang about {t} {o}", "{o}, {n} stood {p}, and {w} spoke of {t}",
    "I drew {n} next to words about {t}",
)  # fmt: skip
_BOTH = (
    "{w} left {n} and {m} {p} to enjoy {t}", "{n} lay beside {m} while {w} spoke of {t}",
    "In a tale about {t}, {n} meets {m}",
    "{w} traded {n} for {m} {o} and dreamed of {t}", "{t} needs both {n} and {m}",
    "Behind {n} {w} found {m} and a note about {t}",
    "{o}, {w} carried {n} and {m} home and talked about {t}", "Neither {n} nor {m} had anything to do with {t}",
)  # fmt: skip
_BARE = (  # begin with the noun itself, {N}
    "{N} in hand, {w} went out to think about {t}", "{N} or no {x}, {w} loved {t}", "{N} and {t} go well together",
    "{N} makers have always known about {t}", "{N} stories often speak of {t} {o}",
    "{N} was the word that {w} wrote beside {t}",
    "{N} by {x}, {w} learned what {t} can do", "{N} pictures and songs about {t} hung {p}",
)  # fmt: skip
_OBJECT = {"I": "me", "we": "us", "they": "them"}
_ENDS = (".", ".", ".", ".", ".", "!")
_TRIES = 4000


def about(rng: random.Random, topic: str) -> str:
    return _written(rng, rng.choice(_ABOUT), topic)


def with_noun(rng: random.Random, topic: str, noun: str) -> str:
    return _written(rng, rng.choice(_WITH), topic, noun)


def with_both(rng: random.Random, topic: str, noun: str, other: str) -> str:
    first, second = (noun, other) if rng.random() < 0.5 else (other, noun)
    return _written(rng, rng.choice(_BOTH), topic, first, second)


def beginning_with(rng: random.Random, topic: str, noun: str) -> str:
    return _written(rng, rng.choice(_BARE), topic, noun)


def drawn(make: Callable[[], str], wanted: Callable[[str], bool]) -> str:
    """The first that is as wanted."""
    for _ in range(_TRIES):
        text = make()
        if wanted(text):
            return text
    raise AssertionError("the grammar has no such sentence")


def named(rng: random.Random, noun: str) -> str:
    """With a determiner."""
    determiner = rng.choice(_DETERMINERS)
    return f"{'an' if determiner == 'a' and noun[0] in 'aeiou' else determiner} {noun}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _written(rng: random.Random, form: str, topic: str, noun: str = "", other: str = "") -> str:
    who = rng.choice(PEOPLE)
    parts = {
        "t": topic, "w": who, "v": _OBJECT.get(who, who), "p": rng.choice(PLACES), "o": rng.choice(TIMES), "x": noun,
        "N": capital(noun),
        "n": named(rng, noun) if noun else "", "m": named(rng, other) if other else "",
    }  # fmt: skip
    return capital(form.format(**parts)) + rng.choice(_ENDS)
