"""What a word is, for filters and near-duplicates: one rule, for languages that put spaces between words.

A word is a run of characters that are neither white space nor punctuation; apostrophes, points and underscores inside
it stay ("don't", "3.14", "snake_case"), hyphens part it. A run of punctuation is a word of its own, a symbol ("...",
'",'). One regular expression, where datatrove takes spaCy's English rules: so counts near a limit may differ from its.
Punctuation is ASCII's and its relatives in Latin-1, the general block (but •, which datatrove counts as a word) and the
East Asian blocks.
"""

from __future__ import annotations

import re

_RANGES = (
    "!/", ":@", "[`", "{~",  # ASCII
    "\u00a1\u00a1", "\u00a7\u00a7", "\u00ab\u00ab", "\u00b6\u00b7", "\u00bb\u00bb", "\u00bf\u00bf",  # Latin-1
    "\u2010\u2021", "\u2023\u2027", "\u2030\u205e",  # dashes, quotation marks, ellipsis
    "\u3001\u3003", "\u3008\u3011", "\u3014\u301f",  # ideographic
    "\uff01\uff0f", "\uff1a\uff20", "\uff3b\uff40", "\uff5b\uff65",  # full and half width
)  # fmt: skip
PUNCTUATION = frozenset(chr(code) for pair in _RANGES for code in range(ord(pair[0]), ord(pair[1]) + 1))
_CLASS = "".join(f"{re.escape(pair[0])}-{re.escape(pair[1])}" for pair in _RANGES)
_PLAIN = re.compile(rf"[^\s{_CLASS}]+")
_WORD = re.compile(rf"[^\s{_CLASS}]+(?:['’_.][^\s{_CLASS}]+)*|[{_CLASS}]+")
_NUMBER = re.compile(r"\d+")


def words_of(text: str) -> list[str]:
    """Words and symbols in their order."""
    return _WORD.findall(text)


def is_symbol(word: str) -> bool:
    """Whether a word of `words_of` is punctuation."""
    return word[0] in PUNCTUATION


def plain_words(text: str) -> list[str]:
    """What near-duplicates are compared by: words in lower case without any punctuation, every number as 0."""
    return _PLAIN.findall(_NUMBER.sub("0", text.lower()))
