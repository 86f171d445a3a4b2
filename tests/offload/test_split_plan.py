"""The order in which stages run their microbatches, how many there are, and what a part is predicted to take."""

from __future__ import annotations

import pytest

from shoestring.core.errors import ConfigError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.offload.pipeline.model import split_off
from shoestring.offload.pipeline.place import Place, place_of
from shoestring.offload.pipeline.planned import config_of_part, filling_microbatch
from shoestring.offload.pipeline.schedule import in_flight, turns
from shoestring.offload.pipeline.wire import Wire
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine
from tests.offload.split_cases import CASES, SHAPE
from tests.offload.split_ranks import RANGES


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("microbatches", [1, 2, 4, 7])
def test_every_stage_gets_what_it_waits_for_and_keeps_few_microbatches(stages, microbatches):
    """Run by hand: a stage takes its turn once its neighbour has sent what it needs."""
    left = [list(turns(rank, stages, microbatches)) for rank in range(stages)]
    done: set[tuple[int, str, int]] = set()
    kept, most = [0] * stages, [0] * stages
    while any(left):
        before = len(done)
        for rank in range(stages):
            if not left[rank]:
                continue
            kind, number = left[rank][0]
            needs = (rank - 1, kind, number) if kind == "forward" else (rank + 1, kind, number)
            if 0 <= needs[0] < stages and needs not in done:
                continue
            assert kind == "forward" or (rank, "forward", number) in done
            kept[rank] += 1 if kind == "forward" else -1
            most[rank] = max(most[rank], kept[rank])
            done.add((rank, *left[rank].pop(0)))
        assert len(done) > before, "all wait for one another"
    assert len(done) == 2 * stages * microbatches and kept == [0] * stages
    assert most == [in_flight(rank, stages, microbatches) for rank in range(stages)]


def test_a_step_has_four_microbatches_for_each_machine_where_its_rows_allow_it():
    assert filling_microbatch(64, 256, 1024, 2) == 4  # as without machines: 1,024 tokens at once
    assert filling_microbatch(16, 256, 1024, 2) == 2
    assert filling_microbatch(3, 256, 1024, 2) == 1


@pytest.mark.parametrize("name", CASES)
def test_each_part_is_predicted_to_take_less_than_the_whole_and_together_no_less(name):
    config = ModelConfig.model_validate({**SHAPE, **CASES[name].shape, "width": 256})
    spec, machine = EngineSpec("resident", 1), Machine(10**8, 1e9)

    def weights(shape: ModelConfig) -> int:
        return dict(predict(JobShape(shape, 4, 16), spec, machine).tensors)["weights"]

    whole = weights(config)
    parts = [weights(config_of_part(config, Place(rank, RANGES[3]))) for rank in range(3)]
    assert max(parts) <= whole <= sum(parts)
    if config.sharing is None:
        assert max(parts) < whole


def test_a_memory_that_outlives_a_batch_is_refused():
    memory = {"layers": [1], "scope": "persistent"}
    whole = build(ModelConfig.model_validate({**SHAPE, "memory": memory}), device="meta")
    with pytest.raises(ConfigError, match="a model with a persistent memory cannot be split over machines"):
        split_off(whole, Place(0, RANGES[2]), Wire(), trained=True)


def test_a_split_that_does_not_fit_the_processes_is_refused():
    config = ModelConfig.model_validate(SHAPE)
    assert place_of(None, config) is None
    with pytest.raises(ConfigError, match="a split over 2 machines, and here are 1"):
        place_of(RANGES[2], config)
