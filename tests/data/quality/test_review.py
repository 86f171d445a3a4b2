"""Verdicts on documents, in one pass, in two halves, and going on after any of them."""

import json
import random

import numpy as np
import pytest
from pydantic import ValidationError

from shoestring.core.errors import DataError
from shoestring.data.quality.config import NearDuplicateConfig, QualityConfig
from shoestring.data.quality.review import Findings, Reviewer, examine, marks_width

EVERYTHING = QualityConfig(near_duplicates=True, gopher_quality=True, gopher_repetition=True, fineweb=True)
NEAR = QualityConfig(near_duplicates=NearDuplicateConfig(buckets=10, hashes=3, words=3))


def corpus(count: int = 150) -> list[str]:
    """Documents of which some are empty, some equal and some alike."""
    rng = random.Random(3)
    vocabulary = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 8))) for _ in range(500)]
    texts: list[str] = []
    for n in range(count):
        words = rng.choices(vocabulary, k=rng.randint(0, 90))
        words[3:3] = ["the", "of"] if n % 3 else []
        text = " ".join(words) + rng.choice([".", "", " \n"])
        if texts and n % 5 == 0:
            text = rng.choice(texts)
        elif texts and n % 7 == 0:
            words = rng.choice(texts).split()
            text = " ".join(words[: rng.randint(len(words) // 2, len(words))] + ["more", "words"])
        texts.append(text)
    return texts


def test_by_default_what_is_equal_or_has_nothing_to_see_is_left_out():
    reviewer = Reviewer(QualityConfig())
    texts = ["a text", "", " \n\t\u3000", "7", "a text", "a text ", "7"]
    verdicts = [reviewer.verdict(text, f"line {n}") for n, text in enumerate(texts, 1)]
    exact, short = "exact duplicates", "near-empty documents"
    assert verdicts == [None, short, short, None, exact, None, exact]
    assert reviewer.left_out.counts == {short: 2, exact: 2}
    assert reviewer.left_out.first == {short: "line 2", exact: "line 5"}
    assert "2 exact duplicates (first: line 5)" in reviewer.left_out.sentences()


def test_what_is_turned_off_is_kept():
    reviewer = Reviewer(QualityConfig(exact_duplicates=False, shortest=0))
    assert [reviewer.verdict(text) for text in ("", "", "a", "a")] == [None] * 4
    reviewer = Reviewer(QualityConfig(shortest=4))
    assert [reviewer.verdict(text) for text in ("a b c", "a b c d")] == ["near-empty documents", None]


def test_filters_give_the_first_rule_that_is_broken_and_only_where_they_are_asked_for():
    text = "item one\nitem two\nitem one\nitem two\n" * 20
    assert Reviewer(QualityConfig()).verdict(text) is None
    assert Reviewer(QualityConfig(gopher_quality=True)).verdict(text) == "gopher: stop words"
    assert Reviewer(QualityConfig(gopher_repetition=True)).verdict(text) == "gopher: duplicate lines"
    assert Reviewer(QualityConfig(fineweb=True)).verdict(text) == "fineweb: lines that end without punctuation"
    assert Reviewer(EVERYTHING).verdict(text) == "gopher: stop words"


@pytest.mark.parametrize("config", [QualityConfig(), NEAR, EVERYTHING])
def test_both_halves_together_say_the_same_in_whatever_order_texts_were_examined(config):
    texts, whole, halves = corpus(), Reviewer(config), Reviewer(config)
    findings = {n: examine(texts[n], config) for n in random.Random(0).sample(range(len(texts)), len(texts))}
    expected = [whole.verdict(text, str(n)) for n, text in enumerate(texts)]
    assert [halves.decide(findings[n], str(n)) for n in range(len(texts))] == expected
    assert whole.state() == halves.state() and len({*expected}) > 2
    assert {found.marks.shape for found in findings.values()} == {(marks_width(config),)}
    assert {found.marks.dtype for found in findings.values()} == {np.dtype(np.uint64)}


@pytest.mark.parametrize("config", [QualityConfig(), NEAR])
def test_a_review_that_goes_on_anywhere_says_what_one_in_a_single_pass_says(config):
    texts, whole = corpus(), Reviewer(config)
    expected = [whole.verdict(text, str(n)) for n, text in enumerate(texts)]
    assert {None, "exact duplicates", "near-empty documents"} <= {*expected}
    for cut in (0, 1, 40, 97, len(texts)):
        first = Reviewer(config)
        for n, text in enumerate(texts[:cut]):
            first.verdict(text, str(n))
        state = json.loads(json.dumps(first.state()))
        second, third = Reviewer(config), Reviewer(config)
        second.restore(state, {name: array.copy() for name, array in first.arrays().items()})
        kept = [examine(text, config).marks for n, text in enumerate(texts[:cut]) if expected[n] is None]
        third.restore(state)
        third.remember(np.array(kept, np.uint64).reshape(-1, marks_width(config)))
        for going_on in (second, third):
            rest = [going_on.verdict(text, str(n)) for n, text in enumerate(texts[cut:], cut)]
            assert rest == expected[cut:]
            assert going_on.state() == whole.state()
            assert all((going_on.arrays()[name] == array).all() for name, array in whole.arrays().items())


def test_documents_kept_later_change_no_earlier_verdict():
    """A folder of two splits goes on from where the slower one was, knowing what the faster one kept after that."""
    texts, whole = corpus(), Reviewer(NEAR)
    expected = [whole.verdict(text) for text in texts]
    behind = Reviewer(NEAR)
    ahead = [n for n in range(len(texts)) if n % 2 and expected[n] is None]
    behind.remember(np.array([examine(texts[n], NEAR).marks for n in ahead]))
    for n, text in enumerate(texts):
        if n not in ahead:
            assert behind.verdict(text) == expected[n]


def test_a_state_that_does_not_fit_is_refused():
    state = Reviewer(NEAR).state()
    with pytest.raises(DataError, match="made with other settings, or by another version of rensa"):
        Reviewer(QualityConfig(near_duplicates=True)).restore(state)
    with pytest.raises(DataError, match="made with other settings"):
        Reviewer(QualityConfig()).restore(state)
    for damaged in ({}, {**state, "counts": {"x": 1}}, {**state, "counts": {"x": []}, "first": {"x": ""}}, None):
        with pytest.raises(DataError, match="damaged"):
            Reviewer(NEAR).restore(damaged)


def test_a_fault_is_counted_before_likeness_so_that_only_kept_documents_matter():
    reviewer = Reviewer(QualityConfig(gopher_quality=True))
    assert [reviewer.verdict("too short"), reviewer.verdict("too short")] == ["gopher: too few words"] * 2
    assert reviewer.decide(Findings(None, np.array([7], np.uint64))) is None
    assert reviewer.decide(Findings(None, np.array([7], np.uint64))) == "exact duplicates"


def test_settings_are_strict():
    for wrong in ({"shortest": -1}, {"near_duplicates": {"buckets": 0}}, {"gopher": True}, {"fineweb": "yes"}):
        with pytest.raises(ValidationError):
            QualityConfig(**wrong)
    assert QualityConfig(near_duplicates={"buckets": 20}).minhash == NearDuplicateConfig(buckets=20)
    assert QualityConfig(near_duplicates=True).minhash == NearDuplicateConfig() and QualityConfig().minhash is None
