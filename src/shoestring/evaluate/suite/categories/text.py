"""Words and letters: copying, turning round, spelling, counting."""

from __future__ import annotations

import random

from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.categories.sequences import WORDS
from shoestring.evaluate.suite.question import Category, Question, ask

_SHORT = ("sun", "tree", "lamp", "fish", "door", "milk", "wolf", "sand", "book", "ring", "kite", "snow", "gold", "frog",
          "cake", "moon", "leaf", "bird", "ship", "star", "hill", "rope", "nest", "coin")  # fmt: skip
_NUMBERS = ("three", "seven", "twelve", "twenty", "forty", "ninety")


def _sentence(rng: random.Random) -> str:
    a, b, c = rng.sample(WORDS, 3)
    forms = (f"The {a} stands near the {b} and the {c}.", f"A {a} and {rng.choice(_NUMBERS)} {b}s lie on the {c}.",
             f"Take the {a} from the {b} before the {c} comes.")  # fmt: skip
    return rng.choice(forms)


def _copy(rng: random.Random) -> Question:
    text = _sentence(rng)
    asked = rng.choice(('Repeat this sentence and write nothing else: "{}"', 'Copy this exactly: "{}"')).format(text)
    return ask(f"copy {text}", asked, text, lambda reply: reply.stopped and reply.text.strip().strip('"') == text)


def _reverse_words(rng: random.Random) -> Question:
    items = rng.sample(WORDS, rng.randint(3, 5))
    result = " ".join(reversed(items))
    text = f"Write these words in the opposite order: {' '.join(items)}"
    return ask(f"turned {' '.join(sorted(items))}", text, result, checks.says(result))


def _reverse_letters(rng: random.Random) -> Question:
    word = rng.choice((*_SHORT, *WORDS)) if rng.random() < 0.5 else "".join(rng.sample("abcdefghiklmnoprstuvw", 4))
    return ask(f"text {word}", f'Write "{word}" backwards.', word[::-1], checks.says(word[::-1]))


def _spell(rng: random.Random) -> Question:
    word = rng.choice((*_SHORT, *WORDS)) if rng.random() < 0.3 else "".join(rng.sample(_SHORT, 2))
    result = "-".join(word)
    text = f'Spell "{word}" with a hyphen after each letter but the last, as in c-a-t.'
    return ask(f"text {word}", text, result, checks.says(result))


def _count_letters(rng: random.Random) -> Question:
    word = "".join(rng.sample(_SHORT, 2)) if rng.random() < 0.7 else rng.choice(WORDS)
    letter = rng.choice(sorted(set(word)))
    count = word.count(letter)
    text = f'How many times does the letter "{letter}" stand in the word "{word}"?'
    return ask(f"text {word}", text, f"{count}", checks.number(count))


def _count_words(rng: random.Random) -> Question:
    items = rng.sample(WORDS, rng.randint(3, 9))
    text = f"How many words are in this list? {', '.join(items)}"
    return ask(f"count {' '.join(sorted(items))}", text, str(len(items)), checks.number(len(items)))


def _which_item(rng: random.Random) -> Question:
    items = rng.sample(WORDS, rng.randint(4, 6))
    place = rng.randrange(len(items))
    named = ("first", "second", "third", "fourth", "fifth", "sixth")[place]
    text = f"Which is the {named} word of this list? {', '.join(items)}"
    wrong = [item for item in items if item != items[place]]
    return ask(f"which {' '.join(sorted(items))}", text, items[place], checks.chooses(items[place], wrong),
               options=tuple(items))  # fmt: skip


CATEGORIES = (
    Category("copying", "words and letters", "a sentence, word for word", _copy),
    Category("words turned round", "words and letters", "three to five words in the opposite order", _reverse_words),
    Category("letters turned round", "words and letters", "a word backwards", _reverse_letters),
    Category("spelling", "words and letters", "s-p-e-l-l-e-d", _spell),
    Category("letters counted", "words and letters", "how often one stands in a word", _count_letters, 0.4),
    Category("words counted", "words and letters", "how long a list is", _count_words, 0.2),
    Category("places in a list", "words and letters", "which word is the third", _which_item, 0.25),
)
