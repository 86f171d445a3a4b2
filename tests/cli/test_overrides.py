import pytest

from shoestring.cli.overrides import split_overrides
from shoestring.core.errors import ConfigError

FLAGS = {"--help": False, "--json": False, "--prompt": True, "--time": True}


def test_flags_of_the_verb_and_settings_are_told_apart():
    tokens = [
        "quick",
        "--time",
        "2m",
        "--train.steps",
        "5",
        "--json",
        "--optimizer.betas=[0.9, 0.95]",
        "--seed",
        "3",
    ]
    assert split_overrides(tokens, FLAGS) == (
        ["quick", "--time", "2m", "--json"],
        {"train.steps": "5", "optimizer.betas": "[0.9, 0.95]", "seed": "3"},
    )


def test_values_may_be_negative_empty_or_hold_an_equals_sign():
    tokens = ["--a.b", "-1", "--c.d=", "--e.f=x=y", "--g.h", "a b"]
    assert split_overrides(tokens, FLAGS) == ([], {"a.b": "-1", "c.d": "", "e.f": "x=y", "g.h": "a b"})


def test_hyphens_count_as_underscores():
    assert split_overrides(["--train.batch-tokens", "8"], FLAGS)[1] == {"train.batch_tokens": "8"}


def test_a_flags_value_is_not_read_as_a_setting():
    assert split_overrides(["--prompt", "--a.b", "--prompt=--c.d"], FLAGS) == (
        ["--prompt", "--a.b", "--prompt=--c.d"],
        {},
    )


def test_after_a_lone_dash_dash_all_is_the_verbs():
    assert split_overrides(["--", "--a.b", "1"], FLAGS) == (["--", "--a.b", "1"], {})


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (["--a.b"], "--a.b needs a value"),
        (["--a.b", "--json"], "--a.b needs a value"),
        (["--a.b", "1", "--a.b=2"], "--a.b is given twice"),
        (["--prmpt", "x"], "did you mean --prompt?"),
    ],
)
def test_what_cannot_be_meant_is_refused(tokens, sentence):
    with pytest.raises(ConfigError) as caught:
        split_overrides(tokens, FLAGS)
    assert sentence in str(caught.value)
