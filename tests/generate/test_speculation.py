"""Guessing ahead changes nothing but the number of passes, whatever guesses and whatever is asked."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chi2

from shoestring.core.errors import ConfigError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request
from shoestring.generate.sampling import distribution
from shoestring.generate.scheduler import Scheduler
from shoestring.generate.speculation import Speculation
from tests.generate.test_scheduler import MIXED, RAGGED, alone, step_with_arrivals
from tests.generate.tiny import KINDS, byte_tokenizer, decode, decoder_of, finish, tiny_decoder, tiny_model

GREEDY = SamplingConfig(max_tokens=12, temperature=0)


def always(draft=None, most=4):
    """Guesses whether it pays or not."""
    speculation = Speculation(draft, most)
    speculation.payoff.best = lambda texts, guessing: most
    return speculation


def nearly(kind, **options):
    """A model that mostly chooses as `decoder_of(kind)` does."""
    decoder = decoder_of(kind, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(decoder.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=parameter.dtype)
            parameter.add_(noise * parameter.std() * 0.02)
    return decoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guesser, slots, every, budget", [
    ("lookup", 6, 1, 1000), ("itself", 2, 1, 12), ("nearly", 6, 1, 1000), ("another", 3, 2, 5),
])  # fmt: skip
def test_every_kind_s_texts_are_those_without_guesses_while_requests_come_and_go(kind, slots, every, budget, guesser):
    decoder = decoder_of(kind)
    drafts = {"lookup": lambda: None, "itself": lambda: decoder, "nearly": lambda: nearly(kind),
              "another": lambda: nearly("gqa" if kind != "gqa" else "mtla")}  # fmt: skip
    prompts = [[*prompt, *prompt, *prompt[:-1]] for prompt in RAGGED[:-1]] + [RAGGED[-1]]
    speculation = always(drafts[guesser]())
    scheduler = Scheduler(decoder, decoder.new_cache(slots, 64), prefill_tokens=budget, speculation=speculation)
    widths = []
    decoder.register_forward_pre_hook(lambda module, arguments: widths.append(arguments[0].shape[1]))
    few = {"logit_bias": ((1, 60.0), (2, 60.0), (3, 60.0))} if guesser == "lookup" else {}  # then texts repeat
    mixed = [sampling.model_copy(update=few) for sampling in MIXED]
    requests = [Request(prompt, mixed[i], row=i) for i, prompt in enumerate(prompts)]
    tokens = step_with_arrivals(scheduler, requests, every)
    assert guesser == "itself" or max(widths) <= budget
    assert tokens == [alone(decoder_of(kind), prompt, mixed[i], i) for i, prompt in enumerate(prompts)]
    speed = scheduler.speed
    assert speed.guessed > 0
    if guesser == "itself":
        assert speed.right == speed.guessed
    elif guesser == "nearly":
        assert 0 < speed.right < speed.guessed


def test_right_guesses_save_passes_and_wrong_ones_cost_none():
    for draft, most, passes in ((tiny_decoder(), 3, 3), (tiny_decoder(), 11, 1), (None, 4, None)):
        decoder, seen = tiny_decoder(), []
        decoder.register_forward_pre_hook(lambda module, arguments, seen=seen: seen.append(arguments[0].shape[1]))
        rows, reasons = decode(decoder, [[5, 6, 7]], GREEDY, speculation=always(draft, most))
        assert rows == [alone(tiny_decoder(), [5, 6, 7])] and reasons == ["max_tokens"]
        assert len(seen) == 1 + passes if passes is not None else len(seen) <= 12


def test_a_slot_holds_a_text_but_for_its_newest_token_after_every_step():
    decoder = decoder_of("gqa")
    scheduler = Scheduler(decoder, decoder.new_cache(3, 60), speculation=always(nearly("gqa")))
    for row, prompt in enumerate([[5, 6, 7] * 3, [9] * 4, [1, 2, 3]]):
        scheduler.add(Request(prompt, GREEDY.model_copy(update={"max_tokens": 20}), row=row))
    while not scheduler.idle:
        scheduler.step()
        for slot, text in enumerate(scheduler._latest):
            assert scheduler.cache.lengths[slot] == len(text.tokens) - 1
    assert 0 < scheduler.speed.right < scheduler.speed.guessed
    assert scheduler.speed.new_tokens == 3 * 19


def test_what_is_drawn_has_the_model_s_distribution_by_chi_square():
    decoder, draft, rows = tiny_decoder(vocabulary=4, layers=1), tiny_decoder(vocabulary=4, layers=1, seed=3), 800
    config = SamplingConfig(max_tokens=4, temperature=3.0, top_p=0.95)
    triples = list(itertools.product(range(4), repeat=3))  # of which the first token is not guessed
    with torch.no_grad():
        hidden, _ = decoder(torch.tensor([[1, 2, *triple] for triple in triples]))
        chances = [distribution(decoder.head(hidden[:, 1 + i]), config).double() for i in range(3)]
    each = torch.stack([chances[i][range(64), [triple[i] for triple in triples]] for i in range(3)]).prod(0)
    expected = each.view(4, 16).sum(0) * rows
    found, _ = decode(decoder, [[1, 2]] * rows, config, slots=200, speculation=always(draft, 2))
    counts = torch.bincount(torch.tensor([4 * one[1] + one[2] for one in found]), minlength=16).double()
    kept = expected > 0
    assert counts[~kept].sum() == 0 and kept.sum() > 6
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert statistic < chi2.ppf(0.9999, int(kept.sum()) - 1)


@pytest.mark.parametrize("kind, moment", [
    ("gqa", "in a block"), ("mtla", "after the pass"), ("gqa", "in the head"), ("mtla", "in the draft"),
])  # fmt: skip
def test_an_interrupted_step_with_guesses_can_be_taken_again(kind, moment):
    decoder, draft, calls = decoder_of(kind), decoder_of(kind), []
    scheduler = Scheduler(decoder, decoder.new_cache(2, 40), speculation=always(draft))
    sampling = SamplingConfig(max_tokens=15, temperature=0.8)
    for row, prompt in enumerate(RAGGED[:3]):
        scheduler.add(Request(prompt, sampling, row=row))

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) % 11 in (2, 7):
            raise KeyboardInterrupt

    if moment == "after the pass":
        decoder.register_forward_hook(interrupt)
    elif moment == "in the head":
        decoder.head.register_forward_pre_hook(interrupt)
    else:
        hooked = draft if moment == "in the draft" else decoder
        hooked.blocks[1].feed_forward.register_forward_pre_hook(interrupt)
    tokens = {id: [] for id in range(3)}
    while not scheduler.idle:
        try:
            for event in scheduler.step():
                tokens[event.request].append(event.token)
        except KeyboardInterrupt:
            pass
    assert [tokens[id] for id in range(3)] == [alone(decoder_of(kind), RAGGED[i], sampling, i) for i in range(3)]
    assert len(calls) > 5


def test_a_text_that_fills_the_context_and_one_that_stops_end_where_they_do_without_guesses():
    long = SamplingConfig(max_tokens=40, temperature=0)
    whole = alone(tiny_decoder(context=24), [5, 6, 7], long)
    for most in (1, 5, 30):
        for draft in (tiny_decoder(context=24), tiny_decoder(context=24, seed=1), tiny_decoder(context=12), None):
            speculation = always(draft, most)
            rows, reasons = decode(tiny_decoder(context=24), [[5, 6, 7]], long, speculation=speculation)
            assert rows == [whole] and reasons == ["context"] and len(whole) == 21
    stop = whole[9]
    ended, reasons = decode(tiny_decoder(context=24), [[5, 6, 7]], long, {stop}, speculation=always(tiny_decoder()))
    assert ended == [whole[: whole.index(stop) + 1]] and reasons == ["stop_token"]


def test_a_draft_reads_long_prompts_in_chunks_and_goes_on_where_texts_share_a_slot(monkeypatch):
    monkeypatch.setattr("shoestring.generate.draft._READ", 4)
    decoder, draft, widths = tiny_decoder(), tiny_decoder(), []
    draft.register_forward_pre_hook(lambda module, arguments: widths.append(arguments[0].shape[1]))
    scheduler = Scheduler(decoder, decoder.new_cache(2, 60), speculation=always(draft, 3))
    prompts = [list(range(1, 20)), [9, 8, 7], list(range(1, 15))]
    for row, prompt in enumerate(prompts):
        scheduler.add(Request(prompt, GREEDY, row=row))
    rows, _ = finish(scheduler, 3)
    assert rows == [alone(tiny_decoder(), prompt) for prompt in prompts]
    assert max(widths) <= 6 and scheduler.speed.right == scheduler.speed.guessed > 0


SETTINGS = [
    {"temperature": 0},
    {"temperature": 1.0, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    {"temperature": 0.9, "frequency_penalty": 0.4, "presence_penalty": 0.2, "min_tokens": 12, "typical_p": 0.9},
    {"temperature": 1.2, "regex": "(ab|cd){2,9}"},
    {"temperature": 0.8, "json_schema": {"type": "array", "items": {"enum": ["red", "reddish"]}, "minItems": 3}},
    {"temperature": 1.0, "num_return_sequences": 3, "logprobs": 2},
    {"temperature": 0, "stop": "e"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("guesser", ["lookup", "another"])
def test_completions_are_those_without_guesses_for_all_that_can_be_asked(settings, guesser):
    options = {"max_tokens": 16} | settings
    prompts = ["red reddish red", "abcdabcd"]
    expected = tiny_model(context=100).complete(prompts, **options)
    model = tiny_model(context=100)
    draft = LanguageModel(tiny_decoder(100, seed=1), byte_tokenizer())
    model.speculate(draft if guesser == "another" else "lookup")
    model.speculation.payoff.best = lambda texts, guessing: 4
    found = model.complete(prompts, **options)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.tokens, one.reason) == (other.text, other.tokens, other.reason)
        assert [chance.logprob for chance in one.chances] == pytest.approx(
            [chance.logprob for chance in other.chances], abs=1e-4
        )
        assert [[id for id, _ in chance.top] for chance in one.chances] == [
            [id for id, _ in chance.top] for chance in other.chances
        ]
    assert model.speed.guessed > 0 or guesser == "lookup"


def test_a_stop_string_within_guesses_ends_the_text_there():
    model = tiny_model()
    model.speculate("lookup")
    model.speculation.payoff.best = lambda texts, guessing: 4
    text = b"ababababab"

    class Follows(torch.nn.Module):
        """Says the text, by where each row stands."""

        def forward(self, hidden_BD):
            logits = torch.zeros(len(hidden_BD), 260)
            for row in range(len(hidden_BD)):
                logits[row, text[(self.said + row) % len(text)]] = 100.0
            return logits

    head = Follows()
    head.said = 0
    model.decoder.head = head
    pieces, done = [], None
    for event in model.events([model.encode_prompt("q")], model.sampling(temperature=0, stop="baba", max_tokens=30)):
        head.said += 1
        pieces.append(event.text)
        done = event.reason or done
    assert "".join(pieces) == "a" and done == "stop_string"


class Clock:
    """Time that passes with the tokens that a decoder reads."""

    def __init__(self, cost):
        self.now, self.cost = 0.0, cost

    def __call__(self):
        return self.now

    def watch(self, decoder):
        def count(module, arguments):
            self.now += self.cost(arguments[0].shape[1])

        decoder.register_forward_pre_hook(count)


LONG = SamplingConfig(max_tokens=160, temperature=0)


@pytest.fixture(scope="module")
def long_text():
    return alone(tiny_decoder(context=200), [5, 6, 7], LONG)


def passes(cost, draft_cost, expected):
    """-> passes that a long text took, and the guesses of the last quarter of them."""
    decoder, draft, clock = tiny_decoder(context=200), tiny_decoder(context=200), Clock(cost)
    clock.watch(decoder)
    draft.register_forward_pre_hook(lambda module, arguments: setattr(clock, "now", clock.now + draft_cost))
    speculation = Speculation(draft)
    speculation.clock = clock
    scheduler = Scheduler(decoder, decoder.new_cache(1, 200), speculation=speculation)
    scheduler.add(Request([5, 6, 7], LONG))
    guessed, found = [], []
    while not scheduler.idle:
        found += [event.token for event in scheduler.step()]
        guessed.append(scheduler.speed.guessed)
    assert found == expected
    return len(guessed), guessed[-1] - guessed[len(guessed) * 3 // 4]


def test_guesses_go_on_where_passes_over_several_tokens_cost_no_more(long_text):
    count, late = passes(lambda tokens: 1.0, 0.01, long_text)
    assert count < 160 / 4 and late > 0


@pytest.mark.parametrize("cost, draft_cost", [(lambda tokens: float(tokens), 0.1), (lambda tokens: 1.0, 1.5)])
def test_guesses_that_do_not_pay_by_measure_are_given_up_and_tried_again_now_and_then(cost, draft_cost, long_text):
    count, late = passes(cost, draft_cost, long_text)
    assert count > 160 * 0.75 and late <= 3


def test_a_model_that_cannot_guess_is_refused():
    model = tiny_model()
    other = LanguageModel(tiny_decoder(), byte_tokenizer())
    other.tokenizer.backend.add_special_tokens(["<|more|>"])
    with pytest.raises(ConfigError, match="other tokens"):
        model.speculate(other)
    with pytest.raises(ConfigError, match="'nonsense' guesses nothing"):
        model.speculate("nonsense")
    model.at_once = 100
    with pytest.raises(ConfigError, match="--memory"):
        model.speculate(tiny_model())
    model.speculate("lookup")
    assert model.generate("abab", temperature=0, max_tokens=6) == tiny_model().generate(
        "abab", temperature=0, max_tokens=6
    )
    model.speculate(None)
    assert model.speculation is None
