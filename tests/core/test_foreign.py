"""JSON of strangers: what Python's parser takes, within limits."""

import json

import pytest

from shoestring.core.foreign import MOST_DEPTH, MOST_DIGITS, parse_json, read_json, repeats_repetition

SOUND = [None, True, 1.5, -7, 10**99, "a", [1, {"b": ["[[[", '\\"{', None]}], {"": [[]]}]


@pytest.mark.parametrize("value", SOUND, ids=repr)
def test_what_is_within_the_limits_is_read_as_python_reads_it(value, tmp_path):
    text = json.dumps(value)
    (tmp_path / "x.json").write_text(text)
    assert parse_json(text) == parse_json(text.encode()) == read_json(tmp_path / "x.json") == value


def test_depth_counts_lists_and_objects_and_not_characters_of_a_text():
    assert parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH) is not None
    assert parse_json(json.dumps(["[" * 10_000])) == ["[" * 10_000]
    for text in ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), '{"a":' * 101 + "1" + "}" * 101):
        with pytest.raises(ValueError, match="nested more than 100 times"):
            parse_json(text)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[[{"a":'])
@pytest.mark.parametrize("times", [2_000, 100_000])
def test_nesting_without_end_is_a_sentence(opening, times):
    with pytest.raises(ValueError):
        parse_json(opening * times)


@pytest.mark.parametrize("digits", [MOST_DIGITS + 1, 400, 5000, 100_000])
def test_a_whole_number_that_no_float_holds_is_refused(digits):
    with pytest.raises(ValueError, match=f"a number of {digits:,} digits"):
        parse_json('{"a": ' + "9" * digits + "}")


def test_many_items_are_refused_but_not_many_commas_of_a_text():
    with pytest.raises(ValueError, match="more than 1,000 items"):
        parse_json("[" + "[]," * 1000 + "[]]", most_items=1000)
    assert len(parse_json(json.dumps(["," * 5000]), most_items=1000)[0]) == 5000


def test_a_file_beyond_its_limit_is_not_read(tmp_path):
    (tmp_path / "x.json").write_text("[" + " " * 2**20 + "]")
    assert read_json(tmp_path / "x.json") == []
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_json(tmp_path / "x.json", most_bytes=2**20)


def test_half_a_surrogate_pair_in_a_file_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "\\ud800"}')
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "x.json") == {"a": "😀"}


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "((a?){30}a{30})|.", "(?:.?){23}", "x(a*b)*", "(?:(?:a|b+)c)+", "((a+)?)*"]
)
def test_a_pattern_that_repeats_repetition_is_known(pattern):
    assert repeats_repetition(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}|\s*[\r\n/]*",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"\(a+\)+",
        r"[(]a+[)]+",
        "(ab)+c*",
        "(?=a+)b*",
        "a{2}(b|c){3}",
        "(",
        ")+",
        "",
    ],
)
def test_patterns_of_known_tokenizers_do_not_repeat_repetition(pattern):
    assert not repeats_repetition(pattern)
