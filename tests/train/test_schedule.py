"""Shapes of the learning rate, and what a run that is shortened walks through."""

import functools
import math

import pytest

from shoestring.train.schedule import build_schedule
from shoestring.train.schedule_config import CosineConfig, CosineRestartsConfig, LinearConfig, WSDConfig
from shoestring.train.state import TrainerState, is_due, times_left


def shares(config, total):
    schedule = build_schedule(config)
    return [schedule(step, total) for step in range(total)]


def test_cosine_rises_to_one_and_falls_to_final():
    values = shares(CosineConfig(warmup=10, final=0.1), 100)
    assert values[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert max(values) == values[10] == 1.0 and values[-1] == pytest.approx(0.1)
    assert values[10:] == sorted(values[10:], reverse=True)
    middle = 0.1 + 0.9 * (1 + math.cos(math.pi * 40 / 89)) / 2
    assert values[50] == pytest.approx(middle)


def test_wsd_is_flat_and_then_falls_in_a_straight_line():
    values = shares(WSDConfig(warmup=0.1, decay=0.2), 100)
    assert set(values[10:80]) == {1.0} and values[80] < 1
    steps = [a - b for a, b in zip(values[80:], values[81:], strict=False)]
    assert steps == pytest.approx([1 / 21] * len(steps)) and values[-1] == pytest.approx(1 / 21)


@pytest.mark.parametrize(
    "config",
    [
        CosineConfig(warmup=0.0), WSDConfig(warmup=0.5, decay=0.9), CosineConfig(warmup=50), LinearConfig(warmup=0.5),
        WSDConfig(warmup=0.0, decay=0.9, shape="sqrt"), CosineRestartsConfig(warmup=0.3, cycles=3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("total", [1, 2, 7])
def test_runs_of_a_few_steps_have_shares_above_zero(config, total):
    assert all(0 < value <= 1 for value in shares(config, total))


def test_a_shortened_run_finishes_its_schedule_without_a_jump():
    schedule = build_schedule(WSDConfig(warmup=0.0, decay=0.5))
    state = TrainerState()
    state.plan(100)
    walked = []
    while state.step < state.total_steps:
        walked.append(schedule(state.schedule_position(), state.planned_steps))
        state.step += 1
        if state.step == 60:
            state.move_end(80)
    assert len(walked) == 80 and state.events[-1]["event"] == "shortened"
    changes = [a - b for a, b in zip(walked, walked[1:], strict=False)]
    assert max(changes) <= 2.1 / 51 and walked[-1] < 0.07


def test_what_is_due_a_number_of_times_is_done_that_often():
    for total in (1, 4, 10, 37, 100):
        done = [step for step in range(1, total + 1) if is_due(step, total, None, 4)]
        assert len(done) == min(4, total) and done[-1] == total
        for step in range(total):
            assert times_left(step, total, None, 4) == sum(d > step and d != total for d in done)
            every = [s for s in range(1, total + 1) if is_due(s, total, 3, 4)]
            assert times_left(step, total, 3, 4) == sum(d > step and d != total for d in every)


def test_restarts_begin_at_the_highest_rate_and_each_cycle_is_longer():
    config = CosineRestartsConfig(warmup=10, cycles=3, growth=2.0, final=0.1)
    shares = [build_schedule(config)(step, 80) for step in range(80)]
    tops = [step for step in range(10, 80) if shares[step] == pytest.approx(1.0)]
    assert tops == [10, 20, 40], "cycles of 10, 20 and 40 steps"
    assert [shares[step] for step in (19, 39, 79)] == pytest.approx([0.1] * 3)
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    once = build_schedule(CosineRestartsConfig(warmup=10, cycles=1))
    plain = build_schedule(CosineConfig(warmup=10))
    assert all(once(step, 80) == plain(step, 80) for step in range(80))


def test_wsd_with_shape_sqrt_falls_as_one_minus_the_root_of_what_is_done():
    values = shares(WSDConfig(warmup=10, decay=40, shape="sqrt", final=0.1), 100)
    assert values[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert set(values[10:60]) == {1.0}
    plain = [0.1 + 0.9 * (1 - ((step - 59) / 41) ** 0.5) for step in range(60, 100)]
    assert values[60:] == pytest.approx(plain)
    straight = shares(WSDConfig(warmup=10, decay=40, final=0.1), 100)
    assert all(root < line for root, line in zip(values[60:], straight[60:], strict=True)), "it falls faster at first"


def test_linear_goes_from_the_highest_rate_in_equal_steps_to_nothing_after_the_last():
    values = shares(LinearConfig(warmup=20), 100)
    assert values[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert values[20:] == pytest.approx([(100 - step) / 80 for step in range(20, 100)])
    ends_higher = shares(LinearConfig(warmup=0.2, final=0.5), 100)
    assert ends_higher[20:] == pytest.approx([0.5 + 0.5 * (100 - step) / 80 for step in range(20, 100)])


@pytest.mark.parametrize("warmup", [0.0, 0.05, 1, 7, 0.5])
@pytest.mark.parametrize(
    "kind", [CosineConfig, CosineRestartsConfig, LinearConfig, WSDConfig, functools.partial(WSDConfig, shape="sqrt")]
)
def test_every_schedule_rises_in_a_line_to_the_highest_rate_and_never_passes_its_bounds(kind, warmup):
    config, total = kind(warmup=warmup, final=0.2), 60
    values, steps = shares(config, total), round(warmup * total) if warmup < 1 else warmup
    assert values[:steps] == pytest.approx([(step + 1) / (steps + 1) for step in range(steps)])
    assert values[steps] == 1.0 and all(0.2 <= value <= 1 for value in values[steps:])
