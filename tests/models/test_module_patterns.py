"""peft's patterns for modules, matched as Python's re matches them, but never for long."""

import random
import re
import time

import pytest

from shoestring.models.module_patterns import ModulePatterns

MODULE = "model.layers.11.self_attn.q_proj"
PIECES = [
    "model",
    "layers",
    r"\d+",
    r"\.",
    ".",
    ".*",
    "11",
    "self_attn",
    "q_proj",
    "(q|k|v)_proj",
    "[a-z_]+",
    "[^.]*",
    "$",
    "^",
    "(?:layers|blocks)",
    r"\w+?",
    "1{2}",
    "1{1,3}",
    "l?",
    "()",
    "(a|)",
    r"[\d.]+",
    ".+?",
    "(1*)*",
    "(q_|(proj|q)+)+",
]


def as_peft(pattern, module):
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def test_random_patterns_match_what_pythons_re_matches():
    rng, matched = random.Random(1), 0
    modules = [MODULE, "model.layers.1.mlp.up_proj", "q_proj", "a.b", ""]
    for _ in range(3000):
        pattern = "".join(rng.choice(PIECES) for _ in range(rng.choice([1, 1, 2, 3, 4, 6])))
        module = rng.choice(modules)
        expected = as_peft(pattern, module)
        assert (ModulePatterns({pattern: 1}).of(module) == 1) == expected, (pattern, module)
        matched += expected
    assert 300 < matched < 2700


def test_the_first_pattern_that_matches_counts():
    table = ModulePatterns({"k_proj": 1, r"layers\.11\..*": 2, "q_proj": 3})
    assert [table.of(module) for module in (MODULE, "x.k_proj", "xk_proj", "q_proj")] == [2, 1, None, 3]


@pytest.mark.parametrize(
    "pattern", ["(([a-z._0-9]+)+)+!", "(a|a?)+$" * 20, "(.*.*.*.*.*)*!", "((((a?){99}){99}){99}){99}!"]
)
def test_a_pattern_made_to_hang_is_soon_done(pattern):
    started = time.process_time()
    try:
        assert ModulePatterns({pattern: 1}).of(MODULE * 3) is None
    except ValueError as error:
        assert "too long to match" in str(error)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(a", "is broken"),
        ("a{99999999999}", "is broken"),
        ("(" * 500, "is broken"),
        (r"(a)\1", "uses groupref"),
        ("(?=a)a", "uses assert"),
        ("(?i)a", "has flags"),
        ("(?i:a)", "uses subpattern"),
        ("a" * 2000, "a pattern of 2,000 characters"),
    ],
)
def test_what_cannot_be_matched_like_this_is_refused(pattern, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModulePatterns({pattern: 1})
