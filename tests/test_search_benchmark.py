"""The arithmetic of `benchmarks.search`: tokens until a search is as good as a grid."""

import argparse
import json

import pytest

from benchmarks import search as benchmark
from benchmarks.search import Ended, figures, reach, report, space

GRID = [Ended(100, value) for value in (3.0, 2.5, 2.75, 4.0)]


def test_tokens_of_trials_that_were_ended_early_count_and_those_after_it_do_not():
    search = [Ended(100, 3.5), Ended(20, None), Ended(100, 2.5), Ended(100, 1.0)]
    assert reach(search, 2.5) == benchmark.Reached(220, 3, True, 2.5)
    assert reach(search, 0.5) == benchmark.Reached(320, 4, False, 1.0)
    assert reach([Ended(30, None)], 2.5) == benchmark.Reached(30, 1, False, None)


def test_the_ratio_is_the_median_over_seeds_of_all_the_grids_tokens(capsys):
    searches = [[Ended(100, 2.0)], [Ended(40, None), Ended(100, 2.4)], [Ended(100, 9.0), Ended(280, 8.0)]]
    found = figures(GRID, searches)
    assert found["tokens_ratio"] == pytest.approx(0.35) and found["worst_ratio"] == pytest.approx(0.95)
    assert (found["reached"], found["within_half"], found["seeds"]) == (2, 2, 3)
    assert (found["grid_tokens"], found["grid_best"]) == (400, 2.5)
    report(GRID, searches)
    output = capsys.readouterr().out
    assert json.loads(output.splitlines()[-1])["tokens_ratio"] == 0.35 and "not reached" in output


def test_the_grid_has_every_combination_and_the_quick_one_four():
    from shoestring.search.space import read_space

    assert len(list(read_space(space(6), {}).grid({}))) == 36
    assert len(list(read_space(space(2, quick=True), {}).grid({}))) == 4


def test_a_quick_benchmark_asks_for_equal_trials_of_both(monkeypatch, capsys):
    asked = []

    def searched(folder, space, arguments: argparse.Namespace, **given):
        asked.append((folder.name, arguments.tokens, given))
        return GRID if given["sampler"] == "grid" else [Ended(60, None), Ended(100, 2.5)]

    monkeypatch.setattr(benchmark, "searched", searched)
    monkeypatch.setattr("sys.argv", ["search", "--quick"])
    benchmark.main()
    assert [(name, tokens) for name, tokens, _ in asked] == [("grid", "8k"), ("tpe-1", "8k")]
    assert asked[1][2] == {"sampler": "tpe", "pruner": "hyperband", "seed": 1, "trials": 4, "until": 2.5}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tokens_ratio"] == 0.4
