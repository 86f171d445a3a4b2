"""How many tokens are guessed follows what passes cost and how often guesses are right."""

from __future__ import annotations

import random

import pytest

from shoestring.generate.payoff import Payoff


def run(payoff, cost, right, passes, texts=1, guess_cost=0.0, seed=0):
    """Make passes of texts whose every guess is right with this probability -> how many were guessed in each."""
    draws, asked = random.Random(seed), []
    for _ in range(passes):
        count = payoff.best(texts, texts)
        asked.append(count)
        payoff.passed(texts * (1 + count), cost(texts * (1 + count)))
        if count and guess_cost:
            payoff.guessing(guess_cost)
        for _ in range(texts if count else 0):
            hits = next((i for i in range(count) if draws.random() >= right), count)
            payoff.judged(hits, int(hits < count))
    return asked


def flat(tokens):
    return 1.0


def linear(tokens):
    return float(tokens)


def test_where_more_tokens_cost_nothing_as_many_are_guessed_as_may_be():
    asked = run(Payoff(6), flat, 0.9, 300)
    assert asked[:2] == [0, 0]  # first it is measured what a pass without guesses costs
    assert set(asked[200:]) <= {6, 0} and asked[200:].count(6) > 90


@pytest.mark.parametrize("cost, right", [(linear, 0.95), (flat, 0.0), (lambda tokens: 1 + 0.5 * (tokens - 1), 0.3)])
def test_where_it_does_not_pay_nothing_is_guessed_but_now_and_then(cost, right):
    asked = run(Payoff(6), cost, right, 2000)
    assert sum(map(bool, asked[1000:])) <= 12
    assert any(asked[1000:])  # it is tried again, as texts change


def test_the_number_is_the_one_with_most_tokens_a_second():
    def cost(tokens):
        return 1 + 0.15 * (tokens - 1)

    right = 0.6
    rates = [sum(right**i for i in range(count + 1)) / cost(1 + count) for count in range(9)]
    best = max(range(9), key=rates.__getitem__)
    asked = [count for count in run(Payoff(8), cost, right, 3000)[1000:] if count]
    assert 0 < best < 8 and abs(sum(asked) / len(asked) - best) < 1.2


def test_a_slow_draft_is_given_up_and_a_fast_one_is_not():
    assert sum(map(bool, run(Payoff(6), flat, 0.9, 1000, guess_cost=1.2)[500:])) < 12
    assert sum(map(bool, run(Payoff(6), flat, 0.9, 1000, guess_cost=0.05)[500:])) > 450


def test_guessing_begins_again_where_texts_have_become_easy():
    payoff = Payoff(6)
    run(payoff, lambda tokens: 1 + 0.2 * (tokens - 1), 0.0, 400)
    later = run(payoff, lambda tokens: 1 + 0.2 * (tokens - 1), 1.0, 2000, seed=1)
    assert sum(map(bool, later[-300:])) > 250


def test_with_many_texts_a_pass_is_dear_already_and_with_one_it_is_not():
    def cost(tokens):  # reading weights until arithmetic takes longer
        return max(8.0, float(tokens))

    assert sum(map(bool, run(Payoff(6), cost, 0.7, 600, texts=1)[300:])) > 250
    assert sum(map(bool, run(Payoff(6), cost, 0.7, 600, texts=8)[300:])) < 12


def test_one_slow_pass_is_not_believed():
    payoff, spikes = Payoff(6), iter([9.0, 1.0, 1.0])

    def cost(tokens):
        return next(spikes, 1.0) if tokens > 1 else 1.0

    assert run(payoff, cost, 0.9, 200)[100:].count(6) > 90
