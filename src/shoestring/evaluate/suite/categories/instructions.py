"""Instructions whose keeping a program can check: length, case, words, forms (the kinds of IFEval, arXiv 2311.07911).

Each also wants a word of its own, so that no constant reply is right.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.categories.sequences import WORDS
from shoestring.evaluate.suite.question import Category, Check, Question, ask

_TOPICS = (
    "rain",
    "bread",
    "trains",
    "the sea",
    "snow",
    "music",
    "gardens",
    "letters",
    "bridges",
    "tea",
    "mountains",
    "school",
)


def _about(rng: random.Random) -> tuple[str, str]:
    return rng.choice(_TOPICS), rng.choice(WORDS)


def _question(kind: str, topic: str, word: str, text: str, answer: str, *more: Check) -> Question:
    """The word is wanted in every one of them."""
    check = checks.all_of(checks.with_words(word), *more)
    return ask(f"instruction {kind} {topic} {word}", text, answer, check, result=word, max_tokens=96)


def _length(rng: random.Random) -> Question:
    topic, word = _about(rng)
    if rng.random() < 0.5:
        most = rng.randint(6, 14)
        text = f'Write a sentence about {topic} with at most {most} words. Use the word "{word}".'
        return _question("most", topic, word, text, f"A {word} and {topic}.", checks.word_count(3, most))
    least = rng.randint(10, 16)
    text = f'Write about {topic} with at least {least} words. Use the word "{word}".'
    filler = " and again".join(["I think of it"] * 8)
    return _question(
        "least", topic, word, text, f"The {word} is near {topic}. {filler}.", checks.word_count(least, 400)
    )


def _sentences(rng: random.Random) -> Question:
    topic, word = _about(rng)
    count = rng.randint(2, 4)
    text = f'Write exactly {count} sentences about {topic}. Use the word "{word}" in one of them.'
    answer = " ".join([f"There is a {word} in it.", *["I like that."] * (count - 1)])
    return _question(
        "sentences", topic, word, text, answer, checks.sentence_count(count), checks.word_count(2 * count, 400)
    )


def _case(rng: random.Random) -> Question:
    topic, word = _about(rng)
    if rng.random() < 0.5:
        text = f'Write a sentence about {topic} in capital letters only. Use the word "{word}".'
        return _question("upper", topic, word, text, f"THE {word.upper()} AND {topic.upper()}.", checks.upper())
    text = f'Write a sentence about {topic} in lower-case letters only, without any capital. Use the word "{word}".'
    return _question("lower", topic, word, text, f"the {word} and {topic}.", checks.lower())


def _keywords(rng: random.Random) -> Question:
    topic = rng.choice(_TOPICS)
    wanted = rng.sample(WORDS, 2)
    text = f'Write one sentence about {topic} that has the words "{wanted[0]}" and "{wanted[1]}".'
    answer = f"The {wanted[0]} and the {wanted[1]} go with {topic}."
    return _question(f"both {wanted[1]}", topic, wanted[0], text, answer, checks.with_words(wanted[1]))


def _forbidden(rng: random.Random) -> Question:
    topic, word = _about(rng)
    if rng.random() < 0.5:
        unwanted = rng.choice(("the", "and", "is", "a"))
        text = f'Write a sentence about {topic} without the word "{unwanted}". Use the word "{word}".'
        return _question(
            f"without {unwanted}", topic, word, text, f"My {word} likes {topic}.", checks.without_words(unwanted)
        )
    text = f'Write a sentence of at least eight words about {topic} without any comma. Use the word "{word}".'
    answer = f"My {word} was always there when we thought about {topic}."
    return _question("no comma", topic, word, text, answer, checks.lacks(","), checks.word_count(8, 400))


def _edges(rng: random.Random) -> Question:
    topic, word = _about(rng)
    kind = rng.choice(("begins", "ends", "quoted"))
    if kind == "begins":
        text = f'Write a sentence about {topic} that begins with the word "{word.capitalize()}".'
        return _question(kind, topic, word, text, f"{word.capitalize()} and {topic}.", checks.begins(word.capitalize()))
    if kind == "ends":
        ending = rng.choice(("The end.", "That is all.", "Goodbye!"))
        text = f'Write a sentence about {topic} with the word "{word}", and end your reply with "{ending}"'
        return _question(f"{kind} {ending}", topic, word, text, f"A {word} in {topic}. {ending}", checks.ends(ending))
    text = f'Write a sentence about {topic} with the word "{word}", all of it in double quotation marks.'
    return _question(kind, topic, word, text, f'"A {word} in {topic}."', checks.begins('"'), checks.ends('"'))


def _counted_items(rng: random.Random) -> Question:
    topic, word = _about(rng)
    count = rng.randint(2, 5)
    text = f'Give a list of exactly {count} lines about {topic}, each beginning with "* ".'
    text = f'{text} One of them has the word "{word}".'
    answer = "\n".join([f"* the {word}", *(f"* line {n}" for n in range(2, count + 1))])
    return _question(f"items {count}", topic, word, text, answer, checks.item_lines(r"\* .*\w.*", count))


def _placeholders(rng: random.Random) -> Question:
    topic, word = _about(rng)
    marked = rng.choice((("a title in double angular brackets, as in <<title>>", "<<", ">>"),
                         ("a postscript that begins with P.S.", "P.S.", ""),
                         ("a note in square brackets, as in [note]", "[", "]")))  # fmt: skip
    said, opening, closing = marked
    text = f'Write a sentence about {topic} with the word "{word}", and add {said}.'
    answer = f"A {word} in {topic}. {opening} more {closing}".strip()
    inside: Callable[..., bool] = lambda reply: opening in reply.text and closing in reply.text.partition(opening)[2]  # noqa: E731
    return _question(f"marked {opening}", topic, word, text, answer, inside)


_PHRASES = """
good morning: bonjour; guten morgen; buenos días, buenos dias; buongiorno; bom dia
thank you: merci; danke; gracias; grazie; obrigado, obrigada
goodbye: au revoir; auf wiedersehen; adiós, adios; arrivederci; adeus
yes: oui; ja; sí, si; sì, si; sim
please: s'il vous plaît, s'il vous plait; bitte; por favor; per favore; por favor
water: eau; wasser; agua; acqua; água, agua
bread: pain; brot; pan; pane; pão, pao
house: maison; haus; casa; casa; casa
three: trois; drei; tres; tre; três, tres
red: rouge; rot; rojo, roja; rosso, rossa; vermelho, vermelha
dog: chien; hund; perro; cane; cachorro, cão
night: nuit; nacht; noche; notte; noite
"""
_LANGUAGES = ("French", "German", "Spanish", "Italian", "Portuguese")


def _in_another_language(rng: random.Random) -> Question:
    phrase, _, told = rng.choice(_PHRASES.strip().splitlines()).partition(": ")
    number, language = rng.choice(list(enumerate(_LANGUAGES)))
    right = told.split("; ")[number].split(", ")
    text = rng.choice((
        'How does one say "{}" in {}?', 'Write "{}" in {} and nothing else.', 'Say "{}", but in {}.',
    )).format(phrase, language)  # fmt: skip
    return ask(f"phrase {phrase} {language}", text, right[0], checks.says(*right))


CATEGORIES = (
    Category("how many words", "instructions", "at most, or at least", _length),
    Category("how many sentences", "instructions", "two to four", _sentences),
    Category("capitals and small letters", "instructions", "all of one kind", _case),
    Category("two words", "instructions", "both are used", _keywords),
    Category("what is not to be used", "instructions", "a word, or commas", _forbidden),
    Category("beginning and end", "instructions", "given words, quotation marks", _edges),
    Category("lines of a list", "instructions", "so many, with a mark", _counted_items),
    Category("marks", "instructions", "a title, a postscript, a note", _placeholders),
    Category("another language", "instructions", "a phrase in one of five", _in_another_language, 0.1, share=0.5),
)
