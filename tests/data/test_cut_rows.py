"""A loader whose rows change their length: nothing is read twice, little is passed over, any point is resumed."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.core.errors import DataError
from shoestring.data.loader import PackedLoader
from tests.data.made import made_shards
from tests.data.test_loader import _same, _take

WHOLE = 24
# Stages: (row length, rows of a step, steps)
STAGES = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), st.integers(1, 6), st.integers(0, 7)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return made_shards(tmp_path_factory.mktemp("shards"), [(n * 7) % 61 for n in range(200)], per_shard=50)


def read(loader, stages):
    """The labels of each stage's steps; labels are all different but for separators."""
    found = []
    for length, rows, steps in stages:
        loader.cut(length, rows, rows)
        found.append([token for batch in _take(loader, steps) for token in batch.labels_BT.flatten().tolist() if token])
    return found


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stages=STAGES, seed=st.integers(0, 5))
def test_nothing_is_read_twice_and_only_open_samples_are_passed_over(shards, stages, seed):
    loader = PackedLoader(shards, "train", WHOLE, 1, seed)
    read_tokens = sum(length * rows * steps for length, rows, steps in stages)
    passed_over = sum(rows * (WHOLE - length) for length, rows, _ in stages)
    if read_tokens + passed_over > loader.samples_per_epoch * WHOLE:
        return  # a second epoch reads again
    found = [token for part in read(loader, stages) for token in part]
    assert len(found) == len(set(found))
    state = loader.state()
    sample, taken = state["place"]
    opened = (sample + bool(taken) * state.get("group", 0)) * WHOLE
    assert read_tokens <= opened <= read_tokens + passed_over


def test_rows_as_long_as_before_are_those_that_are_not_cut(shards):
    plain, cut = (PackedLoader(shards, "train", WHOLE, 3, 1) for _ in range(2))
    cut.cut(WHOLE, 3, 3)
    assert all(_same(a, b) for a, b in zip(_take(plain, 9), _take(cut, 9), strict=True))
    assert plain.state() == cut.state() and "pieces" not in cut.state()


def test_rows_of_a_batch_come_from_different_samples_and_steps_read_on_in_them(shards):
    loader = PackedLoader(shards, "train", WHOLE, 1, 3, separate_documents=False)
    whole = [row.tolist() for batch in _take(PackedLoader(shards, "train", WHOLE, 4, 3, separate_documents=False), 2)
             for row in batch.tokens_BT]  # fmt: skip
    loader.cut(8, 4, 2)
    steps = [torch.cat([batch.tokens_BT for batch in _take(loader, 2)]).tolist() for _ in range(6)]
    for piece in range(3):
        assert steps[piece] == [row[8 * piece : 8 * piece + 8] for row in whole[:4]]
        assert steps[3 + piece] == [row[8 * piece : 8 * piece + 8] for row in whole[4:]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stages=STAGES, more=st.integers(0, 3), prefetch=st.sampled_from([0, 2]), world=st.sampled_from([1, 2]))
def test_restoring_in_any_stage_gives_exactly_the_next_batch(shards, stages, more, prefetch, world):
    stages = [(length, rows * world, steps) for length, rows, steps in stages]
    straight = PackedLoader(shards, "train", WHOLE, 1, 7, 0, world, prefetch=prefetch)
    for length, rows, steps in stages:
        straight.cut(length, rows, rows // world)
        _take(straight, steps + more)
    state = json.loads(json.dumps(straight.state()))
    resumed = PackedLoader(shards, "train", WHOLE, 1, 7, 0, world)
    resumed.cut(stages[-1][0], stages[-1][1], stages[-1][1] // world)
    resumed.restore(state)
    assert all(_same(a, b) for a, b in zip(_take(straight, 4), _take(resumed, 4), strict=True))
    assert straight.state() == resumed.state()
    straight.close()


def test_ranks_share_the_rows_of_a_cut_step(shards):
    alone, ranks = PackedLoader(shards, "train", WHOLE, 1, 5), []
    alone.cut(6, 4, 4)
    for rank in range(2):
        ranks.append(PackedLoader(shards, "train", WHOLE, 1, 5, rank, 2))
        ranks[-1].cut(6, 4, 2)
    for _ in range(9):
        whole, parts = next(alone).tokens_BT, [next(rank).tokens_BT for rank in ranks]
        assert torch.stack(parts, 1).flatten(0, 1).equal(whole)


def test_a_place_of_another_stage_or_of_none_is_refused(shards):
    loader = PackedLoader(shards, "train", WHOLE, 1, 1)
    loader.cut(8, 4, 4)
    next(loader)
    state = loader.state()
    with pytest.raises(DataError, match="has pieces 3, this one None"):
        PackedLoader(shards, "train", WHOLE, 1, 1).restore(state)
    for taken in (-1, 12, 1.5, None):
        with pytest.raises(DataError, match="no place in its data"):
            loader.restore({**state, "place": [0, taken]})
