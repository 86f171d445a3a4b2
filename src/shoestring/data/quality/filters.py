"""Published rules for web text: which one a document breaks, or None.

- Gopher's quality and repetition rules: arXiv 2112.11446, appendix A.1 and table A1.
- FineWeb's own: arXiv 2406.17557. The limit for characters in duplicate lines, 0.01, is that of its published code.

Where the papers leave room, these rules read them as datatrove does, the library that FineWeb was made with: it
judges them in tests, given the same words (`words.py`). A rule is broken beyond its limit, not at it. Gopher's
quality rules are for English: they ask for English words. All are shares of a document's own counts, so each needs
the document alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, islice

import numpy as np

from shoestring.data.quality.repeated import duplicate_characters, repeated, top_characters
from shoestring.data.quality.sentence_ends import ENDS
from shoestring.data.quality.words import is_symbol

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_TOP = ((2, 0.20), (3, 0.18), (4, 0.16))
_DUPLICATE = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


def gopher_quality(text: str, words: Sequence[str]) -> str | None:
    """words: those of `words_of(text)`. Such as "gopher: mean word length"."""
    plain = [word for word in words if not is_symbol(word)]
    if len(plain) < 50:
        return "gopher: too few words"
    if len(plain) > 100_000:
        return "gopher: too many words"
    if not 3 <= sum(map(len, plain)) / len(plain) <= 10:
        return "gopher: mean word length"
    if text.count("#") / len(words) > 0.1:
        return "gopher: hashes"
    if (text.count("...") + text.count("…")) / len(words) > 0.1:
        return "gopher: ellipses"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > 0.9:
        return "gopher: bullet points"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return "gopher: lines that end in an ellipsis"
    if sum(word.isalpha() or any(map(str.isalpha, word)) for word in plain) / len(words) < 0.8:
        return "gopher: words without a letter"
    if len(_STOP_WORDS.intersection(words)) < 2:
        return "gopher: stop words"
    return None


def gopher_repetition(text: str, words: Sequence[str]) -> str | None:
    """words: those of `words_of(text)`. Such as "gopher: duplicate lines"."""
    size = max(len(text), 1)
    for name, parts in (("paragraphs", _PARAGRAPHS.split(text.strip())), ("lines", _LINES.split(text))):
        again, characters = _repeated_parts(parts)
        if again / len(parts) > 0.3:
            return f"gopher: duplicate {name}"
        if characters / size > 0.2:
            return f"gopher: characters in duplicate {name}"
    begins = list(accumulate(map(len, words), initial=0))
    nothing = np.zeros(0, np.int64)
    grams = {n: (places, which) for n, places, which in islice(repeated(words), _DUPLICATE[-1][0])}
    for n, most in _TOP:
        if len(words) >= n and top_characters(n, *grams.get(n, (nothing, nothing)), begins) / size > most:
            return f"gopher: most frequent {n}-gram"
    for n, most in _DUPLICATE:
        if n in grams and duplicate_characters(n, *grams[n], begins) / size > most:
            return f"gopher: duplicate {n}-grams"
    return None


def fineweb(text: str, words: Sequence[str]) -> str | None:
    """words: those of `words_of(text)`. Such as "fineweb: short lines"."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "fineweb: no text"
    if sum(line[-1] in ENDS for line in lines) / len(lines) < 0.12:
        return "fineweb: lines that end without punctuation"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return "fineweb: short lines"
    breaks = text.count("\n")
    if _repeated_parts(lines)[1] / (len(text) - breaks) > 0.01:
        return "fineweb: characters in duplicate lines"
    if breaks / len(words) > 0.3:
        return "fineweb: lines per word"
    return None


def _repeated_parts(parts: list[str]) -> tuple[int, int]:
    """How many stand there for a second or later time, and their characters."""
    unique = set(parts)
    return len(parts) - len(unique), sum(map(len, parts)) - sum(map(len, unique))
