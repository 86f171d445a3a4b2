"""Beam search against transformers, and against all sequences there are."""

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shoestring.core.errors import ConfigError
from shoestring.generate.beams import search
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request
from shoestring.models.folder import load_model
from tests.generate.tiny import KINDS, byte_tokenizer, decoder_of, tiny_decoder, tiny_model

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beams")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(folder)
    return load_model(folder, device=torch.device("cpu"), dtype=torch.float32), theirs


@pytest.mark.parametrize("settings", [
    {"num_beams": 2}, {"num_beams": 4, "num_return_sequences": 3}, {"num_beams": 3, "length_penalty": 0.0},
    {"num_beams": 5, "length_penalty": 2.0}, {"num_beams": 3, "repetition_penalty": 1.4}, {"num_beams": 3, "min": 4},
    {"num_beams": 3, "no_repeat_ngram_size": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("ends", [[3], [3, 9, 11, 17, 30]], ids=str)
def test_beams_are_those_of_transformers(both, settings, ends):
    ours, theirs = both
    least = settings.get("min", 0)
    rest = {name: value for name, value in settings.items() if name != "min"}
    more = {"min_new_tokens": least} if least else {}
    expected = theirs.generate(
        torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=ends, pad_token_id=1,
        return_dict_in_generate=True, output_scores=True, **more, **rest,
    )  # fmt: skip
    config = SamplingConfig(max_tokens=8, min_tokens=least, **rest)
    found = search(ours, Request(PROMPT, config, frozenset(ends)))[: config.num_return_sequences]
    for beam, row, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
        assert list(beam.tokens) == row[3 : 3 + len(beam.tokens)].tolist()
        assert (row[3 + len(beam.tokens) :] == 1).all()
        assert beam.score == pytest.approx(score.item(), abs=1e-4)


def test_enough_beams_find_the_likeliest_of_all_sequences():
    decoder = tiny_decoder(vocabulary=6)
    wholes = torch.tensor([[1, 2, *rest] for rest in itertools.product(range(6), repeat=3)])
    with torch.no_grad():
        logprobs = decoder.head(decoder(wholes)[0]).log_softmax(-1)
    scores = logprobs[:, 1:-1].gather(-1, wholes[:, 2:, None]).sum((1, 2)) / 3
    best = scores.topk(5)
    found = search(decoder, Request([1, 2], SamplingConfig(num_beams=36, max_tokens=3)))[:5]
    assert [list(beam.tokens) for beam in found] == wholes[best.indices, 2:].tolist()
    assert [beam.score for beam in found] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "int8"])  # which rounds
def test_the_beams_of_every_kind_of_cache_are_scored_as_without_one(kind):
    decoder = decoder_of(kind)
    for beam in search(decoder, Request(PROMPT, SamplingConfig(num_beams=4, max_tokens=6, logprobs=1))):
        with torch.no_grad():
            hidden, _ = decoder(torch.tensor([[*PROMPT, *beam.tokens]]))
        logprobs = decoder.head(hidden[0, 2:-1]).log_softmax(-1)
        each = logprobs[torch.arange(6), list(beam.tokens)]
        assert beam.score == pytest.approx(each.mean().item(), abs=1e-5)
        assert [chance.logprob for chance in beam.chances] == pytest.approx(each.tolist(), abs=1e-5)


def test_a_prompt_s_beams_do_not_depend_on_the_others_and_stop_strings_end_them():
    model, options = tiny_model(), {"num_beams": 3, "max_tokens": 6}
    assert model.generate(["abc", "x"], **options) == [model.generate(p, **options) for p in ("abc", "x")]
    done = model.complete(["abc"], **options)[0]
    stop = model.tokenizer.decode(done.tokens)[2:4]
    stopped = model.complete(["abc"], **options, stop=stop, num_return_sequences=3)
    assert all(stop not in one.text for one in stopped)
    assert any(one.reason == "stop_string" for one in stopped) and done.reason == "max_tokens"


def test_beams_cannot_stream():
    model = LanguageModel(tiny_decoder(), byte_tokenizer())
    with pytest.raises(ConfigError, match="beam search cannot be combined with a stream"):
        model.stream("a", num_beams=2)
    with pytest.raises(ConfigError, match="num_return_sequences 2 cannot be combined with a stream"):
        model.stream("a", num_return_sequences=2)
