import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.generate.config import SamplingConfig, sampling_config
from shoestring.generate.sampling import Draw, candidates, choose, distribution, likeliest, penalize

SETTINGS = [
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.6, "top_p": 1.0},
    {"temperature": 1.3, "top_k": 7, "top_p": 1.0},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.4, "top_p": 0.95},
    {"temperature": 0.9, "top_k": 100, "top_p": 0.5},
    {"temperature": 0.9, "top_k": 1, "top_p": 0.5},
    {"temperature": 5.0, "top_p": 0.999},
    {"temperature": 1.0, "top_k": 10_000, "top_p": 1.0},
]


def random_logits(rows=4, vocabulary=2000, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def theirs(logits, config):
    logits = TemperatureLogitsWarper(config.temperature)(None, logits.clone())
    if config.top_k:
        logits = TopKLogitsWarper(config.top_k)(None, logits)
    if config.top_p < 1:
        logits = TopPLogitsWarper(config.top_p)(None, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_distribution_is_that_of_transformers_warpers(settings):
    config = SamplingConfig(**settings)
    ours, expected = distribution(random_logits(), config), theirs(random_logits(), config)
    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours, expected)


def test_tokens_level_with_the_last_of_top_k_stay_as_in_transformers():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0)
    torch.testing.assert_close(distribution(logits, config), theirs(logits, config))
    weights, ids = candidates(logits, config)
    assert set(ids[weights > 0].tolist()) == {0, 2, 3}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_the_sampler_picks_from_is_the_defined_distribution(settings):
    config = SamplingConfig(**settings)
    logits = random_logits()
    weights, ids = candidates(logits / config.temperature, config)
    if ids is None:
        ids = torch.arange(logits.shape[1]).expand_as(logits)
    picked = torch.zeros_like(logits).scatter(-1, ids, weights / weights.sum(-1, keepdim=True))
    torch.testing.assert_close(picked, distribution(logits, config))


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty):
    logits = random_logits(vocabulary=50)
    history = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter(1, history, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone())
    torch.testing.assert_close(penalize(logits, seen, penalty), expected)


def test_repetition_penalty_counts_prompt_and_new_tokens():
    config, tokens = SamplingConfig(temperature=0, repetition_penalty=1000.0), [3]
    for step, expected in enumerate([2, 1, 0]):
        chosen = choose(torch.tensor([[1.0, 2.0, 3.0, 9.0]]), [Draw(config, 0, step, tokens)])
        assert chosen == [expected]
        tokens += chosen


def test_frequencies_follow_the_distribution():
    config = SamplingConfig(temperature=1.0, top_p=0.9, seed=5)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -5.0])
    rows = 20_000
    picks = torch.tensor(choose(logits.expand(rows, 5), [Draw(config, row, 0, [0]) for row in range(rows)]))
    frequencies = torch.bincount(picks, minlength=5) / rows
    expected = distribution(logits.unsqueeze(0), config)[0]
    assert (frequencies - expected).abs().max() < 4 * (0.25 / rows) ** 0.5
    assert frequencies[expected == 0].sum() == 0


MIXED = [
    SamplingConfig(temperature=1.0, top_p=0.97, seed=3),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=1.0, top_p=0.97, seed=4),
    SamplingConfig(temperature=0.7, top_k=9, repetition_penalty=1.3),
]


def test_a_row_sampled_in_a_batch_equals_the_row_alone_whatever_the_settings_of_the_others():
    for step in range(5):
        logits = random_logits(seed=step) / 3
        draws = [Draw(config, row, step, [5, 6]) for row, config in enumerate(MIXED)]
        alone = [choose(logits[row : row + 1], [draw])[0] for row, draw in enumerate(draws)]
        assert choose(logits, draws) == alone
        assert choose(logits[[3, 1]], [draws[3], draws[1]]) == [alone[3], alone[1]]


def test_rows_seeds_and_steps_have_different_random_numbers():
    logits = torch.zeros(1, 10_000)
    places = [(seed, row, 0) for seed in range(3) for row in range(3)] + [(0, 7, step) for step in range(3)]
    draws = [
        choose(logits, [Draw(SamplingConfig(temperature=1.0, top_p=1.0, seed=seed), row, step, [0])])[0]
        for seed, row, step in places
    ]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_output_that_is_not_finite_is_an_error(bad):
    logits = torch.zeros(2, 8)
    logits[1, 3] = bad
    with pytest.raises(ModelFileError, match="not finite"):
        choose(logits, [Draw(SamplingConfig(temperature=0), row, 0, [0]) for row in range(2)])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"temprature": 1.0}, "did you mean temperature"),
        ({"temperature": -1}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"stop": ("",)}, "stop"),
        ({"top_k": "many"}, "top_k 'many'"),
    ],
)
def test_a_wrong_option_is_named(options, said):
    with pytest.raises(ConfigError) as error:
        sampling_config({}, options)
    assert said in str(error.value)


def test_options_of_the_call_win_over_the_model_s_advice_and_none_means_not_given():
    config = sampling_config(
        {"temperature": 0.2, "top_p": 0.5}, {"temperature": 0.9, "top_p": None, "stop": "x"}
    )
    assert (config.temperature, config.top_p, config.stop) == (0.9, 0.5, ("x",))


def test_the_likeliest_token_is_the_first_of_the_highest_and_what_is_no_number_is_seen():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, float("nan"), 9.0, 0.0], [float("inf"), 1.0, 2.0, 3.0]])
    for given in (logits, logits.double(), logits[:, :].bfloat16()):
        best, places = likeliest(given)
        assert best[0] == 3 and places[0] == 1
        assert best[1] != best[1] and best[2] == float("inf") and places[2] == 0
    assert likeliest(torch.arange(24.0).view(2, 12)[:, :7]) == ([6.0, 18.0], [6, 6])
