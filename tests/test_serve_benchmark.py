"""The benchmark of serving: what it asks, how it counts, and its figures."""

import asyncio
import json
import sys
from collections import Counter

import pytest

from benchmarks import serve
from benchmarks.serve import LEFT, Figures, Server, ask, asking, measure, report, start, storm
from tests.generate.tiny import tiny_model
from tests.serve.served import listening, tiny_app


@pytest.fixture(scope="module")
def server():
    with listening(tiny_app(tiny_model(context=700), slots=16)) as address:
        yield Server("ours", None, int(address.rpartition(":")[2]), "tiny", {"min_tokens": int})


def test_a_round_counts_the_tokens_of_one_stream_and_of_many(server):
    figures = Figures()
    measure(server, figures, streams=3, new=5, seed=1)
    assert len(figures.one) == len(figures.many) == 1 and len(figures.firsts) == 3
    assert figures.one[0] > 0 and all(first > 0 for first in figures.firsts)


def test_a_server_that_writes_less_than_was_asked_for_is_no_measurement(server):
    short = Server("short", None, server.port, "tiny", {"stop_tokens": list(range(256)), "min_tokens": 0})
    with pytest.raises(SystemExit, match="did not write 5 tokens for each request"):
        measure(short, Figures(), streams=2, new=5, seed=1)


def test_clients_that_misbehave_are_all_counted(server):
    statuses, memory = asyncio.run(storm(server, 60, 8))
    assert sum(statuses.values()) == 60 and set(statuses) <= {200, 400, 413, LEFT}
    assert statuses[200] > 20 and statuses[400] > 5 and statuses[413] > 0
    assert len(memory) == 3 and min(memory) > 10e6


def test_a_client_that_leaves_is_no_answer(server):
    import random

    found = asyncio.run(ask(server.port, asking(server, random.Random(1), 500), leave_after=0.001))
    assert found.status == LEFT


def test_figures_are_ratios_and_count_what_went_wrong(capsys):
    servers = [Server(name, None, 0, name, {}) for name in ("ours", "theirs", "others")]
    figures = [Figures([100, 100], [400, 500], [0.1, 0.2]), Figures([90, 90], [200, 200], [0.4, 0.8]),
               Figures([90, 90], [300, 300], [0.4, 0.8])]  # fmt: skip
    statuses = Counter({200: 5, 429: 2, 503: 1, 500: 3, 0: 1, LEFT: 4})
    report(servers, figures, 16, statuses, [50e6, 100e6, 101e6])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "single_ratio": 4.5, "throughput_ratio": 2.25, "throughput_ratio_best": 1.5, "p99_ratio": 0.25, "errors": 4,
        "memory_growth": 1.01,
    }  # fmt: skip


def test_a_server_that_ends_is_told():
    with pytest.raises(SystemExit, match="gone ended: (?s:.*)no such thing"):
        start("gone", [sys.executable, "-c", "raise SystemExit('no such thing')"], serve.free_port())
