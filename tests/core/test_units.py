import pytest

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError
from shoestring.core.units import (
    Bytes,
    Seconds,
    counted,
    format_bytes,
    format_count,
    format_seconds,
    parse_bytes,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GB", 4 * 10**9),
        ("600MB", 600 * 10**6),
        ("512 MiB", 2**29),
        ("1.5g", 15 * 10**8),
        (7, 7),
        ("12", 12),
    ],
)
def test_sizes_mean_decimal_units_unless_written_with_i(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h", 10800), ("2m", 120), ("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), (5, 5)],
)
def test_durations_may_combine_units(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "4XB", "GB", "-4GB", "4 G B", True, -1, float("nan"), "1e3"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "h", "3x", "1h30", "-2m", "30m1x", False, float("inf")])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_seconds(text)


def test_short_forms():
    assert [format_count(n) for n in (812, 41_230, 2_900_000, 112_085_760, 1_713_639_424)] == [
        "812", "41k", "2.9M", "112M", "1.7B",
    ]  # fmt: skip
    sizes = (12, 98_362_432, 880_000_000, 25_276_510_208)
    assert [format_bytes(n) for n in sizes] == ["12 B", "98 MB", "0.88 GB", "25 GB"]
    assert [format_seconds(s) for s in (0.25, 79, 3725)] == ["0.2 s", "1:19", "1:02:05"]


def test_settings_take_sizes_and_durations_as_text():
    class Budget(Config):
        memory: Bytes
        time: Seconds

    assert Budget(memory="4GB", time="2m") == Budget(memory=4 * 10**9, time=120.0)  # type: ignore[arg-type]


def test_one_thing_is_not_things():
    assert [counted(count, "text") for count in (0, 1, 2, 1200)] == ["0 texts", "1 text", "2 texts", "1,200 texts"]
