import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.generate.text import StopStrings, TextStream, without_controls
from tests.generate.tiny import byte_tokenizer


def cut_by_definition(text, stops):
    """Read character by character.

    End where a stop string is first complete, before the longest such string.
    """
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_at_the_first_complete_stop_string_however_it_is_cut(pieces, stops):
    stream = StopStrings(stops)
    shown = "".join(stream.add(piece) for piece in pieces)
    stopped = stream.stopped
    shown += stream.finish()
    assert (shown, stopped) == cut_by_definition("".join(pieces), stops)


def test_text_that_may_begin_a_stop_string_is_held_back_and_other_text_is_not():
    stream = StopStrings(["\n\nUser:"])
    assert [stream.add(piece) for piece in ["Hello\n", "\nUs", "eless", "\n\nUser", ":x"]] == [
        "Hello", "", "\n\nUseless", "", "",
    ]  # fmt: skip
    assert stream.stopped


@pytest.mark.parametrize("text", ["naïve café", "日本語のテキスト", "👩‍👩‍👧‍👦 family", "a\u0301"])
def test_a_stream_never_shows_half_a_character(text):
    stream = TextStream(byte_tokenizer())
    pieces = [stream.add(token) for token in byte_tokenizer().encode(text)]
    assert len(pieces) == len(text.encode())
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def test_half_a_character_at_the_end_becomes_the_replacement_character():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("né")[:-1]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.add, ids)) + stream.finish() == "n\ufffd" == tokenizer.decode(ids)


def test_a_stop_string_is_found_across_byte_tokens_of_one_character():
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer, ["é!"])
    pieces = [stream.add(token) for token in tokenizer.encode("cafés, é!...")]
    assert "".join(pieces) == "cafés, " and stream.stopped


def test_control_characters_do_not_reach_a_terminal():
    assert without_controls("a\x1b[31mb\r\x07\x9bc\n\td") == "a[31mbc\n\td"
