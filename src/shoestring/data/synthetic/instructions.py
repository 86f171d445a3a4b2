"""Instructions that a program can check, each kept by a sentence about the topic: length, case, words, marks, form.

The kinds are those of IFEval (arXiv 2311.07911), as in the suite that evaluates; wordings, topics and words are others.
The problem is the kind of the instruction with its topic and its word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from shoestring.data.synthetic import sentences
from shoestring.data.synthetic.exercise import Draw, Exercise
from shoestring.data.synthetic.vocabulary import NOUNS, TOPICS

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_CLOSINGS = (
    "See you soon.", "Thanks for reading.", "Have a nice day!", "Until tomorrow!", "Nothing more to say.",
    "So it goes.",
    "Yours, as ever.", "Take care!", "And that was it.", "Good night.", "Is that clear?", "Over and out.",
)  # fmt: skip
_OPENINGS = (
    "Dear reader,",
    "Listen:",
    "Well,",
    "Once upon a time,",
    "Honestly,",
    "Good morning!",
    "To begin with,",
    "Yes,",
)
_UNWANTED = ("the", "and", "is", "a", "of", "about", "in", "my", "we", "was", "I", "with")
# How the word is asked for, after what else is wanted.
_USING = (
    'Use the word "{word}".', 'The word "{word}" must be in it.', 'Include "{word}".',
    'Mention the word "{word}" as well.',
    'It has to contain the word "{word}".', 'Make sure that "{word}" occurs.', 'Put the word "{word}" in.',
)  # fmt: skip


def instructions() -> Draw:
    """Draws an instruction of one of thirteen kinds, each as often."""
    return lambda rng: rng.choice(_KINDS)(rng)


def count(text: str) -> int:
    """Words, as the suite counts them: letters, with hyphens and apostrophes inside."""
    return len(_WORD.findall(text))


class _Asked:
    """A topic and a word, and the sentences that have both."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.topic, self.word = rng, rng.choice(TOPICS), rng.choice(NOUNS)

    def sentence(self, wanted: Callable[[str], bool] = lambda text: True) -> str:
        return sentences.drawn(lambda: sentences.with_noun(self.rng, self.topic, self.word), wanted)

    def about(self, wanted: Callable[[str], bool] = lambda text: True) -> str:
        return sentences.drawn(lambda: sentences.about(self.rng, self.topic), wanted)

    def several(self, number: int) -> list[str]:
        """One of them has the word."""
        found: list[str] = [self.sentence()]
        while len(found) < number:
            found.append(self.about(lambda text: text not in found))
        self.rng.shuffle(found)
        return found

    def exercise(
        self, kind: str, phrasings: tuple[str, ...], answer: str, use: bool = True, **values: object
    ) -> Exercise:
        """use: the word is asked for in a sentence of its own, before or after."""
        asked = self.rng.choice(phrasings).format(topic=self.topic, word=self.word, **values)
        if use:
            asked = f"{asked} {self.rng.choice(_USING).format(word=self.word)}"
        return Exercise("instructions", asked, answer, answer, (f"instruction {kind} {self.topic} {self.word}",))


def _most(rng: random.Random) -> Exercise:
    asked, most = _Asked(rng), rng.randint(6, 14)
    answer = asked.sentence(lambda text: count(text) <= most)
    phrasings = (
        "In no more than {most} words, say something about {topic}.", "One sentence on {topic}, {most} words or fewer.",
        "Give me a sentence about {topic}. It may have {most} words at most.",
        "Up to {most} words about {topic}, please.",
    )  # fmt: skip
    return asked.exercise("most", phrasings, answer, most=most)


def _least(rng: random.Random) -> Exercise:
    asked, least = _Asked(rng), rng.randint(8, 20)
    parts = [asked.sentence()]
    while count(" ".join(parts)) < least + 1:
        parts.append(asked.about(lambda text: text not in parts))
    phrasings = (
        "Say something about {topic} in {least} words or more.",
        "A text about {topic} of no fewer than {least} words, please.",
        "Tell me about {topic}, using {least} words at the least.", "Write {least} or more words on {topic}.",
    )  # fmt: skip
    return asked.exercise("least", phrasings, " ".join(parts), least=least)


def _sentences(rng: random.Random) -> Exercise:
    asked, number = _Asked(rng), rng.randint(1, 5)
    said = rng.choice((_COUNTS[number], str(number)))
    phrasings = (
        "Describe {topic} in {said} sentence{s}, no more and no fewer.",
        "Tell me about {topic} in exactly {said} sentence{s}.",
        "{said} sentence{s} on {topic}, please.", "I would like {said} sentence{s} about {topic}.",
    )  # fmt: skip
    answer = " ".join(asked.several(number))
    return asked.exercise("sentences", phrasings, answer, said=said, s="s" * (number > 1))


def _upper(rng: random.Random) -> Exercise:
    asked = _Asked(rng)
    phrasings = (
        "Shout a sentence about {topic}: every letter a capital.", "Say something about {topic} in ALL CAPS.",
        "One sentence on {topic}, all of it in upper case.", "A line about {topic}, capitals only, please.",
    )  # fmt: skip
    return asked.exercise("upper", phrasings, asked.sentence().upper())


def _lower(rng: random.Random) -> Exercise:
    asked = _Asked(rng)
    phrasings = (
        "Say something about {topic} in lower case, the first letter too.",
        "a sentence on {topic} with no capital letter.",
        "One sentence about {topic} in small letters, no capitals.", "A line about {topic}, all lowercase, please.",
    )  # fmt: skip
    return asked.exercise("lower", phrasings, asked.sentence().lower())


def _keywords(rng: random.Random) -> Exercise:
    asked = _Asked(rng)
    other = rng.choice([noun for noun in NOUNS if noun != asked.word])
    phrasings = (
        'Use both "{word}" and "{other}" in a sentence on {topic}.',
        'A sentence about {topic} with "{word}" and "{other}" in it.',
        'Say something about {topic}. Include the words "{word}" and "{other}".',
        'Make a sentence on {topic}; the words "{word}", "{other}" must both occur.',
    )  # fmt: skip
    answer = sentences.with_both(rng, asked.topic, asked.word, other)
    return asked.exercise(f"both {other}", phrasings, answer, False, other=other)


def _without_word(rng: random.Random) -> Exercise:
    asked, unwanted = _Asked(rng), rng.choice(_UNWANTED)
    if unwanted == "the" and asked.topic.startswith("the "):
        unwanted = "and"
    answer = asked.sentence(lambda text: unwanted.casefold() not in _WORD.findall(text.casefold()))
    phrasings = (
        'Say something about {topic}, but never use "{unwanted}".',
        'A sentence on {topic} in which "{unwanted}" does not occur.',
        'Do not use the word "{unwanted}" in a sentence about {topic}.',
        'One sentence about {topic}; the word "{unwanted}" is forbidden.',
    )  # fmt: skip
    return asked.exercise(f"without {unwanted}", phrasings, answer, unwanted=unwanted)


def _without_comma(rng: random.Random) -> Exercise:
    asked, least = _Asked(rng), rng.randint(6, 10)
    answer = asked.sentence(lambda text: "," not in text and count(text) >= least)
    phrasings = (
        "Say something about {topic} without commas, {least} words or longer.",
        "A sentence on {topic}: no comma, and {least} words at the least.",
        "Leave out all commas in a sentence about {topic} that has {least} or more words.",
    )  # fmt: skip
    return asked.exercise("no comma", phrasings, answer, least=least)


def _begins(rng: random.Random) -> Exercise:
    asked = _Asked(rng)
    if rng.random() < 0.3:
        opening = rng.choice(_OPENINGS)
        openings = (
            'Start with "{opening}" and say something about {topic}.',
            'Say a sentence on {topic}; begin it with "{opening}"',
        )
        return asked.exercise(f"opens {opening}", openings, f"{opening} {asked.sentence()}", opening=opening)
    phrasings = (
        'Start a sentence about {topic} with "{first}".',
        'The first word is "{first}": go on with a sentence on {topic}.',
        'Say something about {topic}. Your first word must be "{first}".',
        'A sentence on {topic}, "{first}" being its first word.',
    )  # fmt: skip
    answer = sentences.beginning_with(rng, asked.topic, asked.word)
    return asked.exercise("begins", phrasings, answer, False, first=sentences.capital(asked.word))


def _ends(rng: random.Random) -> Exercise:
    asked, closing = _Asked(rng), rng.choice(_CLOSINGS)
    phrasings = (
        'Say something about {topic} and finish with "{closing}"',
        'A sentence on {topic}. The last words must be "{closing}"',
        'Close with "{closing}" after a sentence about {topic}.',
        'Write on {topic}; your answer has to end with "{closing}"',
    )  # fmt: skip
    return asked.exercise(f"ends {closing}", phrasings, f"{asked.sentence()} {closing}", closing=closing)


def _quoted(rng: random.Random) -> Exercise:
    asked = _Asked(rng)
    phrasings = (
        "Put quotation marks around a sentence about {topic}.", "A sentence on {topic}, wrapped in double quotes.",
        'Say something about {topic}; your whole reply stands between " and ".',
        "Quote somebody who speaks of {topic}, with double quotation marks.",
    )  # fmt: skip
    return asked.exercise("quoted", phrasings, f'"{asked.sentence()}"')


def _lines(rng: random.Random) -> Exercise:
    asked, number, mark = _Asked(rng), rng.randint(2, 6), rng.choice(("*", "*", "-", "+", ">", "#"))
    phrasings = (
        'Say {said} things about {topic}, one on each line, every line starting with "{mark} ".',
        'List {said} points on {topic}. Put "{mark} " before each of them.',
        'I want {said} lines on {topic}, all marked with "{mark} ".',
        '{said} bullet points about {topic}, no more, with "{mark}" as the bullet.',
    )  # fmt: skip
    answer = "\n".join(f"{mark} {line}" for line in asked.several(number))
    return asked.exercise(
        f"items {number}", phrasings, answer, said=rng.choice((_COUNTS[number], str(number))), mark=mark
    )


def _marks(rng: random.Random) -> Exercise:
    asked = _Asked(rng)
    title, text, more = sentences.capital(asked.topic), asked.sentence(), asked.about()
    said, answer, opening = rng.choice((
        ("Give it a title between << and >>.", f"<<{title}>>\n{text}", "<<"),
        ("Above it stands a title in double angle brackets, such as <<A day>>.", f"<<{title}>>\n{text}", "<<"),
        ("Close with a postscript (P.S.).", f"{text}\n\nP.S. {more}", "P.S."),
        ("After it comes a P.S. of one sentence.", f"{text}\n\nP.S. {more}", "P.S."),
        ("Add a remark in square brackets, such as [remark].", f"{text} [{more}]", "["),
        ("Behind it put a comment between [ and ].", f"{text} [{more}]", "["),
        ("Give it a title between {{ and }}.", f"{{{{{title}}}}}\n{text}", "{{"),
        ("Add a remark in round brackets.", f"{text} ({more})", "("),
    ))  # fmt: skip
    asked_for = rng.choice(
        ("A sentence about {topic}, please.", "Say something about {topic}.", "One sentence on {topic}.")
    )
    exercise = asked.exercise(f"marked {opening}", (asked_for,), answer)
    return Exercise("instructions", f"{exercise.question} {said}", answer, answer, exercise.problems)


_KINDS = (
    _most, _least, _sentences, _upper, _lower, _keywords, _without_word, _without_comma, _begins, _ends, _quoted,
    _lines, _marks,
)  # fmt: skip
