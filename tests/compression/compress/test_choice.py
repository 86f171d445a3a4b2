"""Which candidates are tried and taken, against trying all of them; what `compress` is told."""

from __future__ import annotations

import math
import random

import pytest

from shoestring.compression.compress.candidates import Shapes, families
from shoestring.compression.compress.choice import AS_GOOD, Figures, Goal, best, following, why_not
from shoestring.compression.compress.config import compress_config
from shoestring.core.errors import ConfigError

MATRICES = (("query", 256, 256), ("up", 512, 256), ("down", 256, 512))
SHAPES = Shapes(MATRICES, rest=40_000, numbers=10_000, stored=1_620_000, float32=True, ends=((32, 256, 4),))
EVERY = [candidate for family in families(SHAPES) for candidate in family]


def drawn(seed: int) -> dict[str, Figures]:
    """What each candidate would measure: within a family fewer bytes lose more."""
    chance = random.Random(seed)
    found = {}
    for family in families(SHAPES):
        loss = 2.0
        for candidate in family:
            loss += chance.choice([0.0001, 0.01, 0.05, 0.3]) * chance.random()
            found[candidate.key] = Figures(candidate.bytes, loss)
    return found


def tried(goal: Goal, measured: dict[str, Figures]) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    while (candidate := following(families(SHAPES), found, goal)) is not None:
        found[candidate.key] = measured[candidate.key]
    return found


@pytest.mark.parametrize("seed", range(40))
def test_what_is_taken_is_the_best_of_all(seed: int) -> None:
    measured, before = drawn(seed), Figures(SHAPES.stored, 2.0)
    chance = random.Random(seed)
    for goal in (
        Goal(before, chance.randrange(min(each.bytes for each in EVERY), SHAPES.stored), None),
        Goal(before, None, chance.choice([0.5, 0.8, 0.95, 0.99])),
    ):
        found = tried(goal, measured)
        ours, of_all = best(found, goal), best(measured, goal)
        assert (ours is None) == (of_all is None)
        if ours is None or of_all is None:
            continue
        if goal.limit is not None:
            assert min(goal.quality(measured[of_all]), AS_GOOD) <= goal.quality(measured[ours])
            assert measured[ours].bytes <= goal.limit and all(each.bytes <= goal.limit for each in found.values())
        else:
            assert measured[ours].bytes == measured[of_all].bytes and goal.quality(measured[ours]) >= goal.share
        assert len(found) < len(EVERY)
        for family in families(SHAPES):
            for candidate in family:
                assert candidate.key in found or why_not(candidate, family, found, goal)


def test_a_target_that_losslessly_fits_ends_after_one_candidate() -> None:
    goal = Goal(Figures(SHAPES.stored, 2.0), SHAPES.stored // 2, None)
    assert list(tried(goal, {each.key: Figures(each.bytes, 2.0) for each in EVERY})) == ["bfloat16"]


def test_quality_is_the_worse_of_text_and_suite_and_nothing_for_what_failed() -> None:
    goal = Goal(Figures(100, 2.0, suite=0.5), 50, None)
    assert goal.quality(Figures(50, 2.0 + math.log(1.25), suite=0.5)) == pytest.approx(0.8)
    assert goal.quality(Figures(50, 2.0, suite=0.4)) == pytest.approx(0.8)
    for broken in (Figures(50, math.nan), Figures(50, math.inf), Figures(50, 2.0, failed="no memory")):
        assert goal.quality(broken) == 0 and not goal.met(broken)


def test_pruning_is_tried_only_where_all_else_loses_more() -> None:
    left = {
        part: Shapes((("up", *shape),), 1, 10_000, 0, True, ends=((32, 192, 4),))
        for part, shape in ((0.8, (256, 192)), (0.5, (64, 64)))
    }
    every = families(SHAPES, left, recover=7)
    assert [each.key for each in every[-1]] == ["pruned-0.8", "pruned-0.5"]
    assert every[-1][0].steps[0] == ("prune", {"parameters": "0.8x", "recover": 7})
    goal = Goal(Figures(SHAPES.stored, 2.0), SHAPES.stored // 5, None)
    for lost, pruned in ((0.04, False), (0.06, True)):
        found: dict[str, Figures] = {}
        while (candidate := following(every, found, goal)) is not None:
            found[candidate.key] = Figures(candidate.bytes, 2.0 + lost)
        assert ("pruned-0.8" in found) == pruned and "pruned-0.5" not in found


def test_groups_that_do_not_divide_are_no_candidates() -> None:
    odd = Shapes((("up", 64, 96),), rest=100, numbers=50, stored=25_000, float32=False, ends=())
    keys = [candidate.key for family in families(odd) for candidate in family]
    assert "gptq-4-32" in keys and "rtn-8-0" in keys and "bfloat16" not in keys
    assert not any(key.endswith(("-64", "-128")) for key in keys)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "neither of them"),
        ({"target": "100MB", "keep": "95%"}, "found both"),
        ({"target": "1.5x"}, "between 0x and 1x"),
        ({"target": "half"}, "a size such as 100MB"),
        ({"keep": "95"}, "a share of the quality"),
        ({"keep": 0}, "a share of the quality"),
        ({"keep": "95%", "items": 3}, "items are of the suite"),
        ({"keep": "95%", "time": "soon"}, "a duration"),
        ({"keep": "95%", "recover": 5, "memory": "2GB"}, "recover trains a whole model"),
        ({"keep": "95%", "suite": "mine"}, "core"),
        ({"keep": "95%", "calibrate": None}, "give calibrate a source"),
    ],
)  # fmt: skip
def test_what_makes_no_goal_is_said_at_once(given: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        compress_config({"calibrate": "stdlib", **given})


def test_goals_are_read_in_the_forms_that_people_write() -> None:
    def limit(target: str | int) -> int | None:
        return compress_config({"calibrate": "stdlib", "target": target}).limit(1000)

    assert [limit(each) for each in ("0.5x", ".25X", "100MB", 77)] == [500, 250, 100_000_000, 77]
    shares = [compress_config({"calibrate": "stdlib", "keep": each}).keep for each in ("95%", 0.95, "0.95", "100%")]
    assert shares == [0.95, 0.95, 0.95, 1.0]
