"""Which engine a budget gets, from predictions alone: no model is made."""

from __future__ import annotations

import pytest

from shoestring.core.errors import BudgetError
from shoestring.plan import predict as module
from shoestring.plan.choose import candidates, choose
from shoestring.plan.constants import SPARE
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Options, Training
from tests.plan.counted import config

MACHINE = Machine(process=100_000_000, flops=1e11)
SHAPE = JobShape(config(512, vocabulary=8000, layers=32), 8, 256, Training(False, 8), "bfloat16")
OPTIONS = Options(("resident", "checkpointed", "streamed"), usual=2)


def least(engine: str) -> int:
    specs = candidates(SHAPE, OPTIONS, limited=True)
    return min(predict(SHAPE, spec, MACHINE).total for spec in specs if spec.engine == engine)


def test_without_a_budget_the_first_engine_is_taken():
    assert choose(SHAPE, MACHINE, None, OPTIONS).spec == EngineSpec("resident", 2)


@pytest.mark.parametrize(
    ("engine", "others"), [("resident", {"checkpointed", "streamed"}), ("checkpointed", {"streamed"})]
)
def test_a_budget_just_below_an_engines_least_gets_another(engine, others):
    budget = int(least(engine) / SPARE) - 1_000_000
    choice = choose(SHAPE, MACHINE, budget, OPTIONS)
    assert choice.spec.engine in others and choice.prediction.total <= budget * SPARE


def test_engines_take_less_in_their_order_and_more_tokens_at_once_take_more():
    assert least("streamed") < least("checkpointed") < least("resident")
    one, two = (predict(SHAPE, EngineSpec("checkpointed", rows, "full"), MACHINE).total for rows in (1, 2))
    assert one < two


def test_too_little_is_refused_with_a_budget_that_would_do():
    with pytest.raises(BudgetError) as refused:
        choose(SHAPE, MACHINE, 50_000_000, OPTIONS)
    enough = int(str(refused.value.hint).split("--memory ")[1].split("MB")[0]) * 1_000_000
    assert choose(SHAPE, MACHINE, enough, OPTIONS).prediction.total <= enough * SPARE
    with pytest.raises(BudgetError):
        choose(SHAPE, MACHINE, enough - 20_000_000, OPTIONS)


def test_the_lines_add_up_to_the_total():
    for spec in candidates(SHAPE, OPTIONS, limited=True):
        prediction = predict(SHAPE, spec, MACHINE)
        assert sum(size for _, size in prediction.lines) == prediction.total and all(
            size >= 0 for _, size in prediction.lines
        )


def test_candidates_that_differ_in_layers_held_alone_are_walked_once():
    module._walk.cache_clear()
    specs = list(candidates(SHAPE, OPTIONS, limited=True))
    for spec in specs:
        predict(SHAPE, spec, MACHINE)
    assert module._walk.cache_info().misses == len({(s.engine, s.microbatch, s.spilled) for s in specs}) < len(specs)
