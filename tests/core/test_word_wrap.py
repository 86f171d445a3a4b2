import random

import pytest

from shoestring.core.console import fold
from shoestring.core.word_wrap import WordWrap


def wrapped(pieces, width):
    out = []
    wrap = WordWrap(out.append, width)
    for piece in pieces:
        wrap.add(piece)
    wrap.end()
    return "".join(out)


PROSE = "The quick brown fox jumps over the lazy dog, again and again.\n\n    def f(x):\n        return x\n- a\n"


@pytest.mark.parametrize("width", [10, 20, 60])
def test_lines_break_between_words_however_the_text_is_cut(width):
    draw = random.Random(width)
    whole = wrapped([PROSE], width)
    assert max(map(len, whole.splitlines())) <= width
    assert whole.split() == PROSE.split()
    for _ in range(20):
        pieces, rest = [], PROSE
        while rest:
            size = draw.randint(1, 9)
            pieces, rest = [*pieces, rest[:size]], rest[size:]
        assert wrapped(pieces, width) == whole


def test_what_fits_is_left_as_it_is_and_blanks_at_an_ends_are_kept_until_a_break():
    assert wrapped(["a  b", " c \n", "  d"], 60) == "a  b c\n  d"
    assert wrapped(["aaaa bbbb cccc"], 9) == "aaaa bbbb\ncccc"
    assert wrapped(["tail "], 60) == "tail "


def test_a_word_that_no_line_holds_is_not_held_back_and_wide_letters_part_anywhere():
    out = []
    wrap = WordWrap(out.append, 10)
    wrap.add("x" * 25)
    assert "".join(out).count("x") >= 20
    assert wrapped(["一二三四五六七"], 6) == "一二三\n四五六\n七"


def test_what_is_told_breaks_between_words_below_its_own_text_and_commands_stay_whole():
    told = fold("memory    0.86 GB predicted for the whole process (resident); 22 GB here", 40)
    assert told == "memory    0.86 GB predicted for the\n          whole process (resident); 22\n          GB here"
    command = "  continue with: shoestring pretrain --resume runs/" + "long" * 10
    assert fold(command, 40) == command
    assert fold("error: a sentence that is longer than one line\n  a hint that is also longer than that", 30) == (
        "error: a sentence that is\n  longer than one line\n  a hint that is also longer\n    than that"
    )
