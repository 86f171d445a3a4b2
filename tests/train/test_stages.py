"""Which stage a step belongs to, how many steps a run has, and how long it will take, in runs of several stages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.train.pace import FixedSteps, TimeBudget
from shoestring.train.stages import Stage, Stages, stage_ends, stage_steps, steps_for
from shoestring.train.state import TrainerState

SHARES = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True).map(sorted)


@given(shares=SHARES, total=st.integers(1, 3000))
def test_stages_share_a_run_as_they_say_and_each_has_a_step_where_there_are_as_many(shares, total):
    steps = stage_steps(shares, total)
    assert sum(steps) == total and all(n >= 0 for n in steps) and steps[-1] >= 1
    if total > len(shares):
        assert all(n >= 1 for n in steps)
    if total > 100 * len(shares):
        ends = stage_ends(shares, total)
        assert all(abs(end - share * total) <= len(shares) for end, share in zip(ends, shares, strict=True))


def test_ends_may_be_steps():
    assert stage_ends([2, 5], 9) == [2, 5] and stage_steps([2, 5], 9) == [2, 3, 4]


@given(shares=SHARES, tokens=st.integers(1, 10**6), data=st.data())
def test_the_steps_of_a_number_of_tokens_have_them_and_one_fewer_does_not(shares, tokens, data):
    batches = data.draw(st.lists(st.integers(1, 500), min_size=len(shares) + 1, max_size=len(shares) + 1))

    def read(total):
        return sum(n * each for n, each in zip(stage_steps(shares, total), batches, strict=True))

    steps = steps_for(tokens, shares, batches)
    assert read(steps) >= tokens and (steps == 1 or read(steps - 1) < tokens)


def test_without_stages_tokens_are_rounded_up_to_whole_steps():
    assert [steps_for(tokens, [], [8]) for tokens in (1, 8, 9, 80)] == [1, 1, 2, 10]


def run(until, seconds, budget=None, steps=None, predicted=None, sessions=None, state=None):
    """Steps whose length depends on the stage, by a clock that the test turns; -> state, stage of each step, pace."""
    predicted = predicted or seconds
    stages = Stages(tuple(Stage(1, seconds=each) for each in predicted), until, lambda number: None)
    state, walked = state or TrainerState(), []
    pace = TimeBudget(budget, stages) if steps is None else FixedSteps(steps, stages)
    pace.start(state)
    while not pace.is_finished(state):
        where = state.schedule_position() if state.planned_steps is not None else float(state.step)
        if (number := stages.of(state, where)) != state.stage:
            stages.change(state, number)
        walked.append(state.stage)
        each = seconds[state.stage]
        state.seconds += each
        state.step += 1
        pace.after_step(state, each, lambda *_: 0.0)
        if sessions is not None and len(walked) == sessions:
            break
    return state, walked, pace


def test_a_run_of_steps_changes_where_it_says_and_knows_how_long_the_rest_takes():
    state, walked, _ = run((0.25, 0.5), (1.0, 2.0, 8.0), steps=40)
    assert [walked.count(stage) for stage in range(3)] == [10, 10, 20] and walked == sorted(walked)
    changes = [event for event in state.events if event["event"] == "stage"]
    assert [(event["step"], event["stage"]) for event in changes] == [(11, 2), (21, 3)]
    state, _, pace = run((0.25, 0.5), (1.0, 2.0, 8.0), steps=40, sessions=4)
    assert pace.seconds_left(state) == pytest.approx(6 * 1 + 10 * 2 + 20 * 8)


@pytest.mark.parametrize("seconds", [(0.1, 0.8), (0.5, 0.5), (0.9, 0.1)])
def test_a_time_holds_stages_of_different_cost_and_the_first_plan_is_kept(seconds):
    state, walked, _ = run((0.4,), seconds, budget=100)
    assert 0.96 * 100 <= state.seconds <= 100
    assert [event["event"] for event in state.events] == ["planned", "stage"]
    assert walked.count(0) == pytest.approx(0.4 * state.step, abs=2) and state.step == state.planned_steps


def test_a_stage_slower_than_predicted_shortens_the_run_and_every_stage_is_reached():
    state, walked, _ = run((0.3, 0.6), (0.1, 0.4, 0.8), budget=100, predicted=(0.1, 0.2, 0.3))
    assert state.seconds <= 101 and state.step < state.planned_steps and set(walked) == {0, 1, 2}
    assert walked == sorted(walked) and any(event["event"] == "shortened" for event in state.events)


def test_a_resumed_session_goes_on_in_its_stage_and_ends_on_time():
    state, _, _ = run((0.4,), (0.1, 0.8), budget=100, sessions=150)
    stage, planned = state.stage, state.planned_steps
    state, walked, _ = run((0.4,), (0.1, 0.8), budget=100, state=state)
    assert stage == 1 and set(walked) == {1} and state.planned_steps == planned and 94 <= state.seconds <= 100


def test_a_longer_run_never_goes_back_to_an_earlier_stage():
    state, _, _ = run((0.5,), (1.0, 1.0), steps=10, sessions=6)
    assert state.stage == 1
    state.extend(100)
    state, walked, _ = run((0.5,), (1.0, 1.0), steps=100, state=state)
    assert set(walked) == {1} and state.step == 100
