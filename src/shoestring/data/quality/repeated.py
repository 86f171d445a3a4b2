"""The n-grams of a document that occur more than once, for n = 1, 2, ..., exactly and without making one.

Equal words have equal numbers. An (n + 1)-gram can only be repeated where the n-grams at its place and at the next one
both are, and is known by the two of them; so places get fewer with n, and most documents are done after a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def repeated(words: Sequence[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(n, places [m], which [m]), both int64: where n-grams stand that occur more than once, ascending, and numbers
    that are equal where they are. Ends before the first n that has none."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    which = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    places, n = np.arange(len(words)), 0
    while len(places):
        n += 1
        counts = np.bincount(which)
        again = counts[which] > 1
        places, which = places[again], which[again]
        if len(places):
            yield n, places, which
        pair = places[1:] == places[:-1] + 1
        both = which[:-1][pair] * len(counts) + which[1:][pair]
        places, which = places[:-1][pair], np.unique(both, return_inverse=True)[1]


def top_characters(n: int, places: np.ndarray, which: np.ndarray, begins: Sequence[int]) -> int:
    """Characters of the most frequent n-gram, spaces between words counted, times how often it occurs.

    The first of equally frequent ones counts. begins [words + 1]: characters of the words before each.
    """
    count, place = 1, 0
    if len(places):
        counts = np.bincount(which)
        count = int(counts.max())
        place = int(places[np.argmax(counts[which] == count)])
    return count * (begins[place + n] - begins[place] + n - 1)


def duplicate_characters(n: int, places: np.ndarray, which: np.ndarray, begins: Sequence[int]) -> int:
    """Characters in n-grams that stand there again. Read from the left; what is counted is passed over."""
    seen: set[int] = set()
    free = total = 0
    for place, gram in zip(places.tolist(), which.tolist(), strict=True):
        if place < free:
            continue
        if gram in seen:
            total += begins[place + n] - begins[place]
            free = place + n
        else:
            seen.add(gram)
    return total
