"""An external vector for each token, from a causal model's tokens, aligned to ours without looking ahead.

A causal encoder's vector of a token has seen nothing behind it, but where the encoder cuts its tokens can depend on
what follows: "he" is a token of "he said", and a part of one in "hello". So an encoder's token counts only once a
later word has begun: token n of ours gets the vector of the encoder's last token that ends before the white space in
front of the last word begun so far (of several white-space characters the last, which tokenizers give to the word).
Until then it gets zeros. This holds for tokenizers that cut text at white space first, as byte-level BPE does.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from shoestring.data.loader import ExternalVectors
from shoestring.data.shards import ShardFolder
from shoestring.data.tokenizer import Tokenizer

# text -> (vectors float32 [M, E], characters before each token's end [M])
EncodeTokens = Callable[[str], tuple[np.ndarray, np.ndarray]]

# One character for each byte that is not UTF-8, so that places in bytes stay places in the text.
codecs.register_error("shoestring.question_marks", lambda error: ("?" * (error.end - error.start), error.end))  # type: ignore[attr-defined]


class TokenVectors:
    """encode: the encoder on a whole text. tokenizer: ours, byte-level, so that its tokens have places in the text."""

    def __init__(self, tokenizer: Tokenizer, encode: EncodeTokens, width: int):
        self.encode, self.width = encode, width
        self._token_bytes = tokenizer.token_bytes()
        self._last: tuple[str, np.ndarray, np.ndarray] | None = None

    def vectors(self, ids: Sequence[int] | np.ndarray, start: int, stop: int) -> np.ndarray:
        """float32 [stop − start, E] for tokens start .. stop of a document that begins with `ids` [>= stop]."""
        pieces = [self._token_bytes[int(i)] for i in ids[:stop]]
        ends_n = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)[start:]
        text = codecs.getincrementaldecoder("utf-8")("shoestring.question_marks").decode(b"".join(pieces))
        settled, words, known = settled_places(text)
        at = np.searchsorted(known, ends_n, "right") - 1
        out = np.zeros((stop - start, self.width), np.float32)
        if at.max(initial=-1) < 0:
            return out
        # With the first character of the word that settles it: white space alone at the end is cut in another way.
        vectors, ends_m = self._encoded(text[: words[at.max()] + 1])
        found = np.searchsorted(ends_m, np.where(at >= 0, settled[at.clip(0)], -1), "right") - 1
        out[found >= 0] = vectors[found[found >= 0]]
        return out

    def of_split(self, shards: ShardFolder, split: str, folder: Path) -> ExternalVectors:
        """The same for a split's documents by number. Computed anew each time: a vector for each token is a lot."""

        def vectors(number: int, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
            return self.vectors(ids, start, stop)

        return vectors

    def _encoded(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors, and where each of the encoder's tokens ends, in bytes. The last text is remembered."""
        if self._last is None or self._last[0] != text:
            vectors, ends = self.encode(text)
            bytes_before = np.concatenate([[0], np.cumsum([len(c.encode()) for c in text], dtype=np.int64)])
            self._last = text, vectors, bytes_before[ends]
        return self._last[1:]


def settled_places(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each word after white space, ascending: the place in bytes of the white-space character before it, the number
    of its first character in the text, and the place where that character ends, from which on a reader knows it."""
    space = np.array([character.isspace() for character in text], bool)
    sizes = np.array([len(character.encode()) for character in text], np.int64)
    words = 1 + np.flatnonzero(space[:-1] & ~space[1:])
    ends = np.cumsum(sizes)
    return (ends - sizes)[words - 1], words, ends[words]
