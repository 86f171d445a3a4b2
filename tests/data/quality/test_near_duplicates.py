"""Near-duplicates: how often what is so much alike is found, by the formula; the rest by examples."""

import importlib.util
import random
import sys

import numpy as np
import pytest

from shoestring.core.errors import ConfigError
from shoestring.data.quality.config import NearDuplicateConfig, QualityConfig
from shoestring.data.quality.near_duplicates import NearDuplicates, bucket_keys
from shoestring.data.quality.review import Reviewer, examine

CONFIG = NearDuplicateConfig()
WORDS = 204  # 200 n-grams of five


def pair(alike: float, rng: random.Random) -> tuple[str, str]:
    """Two documents whose n-grams have this Jaccard similarity: they begin with the same words."""
    common = round(2 * 200 * alike / (1 + alike)) + 4
    first, second = ([f"w{rng.randrange(10**9)}x{n}" for n in range(WORDS)] for _ in range(2))
    letters = str.maketrans("0123456789", "abcdefghij")  # numbers count as one another
    return " ".join(first).translate(letters), " ".join(first[:common] + second[common:]).translate(letters)


@pytest.mark.parametrize("alike", [0.3, 0.6, 0.75, 0.9])
def test_documents_are_found_as_often_as_the_formula_says(alike):
    rng, found, pairs = random.Random(7), 0, 250
    for _ in range(pairs):
        near = NearDuplicates(CONFIG)
        first, second = pair(alike, rng)
        near.keep(bucket_keys(first, CONFIG))
        found += near.like(bucket_keys(second, CONFIG))
    chance = CONFIG.chance(alike)
    assert abs(found / pairs - chance) < 4 * (chance * (1 - chance) / pairs) ** 0.5 + 0.02


def test_the_documented_chances_are_those_of_the_formula():
    assert [round(CONFIG.chance(alike), 2) for alike in (0.6, 0.7, 0.8)] == [0.21, 0.56, 0.92]
    assert round(CONFIG.chance(0.9), 4) == 0.9996 and round(CONFIG.threshold, 2) == 0.72


def test_case_punctuation_spaces_and_numbers_do_not_make_another_document():
    text = "On May 5, 2024, the committee met again: nothing was decided, as usual. " * 3
    other = text.upper().replace("2024", "1999").replace(",", " ;").replace(" ", "\n ")
    assert (bucket_keys(text, CONFIG) == bucket_keys(other, CONFIG)).all()
    assert len({*bucket_keys(text, CONFIG).tolist()}) == CONFIG.buckets
    another_seed = NearDuplicateConfig(seed=2)
    assert (bucket_keys(text, CONFIG) != bucket_keys(text, another_seed)).any()


def test_a_document_shorter_than_an_n_gram_is_like_no_other():
    near = NearDuplicates(CONFIG)
    keys = bucket_keys("only four words here", CONFIG)
    near.keep(keys)
    assert not keys.any() and len(keys) == 14 and not near.like(keys) and not len(near.dump())


def test_the_first_is_kept_and_those_left_out_do_not_count():
    """a is like b and b like c, but a not found like c: b goes, and so c stays."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=7)) for _ in range(400)]
    a, b, c = (" ".join(words[begin : begin + 300]) for begin in (0, 24, 48))
    reviewer = Reviewer(QualityConfig(near_duplicates=True))
    keys = [bucket_keys(text, CONFIG) for text in (a, b, c)]
    assert all(np.intersect1d(*two).size for two in (keys[:2], keys[1:])) and not np.intersect1d(keys[0], keys[2]).size
    assert [reviewer.verdict(text) for text in (a, b, c)] == [None, "near duplicates", None]
    assert [reviewer.verdict(text) for text in (a, b)] == ["exact duplicates", "near duplicates"]


def test_without_the_library_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "rensa", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = QualityConfig(near_duplicates=CONFIG)
    for use in (lambda: Reviewer(config), lambda: examine("a text", config)):
        with pytest.raises(ConfigError, match="near_duplicates needs the package rensa") as caught:
            use()
        assert "[data]" in str(caught.value)
    assert Reviewer(QualityConfig()).verdict("a text") is None
