"""What a slot keeps from request to request, with caches that merge tokens and caches that do not."""

from __future__ import annotations

import pytest
import torch

from shoestring.generate.config import SamplingConfig
from shoestring.generate.request import Request, Speed
from shoestring.generate.scheduler import Scheduler
from tests.generate.tiny import KINDS, decode, decoder_of, tiny_decoder

GREEDY = SamplingConfig(max_tokens=12, temperature=0)


def scheduler_of(decoder, slots=1, capacity=64):
    return Scheduler(decoder, decoder.new_cache(slots, capacity))


def ask(scheduler, prompt, sampling=GREEDY):
    """-> the new tokens, and how many tokens of the prompt had to be read."""
    scheduler.speed = Speed()
    id = scheduler.add(Request(prompt, sampling))
    tokens = [event.token for event in scheduler.run() if event.request == id]
    return tokens, scheduler.speed.prompt_tokens


def fresh(decoder, prompt, sampling=GREEDY):
    return decode(decoder, [prompt], sampling)[0][0]


def test_a_growing_conversation_reads_only_its_new_tokens():
    decoder = tiny_decoder()
    scheduler = scheduler_of(decoder)
    first, read = ask(scheduler, [1, 2, 3])
    assert read == 3
    longer = [1, 2, 3, *first, 4, 5]
    second, read = ask(scheduler, longer)
    assert read == 3  # the last new token was never fed
    assert second == fresh(decoder, longer)


def test_an_edited_conversation_is_read_again_from_the_edit():
    decoder = tiny_decoder()
    scheduler = scheduler_of(decoder)
    ask(scheduler, [1, 2, 3, 4])
    edited = [1, 2, 9, 4]
    new, read = ask(scheduler, edited)
    assert read == 2 and new == fresh(decoder, edited)
    same, read = ask(scheduler, edited)
    assert read == 1 and same == new


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 1, 5, 6, 7, 13, 14])
def test_an_edited_conversation_is_answered_as_if_it_were_new(kind, shared):
    decoder = decoder_of(kind)
    scheduler = scheduler_of(decoder)
    first = list(range(1, 16))
    second = first[:shared] + [20, 21, 22]
    sampling = GREEDY.model_copy(update={"max_tokens": 4})
    for prompt in (first, second):
        new, read = ask(scheduler, prompt, sampling)
        assert new == fresh(decoder, prompt, sampling)
    held = len(second) - read
    assert shared - decoder.new_cache(1, 1).stride < held <= shared and (kind == "mtla" or held == shared)


def test_a_request_goes_on_in_the_slot_that_holds_most_of_it_and_loses_least():
    decoder = tiny_decoder()
    scheduler = scheduler_of(decoder, slots=3)
    one, two = list(range(1, 20)), [1, *range(30, 40)]
    first, _ = ask(scheduler, one)
    second, read = ask(scheduler, two)
    assert read == 11  # rather an empty slot than the one that holds the first of these tokens
    assert ask(scheduler, [*one, *first, 7])[1] == 2
    assert ask(scheduler, [*two, *second, 7])[1] == 2
    assert ask(scheduler, [*one, *first, 8])[1] == 1  # the reply of before, cut


def test_slots_grow_with_a_conversation_and_keep_what_they_hold():
    decoder = tiny_decoder()
    scheduler = scheduler_of(decoder, capacity=10)
    sampling = GREEDY.model_copy(update={"max_tokens": 7})
    prompt, reads, capacities = [1, 2, 3], [], []
    for _ in range(5):
        scheduler.reserve(len(prompt) + sampling.max_tokens)
        new, read = ask(scheduler, prompt, sampling)
        assert new == fresh(decoder, prompt, sampling)
        prompt = [*prompt, *new, 50, 60]
        reads.append(read)
        capacities.append(scheduler.cache.capacity)
    assert reads == [3, 3, 3, 3, 3] and capacities == [10, 20, 40, 40, 64]


@pytest.mark.parametrize("kind", KINDS)
def test_grown_slots_go_on_where_they_were(kind):
    decoder = decoder_of(kind)
    scheduler = scheduler_of(decoder, slots=2, capacity=20)
    prompts = [[1, 2, 3, 4, 5], [9, 8]]
    ids = [scheduler.add(Request(prompt, GREEDY, row=row)) for row, prompt in enumerate(prompts)]
    events = scheduler.step() + scheduler.step()
    scheduler.reserve(50)
    events += list(scheduler.run())
    for id, prompt in zip(ids, prompts, strict=True):
        assert [event.token for event in events if event.request == id] == fresh(decoder, prompt)


# Beginnings that requests have in common

COMMON = [7 * i % 60 for i in range(40)]


def count_read(scheduler, prompts, max_tokens=5, every=0):
    """-> the new tokens of each prompt, and how many tokens of all of them had to be read. every: steps between two."""
    sampling, left, ids, tokens = GREEDY.model_copy(update={"max_tokens": max_tokens}), list(prompts), [], {}
    while left or not scheduler.idle:
        for _ in range(1 if every else len(left)):
            if left:
                ids.append(scheduler.add(Request(left.pop(0), sampling)))
        for _ in range(every or 1):
            for event in scheduler.step():
                tokens.setdefault(event.request, []).append(event.token)
    return [tokens[id] for id in ids], scheduler.speed.prompt_tokens


@pytest.mark.parametrize("kind, slots, every, budget", [
    *((kind, 4, 0, 1000) for kind in KINDS), ("gqa", 4, 0, 7), ("mtla", 4, 0, 7), ("mtla", 2, 0, 1000),
    ("gqa", 4, 2, 16),
])  # fmt: skip
def test_what_requests_have_in_common_is_read_once_and_copied(kind, slots, every, budget):
    decoder = decoder_of(kind)
    prompts = [[*COMMON, 1, 2], [*COMMON, 3], [*COMMON[:38], 5, 6], [*COMMON, 1, 2], [9, 8]]
    scheduler = Scheduler(decoder, decoder.new_cache(slots, 60), prefill_tokens=budget)
    found, read = count_read(scheduler, prompts, every=every)
    sampling = GREEDY.model_copy(update={"max_tokens": 5})
    assert found == [fresh(decoder_of(kind), prompt, sampling) for prompt in prompts]
    assert read <= 42 + 3 * 5 + 2  # and not 42 + 41 + 40 + 42 + 2


def test_copies_are_of_their_own():
    decoder = decoder_of("gqa")
    scheduler = scheduler_of(decoder, slots=2)
    found, read = count_read(scheduler, [[*COMMON, 1], [*COMMON, 2]])
    assert read == 42 and found[0] != found[1]
    held = [scheduler.cache.keys[0][slot, :, :40].clone() for slot in range(2)]
    assert torch.equal(*held)
    count_read(scheduler, [[5] * 45])  # in one of them
    kept = [torch.equal(scheduler.cache.keys[0][slot, :, :40], held[slot]) for slot in range(2)]
    assert sorted(kept) == [False, True]


def test_a_request_whose_beginning_is_no_longer_read_for_another_one_reads_it_itself():
    decoder = decoder_of("gqa")
    scheduler = Scheduler(decoder, decoder.new_cache(3, 60), prefill_tokens=8)
    sampling = GREEDY.model_copy(update={"max_tokens": 5})
    prompts = [[*COMMON, 1], [*COMMON, 2], [9, 8], [9, 7]]
    ids = [scheduler.add(Request(prompt, sampling)) for prompt in prompts]
    assert scheduler.step() == []
    assert scheduler.running == [ids[0], ids[2]] and scheduler.waiting == [ids[1], ids[3]]  # a slot is kept for it
    scheduler.cancel(ids[0])
    tokens = {id: [] for id in ids}
    while not scheduler.idle:
        for event in scheduler.step():
            tokens[event.request].append(event.token)
    assert [tokens[id] for id in ids] == [[], *(fresh(decoder, prompt, sampling) for prompt in prompts[1:])]


def test_several_texts_of_a_long_prompt_read_it_once():
    from tests.generate.tiny import tiny_model

    model, prompt, options = tiny_model(context=200), "a long question, " * 6, {"temperature": 1.0, "max_tokens": 6}
    texts = model.generate(prompt, num_return_sequences=4, **options)
    assert len(set(texts)) == 4 and model.speed.prompt_tokens == len(prompt) + 3
    assert texts == model.generate([prompt] * 4, **options)
