"""The table of Elite-112M's claims: which count as beaten, and what is printed beside them."""

import json

import pytest

from benchmarks import elite_table
from benchmarks.elite_table import CLAIMS, figures
from shoestring.evaluate.suite.categories.every import GROUPS
from shoestring.evaluate.suite.results import Answered, Evaluation, Score


def evaluation(shares, more=()):
    scores = tuple(Score(f"of {group}", group, round(30 * share), 30, 0.0) for group, share in (*shares.items(), *more))
    return Evaluation("m", "held-out", scores, 1.0, {})


@pytest.fixture
def before_and_after():
    before = evaluation({group: 0.1 for _, group, _ in CLAIMS}, [("dates and units", 0.5)])
    after = evaluation(
        {group: claim + 0.07 for _, group, claim in CLAIMS} | {"patterns": 0.6}, [("dates and units", 0.3)]
    )
    return before, after


def test_every_claim_has_a_group_of_the_suite():
    assert [group for _, group, _ in CLAIMS if group not in GROUPS] == [] and len({g for _, g, _ in CLAIMS}) == 6


def test_a_share_that_equals_a_claim_does_not_beat_it(before_and_after):
    found = figures(*before_and_after)
    assert found["rows_beaten"] == 5 and found["patterns"]["after"] == found["patterns"]["claim"] == 0.6
    assert found["form_of_sums"] | {"low": 0, "high": 0} == {
        "claim": 0.9, "before": 0.1, "after": round(29 / 30, 4), "low": 0, "high": 0, "of": 30,
    }  # fmt: skip
    assert found["form_of_sums"]["low"] < 0.9 < found["form_of_sums"]["high"]


def test_the_table_shows_what_got_worse_and_ends_with_json(before_and_after, capsys):
    answers = [[Answered("of dates and units", "q", "a", "s", right)] for right in (True, False)]
    elite_table._report((before_and_after[0], answers[0]), (before_and_after[1], answers[1]), 27.5)
    out = capsys.readouterr().out
    worse = out.partition("What got worse elsewhere")[2]
    assert "of dates and units" in worse and "50.0%" in worse and "30.0%" in worse
    last = json.loads(out.splitlines()[-1])
    assert last["minutes"] == 27.5 and last["rows_beaten"] == 5 and last["worse_categories"] == 1
    assert out.count("not beaten") == 1
