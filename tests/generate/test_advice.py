"""generation_config.json as settings of ours, each held to transformers' processors; what is not done is named."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    GenerationConfig,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
)

from shoestring.core.errors import ModelFileError
from shoestring.generate.advice import _NEUTRAL, advice
from shoestring.generate.config import SamplingConfig, sampling_config
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.sampling import Draw, candidates, choose, distribution, forbidden
from shoestring.models.folder import save_model
from tests.generate.tiny import END, byte_tokenizer, tiny_decoder


def test_do_sample_false_is_greedy():
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.2}
    assert advice(settings).sampling == {"temperature": 0.0, "repetition_penalty": 1.2}


@pytest.mark.parametrize("do_sample", [{"do_sample": True}, {}])
def test_settings_of_sampling_are_taken(do_sample):
    settings = {"temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
    assert advice({**settings, **do_sample}).sampling == settings


def test_a_file_that_only_names_ids_leaves_our_defaults():
    assert advice({"_from_model_config": True, "max_length": 20}) == ({}, [])


def test_every_setting_that_we_have_is_read():
    settings = {
        "min_new_tokens": 2, "min_length": 9, "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [6, 7]],
        "stop_strings": ["x"], "do_sample": True, "temperature": 0.5,
    }  # fmt: skip
    found = sampling_config(advice(settings).sampling, {})
    assert (found.min_tokens, found.min_length, found.no_repeat_ngram_size) == (2, 9, 3)
    assert (found.bad_words_ids, found.stop, found.temperature) == (((5,), (6, 7)), ("x",), 0.5)


def test_what_changes_the_text_and_is_not_done_is_named():
    settings = {"num_beams": 4, "typical_p": 0.9, "suppress_tokens": [3], "penalty_alpha": None, "guidance_scale": 1.0}
    assert set(advice(settings).unused) == {"num_beams", "typical_p", "suppress_tokens"}


def test_transformers_own_defaults_are_named_by_nothing():
    values = {key: value for key, value in GenerationConfig().to_dict().items() if not key.endswith("_token_id")}
    assert advice({**values, **GenerationConfig._get_default_generation_params(), "do_sample": True}).unused == []
    assert {"num_beams", "typical_p", "suppress_tokens"} <= _NEUTRAL.keys()


@pytest.mark.parametrize(
    "settings", [{"temperature": "hot"}, {"top_p": 3.0}, {"bad_words_ids": [[]]}, {"no_repeat_ngram_size": -1}], ids=str
)
def test_a_value_that_cannot_be_is_a_sentence_about_the_file(settings):
    with pytest.raises(ModelFileError, match=next(iter(settings))):
        advice(settings, "generation_config.json")


def test_a_model_is_loaded_with_its_advice_and_what_is_not_done_is_said(tmp_path):
    save_model(tiny_decoder(), tmp_path / "model", byte_tokenizer())
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_sample": False, "num_beams": 4}))
    said: list[str] = []
    model = LanguageModel.load(tmp_path / "model", device="cpu", say=said.append)
    assert model.sampling().temperature == 0
    assert said == ["generation_config.json: not done here: num_beams"]
    assert model.generate("abc", max_tokens=8) == model.generate("abc", max_tokens=8, temperature=0)


# Against transformers

HISTORY = [4, 7, 2, 7, 2, 5, 9, 7]
LOGITS = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))


def ours(ends=frozenset(), new=3, **settings) -> set[int]:
    return forbidden(Draw(SamplingConfig(**settings), 0, new, HISTORY, ends))


def theirs(processor, history=HISTORY) -> set[int]:
    found = processor(torch.tensor([history]), LOGITS.clone())
    return set(found[0].isneginf().nonzero().flatten().tolist())


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 20])
def test_repeated_ngrams_are_those_of_transformers(size):
    assert ours(no_repeat_ngram_size=size) == theirs(NoRepeatNGramLogitsProcessor(size))


BAD_WORDS = [
    [[3]], [[9, 7, 1]], [[9, 7, 1], [7, 6], [2, 6], [11], [10]], [[*HISTORY, 1], [0, *HISTORY, 2]],
]  # fmt: skip


@pytest.mark.parametrize("words", BAD_WORDS)
def test_bad_words_are_those_of_transformers(words):
    found = ours(frozenset({11}), bad_words_ids=tuple(map(tuple, words)))
    assert found == theirs(NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([11])))


@pytest.mark.parametrize("least", [0, 3, 4, 8, 9, 12])
def test_the_least_lengths_are_those_of_transformers(least):
    ends = torch.tensor([3, 11])
    assert ours(frozenset({3, 11}), min_length=least) == theirs(MinLengthLogitsProcessor(least, ends, "cpu"))
    new = theirs(MinNewTokensLengthLogitsProcessor(len(HISTORY) - 3, least, ends, "cpu"))
    assert ours(frozenset({3, 11}), min_tokens=least) == new


@pytest.mark.parametrize("min_p", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("rest", [{"top_p": 1.0}, {"top_p": 0.9}, {"top_k": 9, "top_p": 1.0}], ids=str)
def test_min_p_is_that_of_transformers(min_p, rest):
    logits = torch.randn(4, 2000, generator=torch.Generator().manual_seed(1)) * 3
    config = SamplingConfig(temperature=0.8, min_p=min_p, **rest)
    plain = distribution(logits, config.model_copy(update={"min_p": 0.0}))
    expected = MinPLogitsWarper(min_p)(None, plain.log()).softmax(-1)
    found = distribution(logits, config)
    torch.testing.assert_close(found, expected)
    alone = MinPLogitsWarper(min_p)(None, TemperatureLogitsWarper(0.8)(None, logits))
    assert torch.equal(found > 0, alone.isfinite() & (plain > 0))
    weights, ids = candidates(logits / 0.8, config)
    picked = torch.zeros_like(logits).scatter(-1, ids, weights / weights.sum(-1, keepdim=True))
    torch.testing.assert_close(picked, expected)


def test_a_text_does_not_end_before_its_least_length():
    logits = torch.zeros(1, 260)
    logits[0, END], logits[0, 65] = 9.0, 8.0
    config = SamplingConfig(temperature=0, min_tokens=2)
    chosen = [choose(logits, [Draw(config, 0, step, [1] * (step + 1), frozenset({END}))])[0] for step in range(4)]
    assert chosen == [65, 65, END, END]


def test_the_rules_hold_in_the_scheduler_with_the_models_own_ends():
    model = LanguageModel(tiny_decoder(), byte_tokenizer())
    model.stop_tokens = frozenset(range(260))  # every token ends the text
    assert len(model.complete(["abc"], temperature=0)[0].tokens) == 1
    rules = {"temperature": 0, "min_tokens": 3, "max_tokens": 5}
    model.stop_tokens = frozenset({*model.complete(["abc"], temperature=0)[0].tokens})
    assert len(model.complete(["abc"], **rules)[0].tokens) >= 3


def test_when_everything_is_forbidden_something_still_comes():
    config = SamplingConfig(temperature=0, bad_words_ids=tuple((token,) for token in range(4)))
    assert choose(torch.tensor([[0.0, 1.0, 3.0, 2.0]]), [Draw(config, 0, 0, [0])]) == [2]
