"""Requests that come and go on one cache: each gets the tokens that it gets alone."""

import numpy as np
import pytest
import torch

from shoestring.core.errors import ConfigError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.request import Request
from shoestring.generate.scheduler import Scheduler
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.nn.cache import KVCache
from tests.generate.tiny import KINDS, decode, decoder_of, finish, strengthened, tiny_decoder

GREEDY = SamplingConfig(max_tokens=12, temperature=0)
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [200, 100]]


def alone(decoder, prompt, sampling=GREEDY, row=0, **options):
    return decode(decoder, [prompt], sampling, rows=[row], **options)[0][0]


def filled(decoder, prompts, sampling=GREEDY, slots=None, **options):
    """A scheduler that has these requests to do, with ids 0, 1, ..."""
    scheduler = Scheduler(decoder, decoder.new_cache(slots or len(prompts), 40), **options)
    for row, prompt in enumerate(prompts):
        assert scheduler.add(Request(prompt, sampling, row=row)) == row
    return scheduler


@torch.no_grad()
def greedy_without_cache(decoder, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        hidden, _ = decoder(torch.tensor([tokens]))
        tokens.append(int(decoder.head(hidden[0, -1]).argmax()))
    return tokens[len(prompt) :]


def test_cached_greedy_decoding_equals_recomputation_without_a_cache():
    decoder = tiny_decoder()
    for prompt in PROMPTS:
        assert alone(decoder, prompt) == greedy_without_cache(decoder, prompt, 12)


def test_the_continuation_depends_on_the_whole_prompt():  # else a cache that forgets would pass too
    decoder = tiny_decoder()
    rows, _ = decode(decoder, [[5, 6, 7], [4, 6, 7]], GREEDY)
    assert rows[0] != rows[1]


def test_rows_of_a_ragged_batch_equal_the_rows_alone():
    decoder = tiny_decoder()
    rows, reasons = decode(decoder, PROMPTS, GREEDY)
    assert rows == [alone(decoder, prompt) for prompt in PROMPTS]
    assert reasons == ["max_tokens"] * 4


def test_what_stood_in_the_cache_s_fresh_memory_does_not_matter(monkeypatch):
    class Dirty(KVCache):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            for tensor in (*self.keys, *self.values):
                tensor.fill_(float("nan"))

    decoder = tiny_decoder()
    expected = decode(decoder, PROMPTS, GREEDY)
    clean = decoder.new_cache
    make = decoder._make_cache
    monkeypatch.setattr(decoder, "_make_cache", lambda **sizes: Dirty(**make.keywords, **sizes))
    assert type(decoder.new_cache(1, 1)) is Dirty and clean is not None
    assert decode(decoder, PROMPTS, GREEDY) == expected


def test_sampled_rows_of_a_ragged_batch_equal_the_rows_alone():
    decoder = tiny_decoder()
    sampling = SamplingConfig(max_tokens=12, temperature=1.0, top_p=0.9, repetition_penalty=1.2, seed=4)
    rows, _ = decode(decoder, PROMPTS, sampling)
    assert rows == [alone(decoder, prompt, sampling, i) for i, prompt in enumerate(PROMPTS)]
    assert rows[0] != alone(decoder, PROMPTS[0], sampling, 1)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 1000])
def test_reading_prompts_in_chunks_changes_nothing(chunk):
    decoder = tiny_decoder()
    assert decode(decoder, PROMPTS, GREEDY, prefill_tokens=chunk) == decode(decoder, PROMPTS, GREEDY)


def test_rows_that_end_leave_the_batch_and_the_others_go_on_unchanged():
    decoder = tiny_decoder()
    wholes = [alone(decoder, prompt) for prompt in PROMPTS]
    stop = {wholes[0][4], wholes[2][1]}
    widths = []
    decoder.register_forward_pre_hook(lambda module, arguments: widths.append(arguments[0].shape[1]))
    rows, reasons = decode(decoder, PROMPTS, GREEDY, stop)
    for row, reason, whole in zip(rows, reasons, wholes, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stop]
        assert row == (whole[: ends[0] + 1] if ends else whole)
        assert reason == ("stop_token" if ends else "max_tokens")
    assert widths[0] == sum(map(len, PROMPTS)) and widths[1] < 4
    assert widths == sorted(widths, reverse=True)


def test_text_ends_where_the_context_is_full_and_says_so():
    decoder = tiny_decoder(context=16)
    rows, reasons = decode(decoder, [[1] * 10, [2] * 3], GREEDY)
    assert [len(row) for row in rows] == [6, 12] and reasons == ["context", "max_tokens"]


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="16 tokens, and the model's context is 16"):
        decode(tiny_decoder(context=16), [[1] * 16], GREEDY)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        decode(tiny_decoder(), [[1], []], GREEDY)


def test_a_scheduler_without_requests_is_idle_and_steps_do_nothing():
    decoder = tiny_decoder()
    scheduler = Scheduler(decoder, decoder.new_cache(2, 8))
    assert scheduler.idle and scheduler.step() == [] and list(scheduler.run()) == []


def test_the_head_sees_last_positions_only():
    decoder = tiny_decoder()
    shapes = []
    decoder.head.register_forward_pre_hook(lambda module, arguments: shapes.append(tuple(arguments[0].shape)))
    decode(decoder, PROMPTS, SamplingConfig(max_tokens=2, temperature=0))
    assert shapes == [(4, 32), (4, 32)]


def test_ids_outside_the_tokenizer_are_never_chosen():
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.head = torch.nn.Linear(32, 260)
        decoder.head.bias[250:] = 100.0
    assert max(decode(decoder, [[1]], GREEDY)[0][0]) >= 250
    assert max(decode(decoder, [[1]], GREEDY, vocabulary=250)[0][0]) < 250


def test_the_last_token_is_not_fed_and_speed_counts_tokens():
    decoder = tiny_decoder()
    scheduler = filled(decoder, [[1, 2, 3], [4]])
    assert len(list(scheduler.run())) == 24
    assert scheduler.cache.lengths == [14, 12]
    assert (scheduler.speed.prompt_tokens, scheduler.speed.new_tokens) == (4, 22)
    assert scheduler.speed.tokens_per_second and scheduler.speed.prompt_seconds > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_s_tokens_depend_on_the_first_of_the_prompt(kind):  # or the equalities below would mean little
    decoder = decoder_of(kind)
    one, other = (alone(decoder, [first, 6, 7, 8]) for first in (5, 23))
    assert len(set(one)) > 5 and one != other


# Joining and leaving

MIXED = [
    SamplingConfig(max_tokens=9, temperature=0),
    SamplingConfig(max_tokens=14, temperature=1.0, top_p=0.9, seed=4),
    SamplingConfig(max_tokens=3, temperature=0.8, top_k=5, repetition_penalty=1.3, seed=4),
    SamplingConfig(max_tokens=12, temperature=0, repetition_penalty=1.5),
    SamplingConfig(max_tokens=7, temperature=1.2, seed=9),
    SamplingConfig(max_tokens=11, temperature=0),
]
RAGGED = [[5, 6, 7], [9], list(range(1, 18)), [20, 10], [33] * 6, [40, 41, 42, 43]]


def step_with_arrivals(scheduler, requests, every):
    """Add a request before every so many steps -> tokens by request."""
    tokens, steps, coming = {}, 0, list(requests)
    while coming or not scheduler.idle:
        if coming and steps % every == 0:
            scheduler.add(coming.pop(0))
        for event in scheduler.step():
            tokens.setdefault(event.request, []).append(event.token)
        steps += 1
    return [tokens[id] for id in range(len(requests))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots, every, budget", [(6, 1, 1000), (6, 3, 2), (2, 1, 5), (3, 2, 4)])
def test_requests_that_join_and_leave_get_the_tokens_that_they_get_alone(kind, slots, every, budget):
    decoder = decoder_of(kind)
    scheduler = Scheduler(decoder, decoder.new_cache(slots, 40), prefill_tokens=budget)
    requests = [Request(prompt, MIXED[i], row=i) for i, prompt in enumerate(RAGGED)]
    expected = [alone(decoder, prompt, MIXED[i], i) for i, prompt in enumerate(RAGGED)]
    assert step_with_arrivals(scheduler, requests, every) == expected


def test_more_requests_than_slots_wait_in_order_and_start_when_a_slot_frees():
    decoder = tiny_decoder()
    sampling = [GREEDY.model_copy(update={"max_tokens": count}) for count in (5, 2, 3, 4)]
    scheduler = Scheduler(decoder, decoder.new_cache(2, 40))
    for row, prompt in enumerate(PROMPTS):
        scheduler.add(Request(prompt, sampling[row], row=row))
    assert (scheduler.running, scheduler.waiting) == ([], [0, 1, 2, 3])
    seen = []
    while not scheduler.idle:
        events = scheduler.step()
        seen.append([event.request for event in events])
    assert seen == [[0, 1], [0, 1], [0, 2], [0, 2], [0, 2], [3], [3], [3], [3]]


def test_a_cancelled_request_leaves_at_once_and_the_others_go_on():
    decoder = tiny_decoder()
    scheduler = filled(decoder, PROMPTS, slots=3)
    tokens = {id: [] for id in range(4)}
    for count in range(30):
        if count == 3:
            scheduler.cancel(1)
            scheduler.cancel(1)
        if count == 5:
            assert scheduler.running == [0, 2, 3]  # what waited has the slot
        for event in scheduler.step():
            tokens[event.request].append(event.token)
    expected = [alone(decoder, prompt) for prompt in PROMPTS]
    assert [tokens[id] for id in range(4)] == [expected[0], expected[1][:3], expected[2], expected[3]]


def test_a_request_can_be_cancelled_while_it_waits_or_is_read():
    decoder = tiny_decoder()
    scheduler = filled(decoder, [PROMPTS[2], PROMPTS[0], PROMPTS[3]], slots=1, prefill_tokens=4)
    assert scheduler.step() == []
    scheduler.cancel(0)
    scheduler.cancel(1)
    rows, _ = finish(scheduler, 3)
    assert rows == [[], [], alone(decoder, PROMPTS[3])]


@pytest.mark.parametrize("kind", KINDS)
def test_when_a_text_ends_the_slots_of_the_others_are_neither_moved_nor_written(kind):
    decoder = decoder_of(kind)
    scheduler = Scheduler(decoder, decoder.new_cache(4, 40))
    lengths = [GREEDY.model_copy(update={"max_tokens": count}) for count in (12, 3, 12, 12)]
    for row, prompt in enumerate(RAGGED[:4]):
        scheduler.add(Request(prompt, lengths[row], row=row))
    tensors = [tensor for group in scheduler.cache.tensors.values() for tensor in group]
    tensors += getattr(scheduler.cache, "recent", [])
    places = [tensor.data_ptr() for tensor in tensors]
    while 1 in (scheduler.running or [1]):
        events = scheduler.step()
    assert any(event.request == 1 and event.reason for event in events)
    held = list(scheduler.cache.lengths)
    before = [tensor.clone() for tensor in tensors]
    for step in range(1, 5):
        scheduler.step()
        assert scheduler.cache.lengths == [held[0] + step, held[1], held[2] + step, held[3] + step]
        assert [tensor.data_ptr() for tensor in tensors] == places
        for tensor, kept in zip(tensors, before, strict=True):
            assert torch.equal(tensor[1].nan_to_num(), kept[1].nan_to_num())  # the free slot: not even read
    for name, group in scheduler.cache.tensors.items():  # of the others only new places were written
        for layer, tensor in enumerate(group):
            kept = before[[id(one) for one in tensors].index(id(tensor))]
            for slot in (0, 2, 3):
                whole = held[slot] // scheduler.cache.stride
                assert torch.equal(tensor[slot, ..., :whole, :], kept[slot, ..., :whole, :]), (name, layer, slot)


@pytest.mark.parametrize("kind", KINDS)
def test_a_free_slot_is_used_again_and_nothing_that_it_held_is_seen(kind):
    decoder = decoder_of(kind)
    scheduler = Scheduler(decoder, decoder.new_cache(3, 50))
    scheduler.add(Request(RAGGED[2], GREEDY.model_copy(update={"max_tokens": 30})))
    scheduler.add(Request(RAGGED[4], GREEDY.model_copy(update={"max_tokens": 2}), row=1))
    events = [event for _ in range(4) for event in scheduler.step()]
    for group in (*scheduler.cache.tensors.values(), getattr(scheduler.cache, "recent", [])):
        for tensor in group:
            tensor[1:] = float("nan") if tensor.is_floating_point() else 77  # the slot that was left, one never used
    ids = [scheduler.add(Request([58, 59], GREEDY, row=row)) for row in (1, 2)]
    events += scheduler.step()
    assert scheduler.running == [0, *ids] and scheduler.cache.lengths[1:] == [2, 2]
    events += list(scheduler.run())
    for id in ids:
        assert [event.token for event in events if event.request == id] == alone(decoder, [58, 59])
    long = GREEDY.model_copy(update={"max_tokens": 30})
    assert [event.token for event in events if event.request == 0] == alone(decoder, RAGGED[2], long)


def test_running_texts_get_a_token_in_every_pass_while_a_long_prompt_is_read_in_chunks():
    decoder = tiny_decoder()
    widths = []
    decoder.register_forward_pre_hook(lambda module, arguments: widths.append(tuple(arguments[0].shape)))
    scheduler = filled(decoder, [PROMPTS[0], PROMPTS[1]], slots=3, prefill_tokens=5)
    scheduler.step()
    late = scheduler.add(Request(list(range(1, 21)), GREEDY))
    seen = [{event.request for event in scheduler.step()} for _ in range(8)]
    assert seen == [{0, 1}] * 6 + [{0, 1, late}] * 2
    assert widths == [(1, 4)] + [(1, 5)] * 6 + [(1, 4), (1, 3)]  # 18 tokens of the prompt in threes, and 2


def test_one_pass_over_the_model_serves_all_that_runs_and_all_that_is_read():
    decoder, passes = tiny_decoder(), []
    decoder.blocks[0].register_forward_pre_hook(lambda *arguments: passes.append(1))
    scheduler = filled(decoder, PROMPTS, slots=4, prefill_tokens=6)
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        steps += 1
    assert len(passes) == steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["in the first block", "in the second block", "after the pass", "in the head"])
def test_an_interrupted_step_can_be_taken_again(kind, moment):
    decoder = decoder_of(kind)
    prompts, sampling = RAGGED[1:5], GREEDY.model_copy(update={"max_tokens": 5})
    scheduler = filled(decoder, prompts, sampling, slots=3, prefill_tokens=6)
    expected = [alone(decoder, prompt, sampling) for prompt in prompts]
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) % 5 in (2, 4):
            raise KeyboardInterrupt

    if moment == "after the pass":
        decoder.register_forward_hook(interrupt)
    elif moment == "in the head":
        decoder.head.register_forward_pre_hook(interrupt)
    else:
        decoder.blocks[moment == "in the second block"].feed_forward.register_forward_pre_hook(interrupt)
    tokens = {id: [] for id in range(len(prompts))}
    while not scheduler.idle:
        try:
            for event in scheduler.step():
                tokens[event.request].append(event.token)
        except KeyboardInterrupt:
            pass
    assert [tokens[id] for id in range(len(prompts))] == expected and len(calls) > 9


def test_a_prompt_that_fills_a_slot_is_refused_and_a_text_that_fills_one_says_so():
    decoder = tiny_decoder()
    scheduler = Scheduler(decoder, decoder.new_cache(1, 8))
    with pytest.raises(ConfigError, match="8 tokens"):
        scheduler.add(Request([1] * 8, GREEDY))
    assert scheduler.idle
    scheduler.add(Request([1] * 5, GREEDY))
    rows, reasons = finish(scheduler, 1)
    assert rows == [alone(decoder, [1] * 5)[:3]] and reasons == ["context"]


class Doubled:
    """External vectors that follow from the tokens before: the running sum, for a model of width 6."""

    width = 6

    def __init__(self, scale):
        self.scale = scale

    def vectors(self, ids, start, stop):
        sums = np.cumsum(np.asarray(ids[:stop], np.float32) / 50)[start:]
        return np.outer(sums, np.arange(1, 7, dtype=np.float32)) * self.scale


def test_requests_with_and_without_external_vectors_share_passes():
    shape = {"vocabulary": 61, "width": 32, "layers": 2, "context": 64, "feed_forward": {"width": 48}}
    adapter = {"input_adapter": {"external_width": 6, "width": 4}}
    decoder = build(ModelConfig.model_validate({**shape, **KINDS["gqa"], **adapter}), seed=0).eval()
    torch.nn.init.normal_(decoder.inputs["adapter"].up.weight, generator=torch.Generator().manual_seed(1))
    strengthened(decoder)
    sources = [Doubled(1.0), None, Doubled(-1.0), None, Doubled(1.0)]
    prompts = [[5, 6, 7], [5, 6, 7], [5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7]]
    scheduler = Scheduler(decoder, decoder.new_cache(2, 40), prefill_tokens=4)
    for row, (prompt, source) in enumerate(zip(prompts, sources, strict=True)):
        scheduler.add(Request(prompt, GREEDY, row=row, external=source))
    rows, _ = finish(scheduler, 5)
    assert rows == [alone(decoder, p, external=source) for p, source in zip(prompts, sources, strict=True)]
    assert rows[0] != rows[1] != rows[2] != rows[0]


def test_a_text_says_how_much_of_its_prompt_was_held_already():
    decoder = tiny_decoder()
    scheduler, prompt = Scheduler(decoder, decoder.new_cache(1, 64)), list(range(1, 20))
    for expected in (0, len(prompt) - 1):
        scheduler.add(Request(prompt, SamplingConfig(max_tokens=2, temperature=0)))
        assert [event.held for event in scheduler.run()] == [expected, expected]
