"""A time budget, with a clock that the test turns: on time, schedule finished, changes logged."""

import pytest

from shoestring.train.pace import FixedSteps, TimeBudget
from shoestring.train.state import TrainerState


def run(budget, seconds_of_step, reserve_seconds=0.0, state=None, sessions=None):
    """Steps whose length is a function of the step's number. Returns the state, with the clock in it.

    reserve_seconds: what is to be paid later, or that as a function of the seconds of a step.
    """
    state = state or TrainerState()
    pace = TimeBudget(budget)
    pace.start(state)
    session = 0
    while not pace.is_finished(state):
        pace.expected_steps(state)
        if state.total_steps is not None:
            state.schedule_position()
        seconds = seconds_of_step(state.step)
        state.seconds += seconds
        state.step += 1
        session += 1
        each_reserve = reserve_seconds if callable(reserve_seconds) else lambda _: reserve_seconds
        pace.after_step(state, seconds, lambda _step, _total, each, of=each_reserve: of(each))
        if sessions is not None and session == sessions:
            return state
    state.seconds += 0.0 if callable(reserve_seconds) else reserve_seconds
    return state


def shortened(state):
    return [event for event in state.events if event["event"] == "shortened"]


def test_even_steps_fill_the_budget_without_passing_it():
    state = run(100, lambda step: 0.5, reserve_seconds=10)
    assert 0.96 * 100 <= state.seconds <= 100 and not shortened(state)
    assert state.total_steps == state.planned_steps == state.step


def test_slow_first_steps_do_not_count():
    state = run(100, lambda step: 5.0 if step < 2 else 0.5)
    assert 0.96 * 100 <= state.seconds <= 100


def test_evaluations_are_not_judged_by_a_cold_step():
    state = run(100, lambda step: 5.0 if step < 2 else 0.25, reserve_seconds=lambda each: 40 * each)
    assert 85 <= state.seconds <= 100 and state.step > 200  # 40 x 5 s would be twice the budget


def test_a_machine_that_slows_down_shortens_the_run_and_says_so():
    state = run(100, lambda step: 0.5 if step < 80 else 1.0, reserve_seconds=5)
    assert state.seconds <= 101 and state.seconds > 90
    assert shortened(state) and state.step == state.total_steps < state.planned_steps


def test_a_long_pause_near_the_end_is_at_most_its_own_length_late():
    state = run(100, lambda step: 4.0 if step == 190 else 0.5)
    assert state.seconds <= 102


def test_noise_does_not_shorten_the_run_much():
    state = run(100, lambda step: 0.5 * (1.0 + 0.3 * ((step * 7919) % 11 - 5) / 5))
    assert 0.94 * 100 <= state.seconds <= 100.5


def test_one_step_that_takes_most_of_the_budget_is_the_only_one():
    assert run(10, lambda step: 7.0).step == 1


def test_a_resume_counts_the_time_already_used():
    state = run(100, lambda step: 0.5, sessions=50)
    planned = state.planned_steps
    state = run(100, lambda step: 0.5, state=state)
    assert state.planned_steps == planned and 0.96 * 100 <= state.seconds <= 100


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_evaluations_to_come_are_paid_in_advance(share):
    state = run(100, lambda step: 0.25, reserve_seconds=100 * share)
    assert 94 <= state.seconds <= 100


def test_fixed_steps_ignore_the_clock():
    state, pace = TrainerState(), FixedSteps(7)
    pace.start(state)
    while not pace.is_finished(state):
        state.step += 1
        pace.after_step(state, 1000.0, lambda *_: 0.0)
    assert state.step == 7 and not state.events


def test_a_disturbance_that_passes_does_not_shorten_the_run():
    """Some steps ten times as long, early on, cost what they cost and no more."""
    state = run(1000, lambda step: 5.0 if 100 <= step < 104 else 0.5)
    assert state.seconds <= 1005 and state.step > 0.95 * state.planned_steps


def test_a_disturbance_takes_its_own_time_and_the_rest_of_the_budget_is_used():
    """A fifth of the budget is lost at once: the run is cut, then grows again, and ends on time."""
    state = run(120, lambda step: 5.0 if 60 <= step < 65 else 0.5)
    assert 0.96 * 120 <= state.seconds <= 121
    assert [event["event"] for event in state.events][:2] == ["planned", "shortened"]
    assert state.step == state.total_steps < state.planned_steps


def test_the_schedule_is_finished_and_never_goes_back_when_the_end_moves():
    state = TrainerState()
    state.plan(100)
    positions = []
    for step in range(80):
        if step in (20, 30, 40):
            state.move_end({20: 40, 30: 90, 40: 80}[step])
        positions.append(state.schedule_position())
        state.step += 1
    assert positions == sorted(positions) and positions[0] == 0 and positions[-1] == 99


def test_a_single_step_that_is_left_stands_at_the_end_unless_there_is_time_for_more():
    state = TrainerState()
    state.plan(100)
    state.step = 60
    state.move_end(61)
    assert state.schedule_position() == 99
    state.move_end(90)
    assert state.schedule_position() == 60
