import pytest
import torch

from shoestring.core.errors import ConfigError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.engine import Decoding
from shoestring.generate.prefix import PrefixCache
from shoestring.nn.cache import KVCache
from tests.generate.tiny import tiny_decoder

GREEDY = SamplingConfig(max_tokens=12, temperature=0)
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [200, 100]]


def decode(decoder, prompts, sampling=GREEDY, stop_tokens=frozenset(), **options):
    """-> the new tokens of each row, and why each ended."""
    decoding = Decoding(decoder, prompts, sampling, frozenset(stop_tokens), **options)
    rows, reasons = [[] for _ in prompts], [None] * len(prompts)
    for event in decoding:
        assert reasons[event.row] is None
        rows[event.row].append(event.token)
        reasons[event.row] = event.reason
    return rows, reasons


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
        assert decode(decoder, [prompt])[0][0] == greedy_without_cache(decoder, prompt, 12)


def test_the_continuation_depends_on_the_whole_prompt():  # else a cache that forgets would pass too
    decoder = tiny_decoder()
    rows, _ = decode(decoder, [[5, 6, 7], [4, 6, 7]])
    assert rows[0] != rows[1]


def test_rows_of_a_ragged_batch_equal_the_rows_alone():
    decoder = tiny_decoder()
    rows, reasons = decode(decoder, PROMPTS)
    assert rows == [decode(decoder, [prompt])[0][0] for prompt in PROMPTS]
    assert reasons == ["max_tokens"] * 4


def test_what_stood_in_the_cache_s_fresh_memory_does_not_matter(monkeypatch):
    class Dirty(KVCache):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            for tensor in (*self.keys, *self.values):
                tensor.fill_(float("nan"))

    decoder = tiny_decoder()
    expected = decode(decoder, PROMPTS)
    clean = decoder.new_cache
    make = decoder._make_cache
    monkeypatch.setattr(decoder, "_make_cache", lambda **sizes: Dirty(**make.keywords, **sizes))
    assert type(decoder.new_cache(1, 1)) is Dirty and clean is not None
    assert decode(decoder, PROMPTS) == expected


def test_sampled_rows_of_a_ragged_batch_equal_the_rows_alone():
    decoder = tiny_decoder()
    sampling = SamplingConfig(max_tokens=12, temperature=1.0, top_p=0.9, repetition_penalty=1.2, seed=4)
    rows, _ = decode(decoder, PROMPTS, sampling)
    assert rows == [decode(decoder, [prompt], sampling, rows=[i])[0][0] for i, prompt in enumerate(PROMPTS)]
    assert rows[0] != decode(decoder, [PROMPTS[0]], sampling, rows=[1])[0][0]


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 1000])
def test_reading_prompts_in_chunks_changes_nothing(chunk):
    decoder = tiny_decoder()
    assert decode(decoder, PROMPTS, prefill_tokens=chunk) == decode(decoder, PROMPTS)


def test_rows_that_end_leave_the_batch_and_the_others_go_on_unchanged():
    decoder = tiny_decoder()
    alone = [decode(decoder, [prompt])[0][0] for prompt in PROMPTS]
    stop = {alone[0][4], alone[2][1]}
    widths = []
    decoder.register_forward_pre_hook(lambda module, arguments: widths.append(arguments[0].shape[0]))
    rows, reasons = decode(decoder, PROMPTS, stop_tokens=stop)
    for row, reason, whole in zip(rows, reasons, alone, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stop]
        assert row == (whole[: ends[0] + 1] if ends else whole)
        assert reason == ("stop_token" if ends else "max_tokens")
    assert widths == sorted(widths, reverse=True) and widths[-1] < 4


def test_a_reader_can_end_one_row():
    decoder = tiny_decoder()
    decoding = Decoding(decoder, [[5], [6]], GREEDY)
    rows = [0, 0]
    for event in decoding:
        rows[event.row] += 1
        if event.row == 0 and rows[0] == 3:
            decoding.stop(0)
    assert rows == [3, 12]


def test_text_ends_where_the_context_is_full_and_says_so():
    decoder = tiny_decoder(context=16)
    rows, reasons = decode(decoder, [[1] * 10, [2] * 3])
    assert [len(row) for row in rows] == [6, 12] and reasons == ["context", "max_tokens"]


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="16 tokens, and the model's context is 16"):
        Decoding(tiny_decoder(context=16), [[1] * 16], GREEDY)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        Decoding(tiny_decoder(), [[1], []], GREEDY)


def test_no_prompts_give_no_events():
    assert list(Decoding(tiny_decoder(), [], GREEDY)) == []


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
    assert max(decode(decoder, [[1]])[0][0]) >= 250
    assert max(decode(decoder, [[1]], vocabulary=250)[0][0]) < 250


def test_the_last_token_is_not_fed_and_speed_counts_tokens():
    decoder = tiny_decoder()
    decoding = Decoding(decoder, [[1, 2, 3], [4]], GREEDY)
    assert len(list(decoding)) == 24
    assert decoding.cache is not None and decoding.cache.lengths == [14, 12]
    assert (decoding.speed.prompt_tokens, decoding.speed.new_tokens) == (4, 22)
    assert decoding.speed.tokens_per_second and decoding.speed.prompt_seconds > 0


def with_prefix(decoder, prefix, prompt, sampling=GREEDY):
    """-> the new tokens, and how many tokens of the prompt had to be read."""
    decoding = Decoding(decoder, [prompt], sampling, cache=prefix.prepare(prompt, sampling.max_tokens))
    new = [event.token for event in decoding]
    prefix.remember(prompt + new)
    return new, decoding.speed.prompt_tokens


def test_a_growing_conversation_reads_only_its_new_tokens():
    decoder, prefix = tiny_decoder(), PrefixCache(tiny_decoder())
    first, read = with_prefix(decoder, prefix, [1, 2, 3])
    assert read == 3
    longer = [1, 2, 3, *first, 4, 5]
    second, read = with_prefix(decoder, prefix, longer)
    assert read == 3  # the last new token was never fed
    assert second == decode(decoder, [longer])[0][0]


def test_an_edited_conversation_is_read_again_from_the_edit():
    decoder, prefix = tiny_decoder(), PrefixCache(tiny_decoder())
    with_prefix(decoder, prefix, [1, 2, 3, 4])
    edited = [1, 2, 9, 4]
    new, read = with_prefix(decoder, prefix, edited)
    assert read == 2 and new == decode(decoder, [edited])[0][0]
    same, read = with_prefix(decoder, prefix, edited)
    assert read == 1 and same == new


def test_the_prefix_cache_grows_with_the_conversation(monkeypatch):
    monkeypatch.setattr("shoestring.generate.prefix._FIRST_CAPACITY", 8)
    decoder = tiny_decoder()
    prefix = PrefixCache(decoder)
    prompt = [1, 2, 3]
    for _ in range(3):
        new, _ = with_prefix(decoder, prefix, prompt, GREEDY.model_copy(update={"max_tokens": 7}))
        assert new == decode(decoder, [prompt])[0][0][:7]
        prompt = [*prompt, *new, 50, 60]
