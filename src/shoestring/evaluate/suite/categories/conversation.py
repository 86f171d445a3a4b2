"""Conversations: answering in the right form and stopping, remembering what was said, yes and no under other words."""

from __future__ import annotations

import random

from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.categories.sequences import WORDS
from shoestring.evaluate.suite.question import Category, Question, Reply, ask

_NAMES = ("Alma", "Boris", "Chloe", "Dmitri", "Esther", "Fatima", "Gustav", "Helga", "Ivan", "Judith", "Kofi", "Liv")
_PETS = ("cat", "dog", "parrot", "rabbit", "hamster", "turtle", "goldfish", "pony")
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "brown", "grey")
_TOWNS = ("Bergen", "Cadiz", "Delft", "Essen", "Graz", "Lille", "Namur", "Pisa")
_ANSWERS = ("That is good to know.", "Thank you for telling me.", "I see.", "Noted.")
_ROLES = ("user:", "assistant:", "human:", "<|im_start|>", "###")


def _alone(rng: random.Random) -> Question:
    """One word, and then nothing."""
    word = rng.choice(WORDS)
    orders = ('Say the word "{}" and nothing else.', 'Answer with one word only, which is "{}".',
              'Your whole reply must be: {}', 'Reply with "{}", without anything before or after it.')  # fmt: skip
    text = rng.choice(orders).format(word)
    return ask(f"alone {word}", text, word, lambda reply: reply.stopped and checks.plain(reply.text) == word)


def _stops(rng: random.Random) -> Question:
    """A short answer that ends by itself, in which nobody else begins to speak."""
    name, town = rng.choice(_NAMES), rng.choice(_TOWNS)
    text = f"My name is {name} and I live in {town}. Greet me by my name in one short sentence."

    def check(reply: Reply) -> bool:
        said = reply.text.casefold()
        own = not any(role in said for role in _ROLES)
        return reply.stopped and own and name.casefold() in said and len(checks.words(reply.text)) <= 25

    return ask(f"stops {name} {town}", text, f"Hello, {name}!", check, max_tokens=64)


def _facts(rng: random.Random) -> list[tuple[str, str, str, str]]:
    """(what the user says, what is asked later, the answer, its kind)."""
    pet, colour, town, name = rng.choice(_PETS), rng.choice(_COLOURS), rng.choice(_TOWNS), rng.choice(_NAMES)
    found = [
        (f"My name is {name}.", "What is my name?", name, "name"),
        (f"I live in {town}.", "Where do I live?", town, "town"),
        (f"My favourite colour is {colour}.", "What is my favourite colour?", colour, "colour"),
        (f"I have a {pet}.", "Which animal do I have?", pet, "pet"),
    ]  # fmt: skip
    rng.shuffle(found)
    return found


def _memory(turns: int):
    def draw(rng: random.Random) -> Question:
        facts = _facts(rng)[:turns]
        said, asked, answer, kind = facts[0]
        messages = []
        for told, _, _, _ in facts:
            messages += [{"role": "user", "content": told}, {"role": "assistant", "content": rng.choice(_ANSWERS)}]
        messages.append({"role": "user", "content": asked})
        problem = f"memory {kind} {answer} {' '.join(sorted(fact[2] for fact in facts))}"
        return Question(problem, tuple(messages), answer, checks.says(answer))

    return draw


def _yes_no(rng: random.Random) -> Question:
    """Both a question and the same in other words are asked; the second is answered the same way, or turned round."""
    a, b = rng.sample(range(2, 99), 2)
    greater, turned = rng.random() < 0.5, rng.random() < 0.5
    first = f"Is {a} {'greater' if greater else 'less'} than {b}?"
    truth = (a > b) == greater
    other = f"Is it true that {b} is {'less' if greater == (not turned) else 'greater'} than {a}?"
    result = truth != turned
    messages = (
        {"role": "user", "content": f"{first} Answer yes or no."},
        {"role": "assistant", "content": "Yes" if truth else "No"},
        {"role": "user", "content": f"{other} Answer yes or no."},
    )  # fmt: skip
    answer = "Yes" if result else "No"
    return Question(f"compare {min(a, b)} {max(a, b)}", messages, answer, checks.yes_or_no(result), ("Yes", "No"))


CATEGORIES = (
    Category("one word alone", "conversation", "nothing but the word, and it ends", _alone, 0.14, share=0.5),
    Category("ends by itself", "conversation", "a greeting by name, no other speaker", _stops, 0.1, share=0.5),
    Category("remembers one thing", "conversation", "told in the turn before", _memory(1), 0.1, share=0.5),
    Category("remembers among three", "conversation", "told three turns before", _memory(3), 0.1),
    Category("yes or no in other words", "conversation", "consistent with what was said", _yes_no, 0.5),
)
