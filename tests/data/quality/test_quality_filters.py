"""The filters, judged by datatrove's, which FineWeb was made with, on the same words; n-grams, by counting them out."""

import random
from itertools import accumulate

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter
from datatrove.utils.text import TERMINAL_PUNCTUATION
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data.quality import filters
from shoestring.data.quality.repeated import duplicate_characters, repeated, top_characters
from shoestring.data.quality.sentence_ends import ENDS
from shoestring.data.quality.words import is_symbol, plain_words, words_of

# Ours, then datatrove's.
QUALITY = {
    "gopher: too few words": "gopher_short_doc",
    "gopher: too many words": "gopher_long_doc",
    "gopher: mean word length": ("gopher_below_avg_threshold", "gopher_above_avg_threshold"),
    "gopher: hashes": "gopher_too_many_hashes",
    "gopher: ellipses": "gopher_too_many_ellipsis",
    "gopher: bullet points": "gopher_too_many_bullets",
    "gopher: lines that end in an ellipsis": "gopher_too_many_end_ellipsis",
    "gopher: words without a letter": "gopher_below_alpha_threshold",
    "gopher: stop words": "gopher_enough_stop_words",
}
REPETITION = {
    "gopher: duplicate paragraphs": "dup_para_frac",
    "gopher: characters in duplicate paragraphs": "dup_para_char_frac",
    "gopher: duplicate lines": "dup_line_frac",
    "gopher: characters in duplicate lines": "dup_line_char_frac",
    **{f"gopher: most frequent {n}-gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"gopher: duplicate {n}-grams": f"duplicated_{n}_n_grams" for n in range(5, 11)},
}
FINEWEB = {
    "fineweb: no text": "empty",
    "fineweb: lines that end without punctuation": "line_punct_ratio",
    "fineweb: short lines": "short_line_ratio",
    "fineweb: characters in duplicate lines": "char_dup_ratio",
    "fineweb: lines per word": "list_ratio",
}
KINDS = {
    "quality": (filters.gopher_quality, QUALITY, gopher_quality_filter.GopherQualityFilter),
    "repetition": (filters.gopher_repetition, REPETITION, gopher_repetition_filter.GopherRepetitionFilter),
    "fineweb": (filters.fineweb, FINEWEB, fineweb_quality_filter.FineWebQualityFilter),
}


@pytest.fixture(autouse=True)
def same_words(monkeypatch):
    """datatrove's own words are spaCy's or NLTK's, which are not installed."""
    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        monkeypatch.setattr(module, "split_into_words", lambda text, language: words_of(text))


def corpus(seed: int = 0) -> list[str]:
    """Prose of made-up words, and the same spoiled in one way or two, a little or a lot."""
    rng = random.Random(seed)
    syllables = ["ka", "lo", "mer", "tin", "su", "bra", "ne", "dol", "ix", "po"]
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(2000)]

    def sentence() -> str:
        words = rng.choices(vocabulary, k=rng.randint(4, 16))
        words[1:1] = rng.choices(["the", "of", "and", "with", "3.5", "no-one", "don't"], k=2)
        return " ".join(words).capitalize() + rng.choice([".", ".", ".", "!", "?", "…", ",", ""])

    def prose(lines: int) -> list[str]:
        return [" ".join(sentence() for _ in range(rng.randint(1, 4))) for _ in range(lines)]

    share = rng.random

    def some(lines, spoil, part=None):
        part = share() if part is None else part
        return [spoil(line) if share() < part else line for line in lines]

    def repeated_words(line: str) -> str:
        words = line.split()
        part = words[: rng.randint(2, 12)]
        return " ".join(words + part * rng.randint(1, 3))

    phrase = " ".join(rng.choices(vocabulary, k=12))
    ways = [
        lambda lines: lines,
        lambda lines: lines[: rng.randint(1, 3)],
        lambda lines: some(lines, lambda line: " ".join(w[:2] for w in line.split())),
        lambda lines: some(lines, lambda line: line.replace(" ", "")),
        lambda lines: some(lines, lambda line: line.replace(" ", " # ")),
        lambda lines: some(lines, lambda line: line.replace(" ", " ... ", rng.randint(0, 4))),
        lambda lines: some(lines, lambda line: rng.choice(["- ", "  • ", "* "]) + line, rng.choice([0.5, 0.93, 1])),
        lambda lines: some(lines, lambda line: line.rstrip(".!?") + rng.choice(["...", "…", "… "])),
        lambda lines: some(lines, lambda line: " ".join(rng.choice(["12", "7", w, w]) for w in line.split()), 1),
        lambda lines: [" ".join(w for w in line.split() if w not in ("the", "of", "and", "with")) for line in lines],
        lambda lines: some(lines, lambda line: lines[0]),
        lambda lines: [*lines, *rng.choices(lines, k=rng.randint(0, 3))],
        lambda lines: some(lines, lambda line: line + "\n\n" + lines[-1]),
        lambda lines: some(lines, repeated_words),
        lambda lines: some(lines, lambda line: line + " " + " ".join(phrase.split()[: rng.randint(2, 12)])),
        lambda lines: some(lines, lambda line: line[:20]),
        lambda lines: some(lines, lambda line: line.rstrip(".!?")),
        lambda lines: [part for line in lines for part in line.split(" ")],
        lambda lines: [part for line in lines for part in (line, "", "")],
        lambda lines: some(lines, lambda line: "\n" * rng.randint(1, 9) + line),
    ]
    texts = []
    for n in range(700):
        lines = prose(rng.randint(1, 20))
        for way in (ways[n % len(ways)], rng.choice(ways))[: 1 + n % 2]:
            lines = way(lines) or [""]
        texts.append(rng.choice(["\n", "\n", "\n\n"]).join(lines))
    return [*texts, *at_the_limits()]


def at_the_limits() -> list[str]:
    words = [f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(600)]
    lines = [" ".join(words[6 * n : 6 * n + 6]) for n in range(100)]  # of 41 characters
    return [
        " ".join(words[:48]) + " the of",
        " ".join(words[:47]) + " the of",
        "with " + " ".join(words[:48]) + " the of",
        " ".join(words[:75]) + " the of" + " #" * 8 + "\n" + " x" * 13,
        "\n".join(line + "." * (n < 12) for n, line in enumerate(lines)),
        "\n".join(line + "." * (n < 11) for n, line in enumerate(lines)),
        "\n".join((line[:30] if n < 67 else line) + "." for n, line in enumerate(lines)),
        "\n".join((line[:30] if n < 68 else line) + "." for n, line in enumerate(lines)),
        *map(phrases_twice, range(5, 11)),
        *(phrase_often(n, most) for n, most in ((2, 0.21), (2, 0.2), (3, 0.19), (3, 0.18), (4, 0.17), (4, 0.16))),
        "\n\n\n\n".join(" ".join(words[10 * n : 10 * n + 10]) + "." for n in range(12)),
        *("\n".join("•-"[n % 2] * (n < most) + line + " the of" for n, line in enumerate(lines)) for most in (90, 91)),
        "word " * 100_001,
        "", " ", "\n\n", "a", "a b", "…", "\n".join(["a."] * 10),
    ]  # fmt: skip


def six_letters():
    """Words that are all different."""
    return (f"x{chr(97 + n // 676 % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n % 26)}yz" for n in range(26**3))


def phrases_twice(n: int) -> str:
    """Ten phrases of n words, each there twice, among enough others that only the rule for n-grams is broken."""
    words, share = six_letters(), {5: 0.16}.get(n, 0.205 - n / 100)
    total = round(10 * n * 6 / share / 7)
    phrases = [[next(words) for _ in range(n)] for _ in range(10)]
    others = [next(words) for _ in range(total - 20 * n)]
    parts = [[*phrase, *others[i::20]] for i, phrase in enumerate([*phrases, *phrases])]
    return " ".join(word for part in parts for word in part)


def phrase_often(n: int, share: float) -> str:
    """A phrase of n words that has this share of the characters."""
    words, times = six_letters(), 20
    phrase = [next(words) for _ in range(n)]
    total = round(times * (7 * n - 1) / share / 7)
    others = [next(words) for _ in range(total - times * n)]
    return " ".join(word for i in range(times) for word in (*phrase, *others[i::times]))


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_and_reasons_are_those_of_datatrove(kind):
    ours, names, judge = KINDS[kind]
    judge, found = judge(), set()
    for text in corpus():
        words = words_of(text)
        if not words and kind != "fineweb" or not text:
            continue  # datatrove divides by zero there, and a document without a word is near-empty here
        verdict = judge.filter(Document(text=text, id=""))
        reason = ours(text, words)
        expected = None if verdict is True else verdict[1]
        assert (reason is None) == (expected is None), (text[:300], reason, expected)
        assert reason is None or expected in (names[reason] if type(names[reason]) is tuple else (names[reason],))
        found.add(reason)
    # Every rule was broken by some document, so each was judged.
    assert found == {None, *names}


def test_a_document_without_words_breaks_rules_and_nothing_else():
    assert filters.gopher_quality("", []) == "gopher: too few words"
    assert filters.gopher_repetition("", []) is None
    assert filters.fineweb(" \n", []) == "fineweb: no text"


def test_a_line_ends_a_sentence_with_what_unicode_says():
    assert ENDS == TERMINAL_PUNCTUATION


def test_words_keep_what_stands_inside_and_symbols_are_words():
    text = "Don't stop at 3.14, snake_case or well-known «things»... #1 • हिन्दी 100 €"
    assert words_of(text) == [
        "Don't", "stop", "at", "3.14", ",", "snake_case", "or", "well", "-", "known", "«", "things", "»...", "#", "1",
        "•", "हिन्दी", "100", "€",
    ]  # fmt: skip
    assert [word for word in words_of(text) if is_symbol(word)] == [",", "-", "«", "»...", "#"]
    assert plain_words("Don't: 3.14 and 2,000") == ["don", "t", "0", "0", "and", "0", "0"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "cc"]), max_size=60))
def test_repeated_n_grams_are_those_that_counting_finds(words):
    begins = list(accumulate(map(len, words), initial=0))
    found = {n: (places.tolist(), which.tolist()) for n, places, which in repeated(words)}
    for n in range(1, len(words) + 1):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = {gram: grams.count(gram) for gram in grams}
        places, which = found.get(n, ([], []))
        assert places == [i for i, gram in enumerate(grams) if counts[gram] > 1]
        assert len({*zip(which, (grams[i] for i in places), strict=True)}) == len({*which})
        assert len({*which}) == sum(count > 1 for count in counts.values())
        top = max(counts, key=counts.__getitem__)
        arrays = np.array(places, np.int64), np.array(which, np.int64)
        assert top_characters(n, *arrays, begins) == counts[top] * len(" ".join(top))
        seen, again, i = set(), 0, 0
        while i < len(grams):
            if grams[i] in seen:
                again, i = again + len("".join(grams[i])), i + n
            else:
                seen.add(grams[i])
                i += 1
        assert duplicate_characters(n, *arrays, begins) == again
    assert max(found, default=0) <= len(words)
