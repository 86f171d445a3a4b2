"""Typical sampling, penalties, bias and log-probabilities, held to transformers' processors and to chi-square."""

import pytest
import torch
from scipy.stats import chi2
from transformers import SequenceBiasLogitsProcessor, TypicalLogitsWarper

from shoestring.core.errors import ConfigError
from shoestring.generate.config import SamplingConfig, sampling_config
from shoestring.generate.sampling import Draw, adjusted, candidates, chances, choose, distribution
from tests.generate.tiny import tiny_model

OPEN = {"temperature": 1.0, "top_p": 1.0}


def random_logits(rows=4, vocabulary=500, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("mass", [0.05, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("rest", [{}, {"top_k": 30}, {"top_p": 0.9}, {"min_p": 0.05}], ids=str)
def test_typical_is_that_of_transformers(mass, rest):
    config = SamplingConfig(**{**OPEN, **rest}, typical_p=mass)
    logits = random_logits()
    before = distribution(logits, config.model_copy(update={"typical_p": 1.0})).log()
    expected = TypicalLogitsWarper(mass)(None, before).softmax(-1)
    torch.testing.assert_close(distribution(logits, config), expected)
    weights, ids = candidates(logits, config)
    ids = torch.arange(500).expand_as(logits) if ids is None else ids
    picked = torch.zeros_like(logits).scatter(-1, ids, weights / weights.sum(-1, keepdim=True))
    torch.testing.assert_close(picked, expected)


FILTERS = [
    {}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}, {"typical_p": 0.6},
    {"logit_bias": {1: 1.5, 4: 3.0}}, {"temperature": 1.7, "top_k": 5, "top_p": 0.95, "min_p": 0.05},
]  # fmt: skip


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_what_is_drawn_has_the_defined_distribution_by_chi_square(settings):
    config, rows = SamplingConfig(**{**OPEN, **settings}, seed=11), 8000
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    biased = logits.clone()
    for token, value in config.logit_bias:
        biased[0, token] += value
    expected = distribution(biased, config)[0].double() * rows
    picks = torch.tensor(choose(logits.expand(rows, 6), [Draw(config, row, 0, [0]) for row in range(rows)]))
    counts = torch.bincount(picks, minlength=6).double()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert kept.sum() == 1 or statistic < chi2.ppf(0.9999, int(kept.sum()) - 1)


def test_logit_bias_is_that_of_transformers():
    logits, bias = random_logits(1, 12), {3: 2.5, 7: -4.0}
    config = SamplingConfig(temperature=0, logit_bias=bias)
    judge = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    expected = judge(torch.tensor([[0]]), logits.clone())
    torch.testing.assert_close(adjusted(logits, [Draw(config, 0, 0, [0])]), expected)


def test_presence_and_frequency_count_the_new_tokens_only():
    logits, tokens = torch.zeros(1, 6), [4, 4, 5, 1, 2, 1]  # of which the last three are new
    config = SamplingConfig(presence_penalty=0.5, frequency_penalty=0.25)
    found = adjusted(logits, [Draw(config, 0, 3, tokens)])[0].tolist()
    assert found == [0.0, -1.0, -0.75, 0.0, 0.0, 0.0]
    assert adjusted(logits, [Draw(config, 0, 0, tokens)])[0].tolist() == [0.0] * 6


def test_log_probabilities_are_of_the_model_itself():
    model = tiny_model()
    options = {"temperature": 0.9, "top_k": 5, "frequency_penalty": 0.5, "max_tokens": 6, "logprobs": 3}
    done = model.complete(["abc"], **options)[0]
    assert done.text == model.complete(["abc"], **{**options, "logprobs": None})[0].text
    ids = [*model.encode_prompt("abc"), *done.tokens]
    hidden, _ = model.decoder(torch.tensor([ids]))
    logprobs = model.decoder.head(hidden)[0, 2:-1, :258].log_softmax(-1)
    assert len(done.chances) == 6
    for row, token, chance in zip(logprobs, done.tokens, done.chances, strict=True):
        assert chance.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [token for token, _ in chance.top] == row.topk(3).indices.tolist()
    assert chances(torch.zeros(1, 4), [2], [0])[0].top == ()
    assert chances(torch.zeros(1, 4), [2], [None]) == [None]


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature):
    config = SamplingConfig(temperature=temperature)
    logits = random_logits() * 100
    draws = [Draw(config, row, 0, [0]) for row in range(4)]
    assert choose(logits, draws) == logits.argmax(-1).tolist()
    assert distribution(logits, config).argmax(-1).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("settings", [*FILTERS[:6], {"top_k": 10**9}], ids=str)
def test_one_token_that_is_left_is_chosen(settings):
    logits = torch.full((1, 9), float("-inf"))
    logits[0, 6] = -2.0
    assert choose(logits, [Draw(SamplingConfig(**{**OPEN, **settings}), 0, 0, [0])]) == [6]


def test_several_texts_of_a_prompt_are_what_equal_prompts_give():
    model, options = tiny_model(), {"temperature": 1.0, "max_tokens": 8}
    texts = model.generate("abc", num_return_sequences=3, **options)
    assert texts == model.generate(["abc"] * 3, **options) and len(set(texts)) == 3
    assert len(model.generate(["a", "b"], num_return_sequences=2, **options)) == 4
    assert model.generate([], **options) == []


def test_a_row_with_settings_of_its_own_leaves_its_neighbours_alone():
    mixed = [
        SamplingConfig(**OPEN, presence_penalty=1.0), SamplingConfig(**OPEN, logit_bias={3: 9.0}),
        SamplingConfig(**OPEN, typical_p=0.3), SamplingConfig(temperature=0, frequency_penalty=2.0), SamplingConfig(),
    ]  # fmt: skip
    logits = random_logits(5).bfloat16()
    draws = [Draw(config, row, 2, [5, 6, 6]) for row, config in enumerate(mixed)]
    alone = [choose(logits[row : row + 1], [draw])[0] for row, draw in enumerate(draws)]
    assert choose(logits, draws) == alone


@pytest.mark.parametrize(
    "options, said",
    [
        ({"num_beams": 2, "temperature": 0.5}, "no use for temperature"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams cannot become"),
        ({"temperature": 0, "num_return_sequences": 3}, "the same text"),
        ({"length_penalty": 2.0}, "num_beams is 1"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar cannot be combined"),
        ({"typical_p": 0.0}, "typical_p 0.0"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias"),
    ],
)
def test_settings_that_cannot_be_or_cannot_be_combined_are_refused(options, said):
    with pytest.raises(ConfigError, match=said) as error:
        sampling_config({}, options)
    assert str(error.value).count("\n") <= 1


def test_a_bias_for_a_token_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="token 258, and the tokenizer has ids from 0 to 257"):
        tiny_model().generate("a", logit_bias={258: 1.0})


def test_log_probabilities_are_refused_where_only_text_is_given():
    model = tiny_model()
    for ask in (model.generate, model.stream, model.chat, model.chat_stream):
        with pytest.raises(ConfigError, match="logprobs cannot be combined with .* text alone"):
            ask("a", logprobs=1)


@pytest.mark.parametrize("settings", [{"stop_tokens": (258,)}, {"bad_words_ids": ((3, 258),)}, {"stop_tokens": (-1,)}])
def test_ids_that_are_none_are_refused_by_the_setting_that_names_them(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} names token (258|-1), and the tokenizer has ids"):
        tiny_model().generate("a", **settings)
