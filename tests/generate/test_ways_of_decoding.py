"""Greedy texts are those of plain decoding, in whatever way they are decoded, for weights and caches of every kind.

Plain decoding reads the whole text at every step, in one pass, and keeps nothing.
"""

from __future__ import annotations

import pytest
import torch

from shoestring.generate.beams import search
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request
from shoestring.generate.scheduler import Scheduler
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoding_weights import kept_as
from shoestring.models.folder import save_model
from shoestring.nn.native_stack import NativeStack
from tests.generate.test_saved_prefix import refused
from tests.generate.test_scheduler import step_with_arrivals
from tests.generate.test_speculation import always
from tests.generate.tiny import byte_tokenizer, finish, strengthened

CONFIG = {
    "vocabulary": 260, "width": 64, "layers": 3, "context": 160, "feed_forward": {"width": 96},
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 16},
}  # fmt: skip
NUMBERS = [("float32", "source"), ("int4", "source"), ("float32", "int8"), ("int4", "int8")]
NEW = 8
GREEDY = SamplingConfig(max_tokens=NEW, temperature=0)


def decoder_of(seed=0):
    return strengthened(build(ModelConfig.model_validate(CONFIG), seed=seed).eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways") / "model"
    save_model(decoder_of(), folder, byte_tokenizer())
    return folder


@pytest.fixture(scope="module", params=NUMBERS, ids="-".join)
def model(folder, request):
    weights, cache = request.param
    return LanguageModel.load(folder, weights=weights, cache=cache)


def prompts_of(count):
    """Some of them begin alike, with more tokens than are worth copying."""
    random = torch.Generator().manual_seed(8)
    beginning = torch.randint(256, (40,), generator=random).tolist()
    lengths = torch.randint(1, 24, (count,), generator=random).tolist()
    ends = [torch.randint(256, (length,), generator=random).tolist() for length in lengths]
    return [beginning * (i % 3 == 0) + end for i, end in enumerate(ends)]


@torch.inference_mode()
def behind(model, tokens):
    """Logits [V] behind a text that is read in one pass."""
    hidden_BTD, _ = model.decoder(torch.tensor([tokens]), cache=model.decoder.new_cache(1, len(tokens)))
    return model.decoder.head(hidden_BTD[0, -1:])[0]


def plainly(model, prompt):
    tokens = list(prompt)
    for _ in range(NEW):
        tokens.append(int(behind(model, tokens).argmax()))
    return tokens[len(prompt) :]


def near(model):
    """By how much of the logits' deviation two tokens may differ that are taken for each other.

    Passes over blocks are the same to the last bit, whoever is beside. Over floats a long one is torch's, whose last
    bits are others; and those may turn a code of the cache.
    """
    if model.weights == "int4" and isinstance(model.decoder._stack, NativeStack):
        return 0.0
    return 1e-4 if model.cache == "source" and model.weights == "float32" else 0.1


def check(model, prompts, found, wanted, least):
    """Texts are alike, or part where two tokens are as likely; so many shares of them are alike."""
    alike = 0
    for prompt, mine, theirs in zip(prompts, found, wanted, strict=True):
        parts = [i for i in range(NEW) if mine[i] != theirs[i]]
        alike += not parts
        if parts:
            logits_V = behind(model, [*prompt, *theirs[: parts[0]]])
            gap = logits_V[theirs[parts[0]]] - logits_V[mine[parts[0]]]
            assert gap <= near(model) * logits_V.std(), (prompt, mine, theirs)
    assert alike >= least * len(prompts)


class Knowing:
    """Guesses what comes, but for every fifth token."""

    seconds = None

    def __init__(self, prompts, texts):
        self._texts = {tuple(prompt): text for prompt, text in zip(prompts, texts, strict=True)}

    def guess(self, texts, most):
        found = []
        for text in texts:
            tokens, new = list(text.draw.tokens), text.draw.step
            coming = self._texts[tuple(tokens[: len(tokens) - new])][new : new + most]
            found.append([(token + (new + i) % 5 // 4) % 256 for i, token in enumerate(coming)])
        return found


def dirty(cache):
    """Fresh memory may hold anything."""
    for group in cache.tensors.values():
        for tensor in group:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    return cache


def run(model, prompts, slots=None, **options):
    """-> texts, and figures."""
    cache = dirty(model.decoder.new_cache(slots or len(prompts), 80))
    scheduler = Scheduler(model.decoder, cache, **options)
    for prompt in prompts:
        scheduler.add(Request(prompt, GREEDY))
    return finish(scheduler, len(prompts))[0], scheduler.speed


def alone(model, prompts, plain):
    return [run(model, [prompt])[0][0] for prompt in prompts]


def together(model, prompts, plain):
    """Those that begin alike wait for the first one, and copy what it has read."""
    found, speed = run(model, prompts)
    assert speed.prompt_tokens <= sum(map(len, prompts)) - 40
    return found


def in_few_slots_and_small_chunks(model, prompts, plain):
    return run(model, prompts, 3, prefill_tokens=7)[0]


def coming_and_going(model, prompts, plain):
    scheduler = Scheduler(model.decoder, dirty(model.decoder.new_cache(4, 80)), prefill_tokens=12)
    return step_with_arrivals(scheduler, [Request(prompt, GREEDY) for prompt in prompts], 2)


def guessed(model, prompts, plain):
    """By one who knows, and is wrong at times."""
    speculation = always()
    speculation.guesser = lambda slots, vocabulary: Knowing(prompts, plain)
    found, speed = run(model, prompts, 4, speculation=speculation)
    assert 0 < speed.right < speed.guessed
    return found


def guessed_by_the_same_in_other_weights(model, prompts, plain):
    other = "float32" if model.weights == "int4" else "int4"
    draft = LanguageModel.load(model.folder, weights=other, cache=model.cache)
    found, speed = run(model, prompts, 3, speculation=always(draft.decoder))
    assert 0 < speed.right < speed.guessed
    return found


def in_slots_that_grow_and_keep_beginnings(model, prompts, plain):
    scheduler, found = Scheduler(model.decoder, dirty(model.decoder.new_cache(2, 16))), []
    for prompt in prompts:
        scheduler.reserve(len(prompt) + NEW)
        scheduler.add(Request(prompt, GREEDY))
        found.append([event.token for event in scheduler.run()])
    assert scheduler.speed.prompt_tokens <= sum(map(len, prompts)) - 40
    return found


WAYS = [
    alone, together, in_few_slots_and_small_chunks, coming_and_going, guessed, guessed_by_the_same_in_other_weights,
    in_slots_that_grow_and_keep_beginnings,
]  # fmt: skip


def test_texts_are_those_of_plain_decoding(model):
    prompts = prompts_of(7)
    plain = [plainly(model, prompt) for prompt in prompts]
    assert isinstance(model.decoder._stack, NativeStack) and len({tuple(text) for text in plain}) == 7
    for way in WAYS:
        check(model, prompts, way(model, prompts, plain), plain, 1 if model.cache == "source" else 0.7)


@pytest.mark.long
def test_two_hundred_texts_are_those_of_plain_decoding(model):
    prompts = prompts_of(200)
    plain = [plainly(model, prompt) for prompt in prompts]
    for way in WAYS:
        check(model, prompts, way(model, prompts, plain), plain, 0.99 if model.cache == "source" else 0.9)


def test_native_texts_are_those_of_the_stack(model):
    """Where an activation or a number of the cache is rounded the other way, tokens may be taken for each other."""
    prompts, native = prompts_of(7), model.decoder._stack
    found = run(model, prompts)[0]
    model.decoder._stack = native._stack
    try:
        twin = run(model, prompts)[0]
        for prompt, mine, theirs in zip(prompts, found, twin, strict=True):
            parts = [i for i in range(NEW) if mine[i] != theirs[i]][:1]
            for i in parts:
                logits_V = behind(model, [*prompt, *theirs[:i]])
                assert logits_V[theirs[i]] - logits_V[mine[i]] <= 0.1 * logits_V.std()
        assert sum(mine == theirs for mine, theirs in zip(found, twin, strict=True)) >= 5
    finally:
        model.decoder._stack = native


def test_beams_have_the_scores_of_their_texts_read_anew(model):
    prompt = [5, 6, 7, 8]
    found = search(model.decoder, Request(prompt, SamplingConfig(num_beams=4, max_tokens=6, temperature=0)))
    assert len(found) == 4 and len({beam.tokens for beam in found}) == 4
    for beam in found:
        tokens, score = [*prompt, *beam.tokens], 0.0
        for i in range(len(prompt), len(tokens)):
            score += float(behind(model, tokens[:i]).log_softmax(-1)[tokens[i]])
        assert beam.score == pytest.approx(score / len(beam.tokens), abs=1e-4)


def test_a_saved_beginning_is_taken_by_the_same_weights_and_cache_and_refused_by_all_others(folder, tmp_path):
    prompt = prompts_of(1)[0]
    kinds = [("source", "source"), ("float32", "source"), ("int8", "source"), ("int4", "source"), ("int4", "int8")]
    models = [LanguageModel.load(folder, weights=weights, cache=cache) for weights, cache in kinds]
    for i, model in enumerate(models):
        model.save_prefix(tmp_path / str(i), prompt[:-3])
    for i, model in enumerate(models):
        for other in range(len(models)):
            if other != i:
                refused(model, tmp_path / str(other), "other number formats")
        scheduler = Scheduler(model.decoder, model.decoder.new_cache(1, 80))
        assert model.load_prefix(tmp_path / str(i), scheduler) == len(prompt) - 3
        scheduler.add(Request(prompt, GREEDY))
        found = [event.token for event in scheduler.run()]
        assert found == run(model, [prompt])[0][0] and scheduler.speed.prompt_tokens == 3


def test_a_beginning_read_with_blocks_made_in_memory_belongs_to_these_blocks(tmp_path):
    def made(weights, seed=0):
        return LanguageModel(kept_as(decoder_of(seed), weights), byte_tokenizer())

    made("int4").save_prefix(tmp_path / "it", [1, 2, 3, 4])
    for other in (made("int8"), made("int4", seed=1)):
        refused(other, tmp_path / "it", "another model")
    assert made("int4").load_prefix(tmp_path / "it", made("int4").scheduler(1, 20)) == 4
