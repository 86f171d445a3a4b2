"""Reading: what a supplied text says, and what stands somewhere in a long one."""

from __future__ import annotations

import random

from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.question import Category, Draw, Question, ask

_NAMES = ("Anton", "Berta", "Cyril", "Dora", "Emil", "Frida", "Georg", "Hilda", "Jakob", "Klara", "Luis", "Minna")
_JOBS = ("baker", "pilot", "nurse", "painter", "farmer", "teacher", "plumber", "singer", "tailor", "lawyer")
_TOWNS = ("Arles", "Bruges", "Cork", "Dresden", "Evora", "Florence", "Ghent", "Haarlem", "Imola", "Jena")
_THINGS = ("bicycle", "piano", "telescope", "boat", "camera", "violin", "tent", "sewing machine", "globe", "clock")
_PLACES = ("attic", "garage", "cellar", "kitchen", "garden", "hall", "shed", "study")
_COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "grey")
_FILLERS = (
    "The weather was neither good nor bad that week.", "Many people walked along the river in the evening.",
    "The bakery on the corner opened a little later than usual.", "A train passed now and then, and nobody looked up.",
    "Children played in the yard behind the school.", "The market was busy, as it was every Saturday.",
    "Somebody had left a newspaper on the bench.", "The old clock on the tower was slow by some minutes.",
    "A dog slept in the shade of the wall.", "The leaves had begun to turn, and the air was cooler.",
    "On the hill stood a house that nobody lived in.", "The post came late, with a few letters and a parcel.",
)  # fmt: skip


class _Scene:
    """Two people, where each lives, what each does and has."""

    def __init__(self, rng: random.Random) -> None:
        self.names, self.jobs = rng.sample(_NAMES, 2), rng.sample(_JOBS, 2)
        self.towns, self.things, self.places = rng.sample(_TOWNS, 2), rng.sample(_THINGS, 2), rng.sample(_PLACES, 2)
        self.year = rng.randint(1950, 2020)
        (a, b), (j, k), (t, u), (x, y), (p, q) = self.names, self.jobs, self.towns, self.things, self.places
        lines = [
            f"{a} is a {j} and lives in {t}.", f"{b}, a {k}, moved to {u} in {self.year}.", f"{a} keeps a {x} in the {p}.",
            f"In the {q} of {b} stands a {y}.", rng.choice(_FILLERS),
        ]  # fmt: skip
        rng.shuffle(lines)
        self.text = " ".join(lines)
        self.key = f"{sorted(self.names)} {sorted(self.jobs)} {sorted(self.towns)}"


def _read(rng: random.Random, scene: _Scene, question: str, answer: str, wrong: str) -> Question:
    text = f"Read this and answer the question.\n\n{scene.text}\n\n{question}"
    return ask(f"scene {scene.key} {answer}", text, answer, checks.chooses(answer, [wrong]), options=(answer, wrong))


def _who(rng: random.Random) -> Question:
    scene, n = _Scene(rng), rng.randrange(2)
    question = rng.choice(
        (f"Who is a {scene.jobs[n]}?", f"Who has a {scene.things[n]}?", f"Who lives in {scene.towns[n]}?")
    )
    return _read(rng, scene, question, scene.names[n], scene.names[1 - n])


def _where(rng: random.Random) -> Question:
    scene, n = _Scene(rng), rng.randrange(2)
    if rng.random() < 0.5:
        return _read(rng, scene, f"In which town does {scene.names[n]} live?", scene.towns[n], scene.towns[1 - n])
    return _read(rng, scene, f"In which room or place is the {scene.things[n]}?", scene.places[n], scene.places[1 - n])


def _what(rng: random.Random) -> Question:
    scene, n = _Scene(rng), rng.randrange(2)
    if rng.random() < 0.5:
        return _read(rng, scene, f"What is the work of {scene.names[n]}?", scene.jobs[n], scene.jobs[1 - n])
    return _read(rng, scene, f"Which thing does {scene.names[n]} have?", scene.things[n], scene.things[1 - n])


def _whether(rng: random.Random) -> Question:
    scene, n, true = _Scene(rng), rng.randrange(2), rng.random() < 0.5
    other = n if true else 1 - n
    claim = rng.choice((f"{scene.names[n]} is a {scene.jobs[other]}", f"{scene.names[n]} lives in {scene.towns[other]}",
                        f"{scene.names[n]} has a {scene.things[other]}"))  # fmt: skip
    answer = "Yes" if true else "No"
    text = f"Read this and answer the question with yes or no.\n\n{scene.text}\n\nIs it true that {claim}?"
    return ask(f"scene {scene.key} {claim}", text, answer, checks.yes_or_no(true), options=("Yes", "No"))


def _needle(sentences: int) -> Draw:
    """A number or colour somewhere in so many sentences."""

    def draw(rng: random.Random) -> Question:
        name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
        lines = [rng.choice(_FILLERS) for _ in range(sentences)]
        at = rng.randrange(sentences)
        if rng.random() < 0.5:
            result = str(rng.randint(100, 999))
            lines[at] = f"The secret number of {name} is {result}."
            question, check = f"What is the secret number of {name}?", checks.number(result)
        else:
            result = rng.choice(_COLOURS)
            lines[at] = f"The {thing} of {name} is {result}."
            question = f"Which colour has the {thing} of {name}?"
            check = checks.chooses(result, [colour for colour in _COLOURS if colour != result])
        text = f"{' '.join(lines)}\n\n{question}"
        return ask(f"needle {name} {thing} {result} {at}", text, result, check)

    return draw


CATEGORIES = (
    Category("who", "reading", "of two people in a short text", _who, 0.5),
    Category("where", "reading", "of two places", _where, 0.5),
    Category("what", "reading", "of two things", _what, 0.5),
    Category("true or not", "reading", "a claim about the text", _whether, 0.5),
    Category("found in 300 tokens", "long context", "one sentence among 25", _needle(25)),
    Category("found in 1,200 tokens", "long context", "one sentence among 100", _needle(100)),
)
