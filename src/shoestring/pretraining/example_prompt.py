"""The beginning of a text like those that a model was trained on, for who wants to see how it goes on.

It comes from the held-out documents: a model that continues it does not say by heart what it has read.
"""

from __future__ import annotations

import re

from shoestring.data.corpus import Corpus

_FUNCTION = re.compile(r'^( *)(?:async )?def \w+\([^\n]*\):\n\1    """[^"\n]+"""\n', re.MULTILINE)
_DOCUMENTS = 200  # looked at, at most
_WORDS = 4


def function_lines(corpus: Corpus) -> str | None:
    """The first lines of a Python function, its name and what it says of itself; None where the text holds none."""
    for text in _texts(corpus):
        for found in _FUNCTION.finditer(text):
            if len(found[0]) < 160:
                indent = len(found[1])
                return "".join(line[indent:] for line in found[0].splitlines(keepends=True))
    return None


def first_words(corpus: Corpus) -> str | None:
    """A few words in one line, without what a shell would read as something else."""
    for text in _texts(corpus):
        for line in text.splitlines():
            words = re.findall(r"\w[\w,'-]*", line)[:_WORDS]
            if len(words) == _WORDS and "'" not in "".join(words):
                return " ".join(words)
    return None


def _texts(corpus: Corpus):
    for number, document in enumerate(corpus.held_out_documents()):
        if number == _DOCUMENTS:
            return
        yield corpus.tokenizer.decode(document.tokens.tolist())
