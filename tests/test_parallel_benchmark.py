"""What the benchmark of two ranks makes of its rounds, and one round of it."""

import os
import sys

import pytest

from benchmarks import parallel


def rounds(seconds, waited, memory=100, predicted=100):
    """found[round][rank] of equal ranks."""
    of_rank = {"tokens": 1000, "memory": memory, "predicted": predicted}
    return [[{**of_rank, "seconds": s, "waited": w * s} for w in waited] for s in seconds]


def test_efficiency_is_of_twice_one_rank_and_waiting_is_told_by_rank():
    found = {
        "one": rounds([1.0, 1.0, 9.0], [0.0]),
        "ddp": rounds([0.5, 0.625, 0.7], [0.1, 0.2]),
        "fsdp": rounds([1.0, 1.0, 1.0], [0.3, 0.4], memory=95),
    }
    told = parallel.figures(found)
    assert told["efficiency"] == pytest.approx(0.8) and told["efficiency_fsdp"] == pytest.approx(0.5)
    waiting = [told[name] for name in ("waiting_0", "waiting_1", "waiting_fsdp_0", "waiting_fsdp_1")]
    assert waiting == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert told["memory_error"] == pytest.approx(0.05)


def test_memory_that_nothing_counts_is_no_figure():
    found = {kind: rounds([1.0], [0.0, 0.0], memory=None) for kind in parallel.KINDS}
    assert "memory_error" not in parallel.figures(found)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="two cores to be pinned to")
def test_a_round_measures_both_ranks_of_the_smoke_recipe():
    cores = sorted(os.sched_getaffinity(0))[:2]
    first, second = parallel.ranks("fsdp", "velocity-2b-smoke", 4, cores)
    assert first["tokens"] == second["tokens"] == parallel.TOKENS
    assert 0 < first["waited"] < first["seconds"] and first["memory"] < 1.2 * second["memory"]
