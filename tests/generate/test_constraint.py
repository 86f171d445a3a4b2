"""Constrained text parses, whatever a random model would rather say; and what cannot be read is a sentence."""

import json
import re
from random import Random

import pytest

from shoestring.core.errors import ConfigError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.constraint import Constraints
from tests.generate.tiny import byte_tokenizer, tiny_model

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "on": {"type": "boolean"},
                   "kind": {"enum": ["a", "bc"]}},
    "required": ["n", "on", "kind"], "additionalProperties": False,
}  # fmt: skip
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
}
SEEDS = range(12)


@pytest.fixture(scope="module")
def model():
    return tiny_model(context=256)


@pytest.mark.parametrize("pattern", [r"[a-c]{3,5}", r"(yes|no), [0-9]{2}", r"é+x?"])
def test_a_text_matches_its_regular_expression(model, pattern):
    for done in model.complete(["abc"] * 12, regex=pattern, temperature=1.5, top_p=1.0, max_tokens=60):
        assert re.fullmatch(pattern, done.text) or done.reason == "max_tokens"
        assert done.reason in ("complete", "stop_token", "max_tokens")


def test_a_text_obeys_its_schema_for_every_seed_sampled_greedy_and_by_beams(model):
    texts = [model.generate("abc", json_schema=SCHEMA, temperature=1.5, seed=seed) for seed in SEEDS]
    texts += model.generate(["x", "y"], json_schema=json.dumps(SCHEMA), temperature=0)
    texts += model.generate("abc", json_schema=SCHEMA, num_beams=3, num_return_sequences=2)
    for text in texts:
        found = json.loads(text)
        assert 0 <= found["n"] <= 99 and type(found["on"]) is bool and found["kind"] in ("a", "bc")
    assert len(set(texts)) > 5


def test_a_recursive_schema_parses_or_says_that_it_was_cut(model):
    reasons = set()
    for done in model.complete(["abc"] * 24, json_schema=TREE, temperature=1.5, top_p=1.0, max_tokens=20):
        reasons.add(done.reason)
        if done.reason in ("complete", "stop_token"):
            assert isinstance(json.loads(done.text), list)
        else:
            assert done.reason == "max_tokens" and len(done.tokens) == 20
    assert "complete" in reasons


def test_a_text_obeys_its_grammar(model):
    grammar = 'start: "(" start ")" | /[0-9]/'
    for done in model.complete(["abc"] * 8, grammar=grammar, temperature=1.0, max_tokens=100):
        if done.reason == "complete":
            assert re.fullmatch(r"\(*\d\)*", done.text) and done.text.count("(") == done.text.count(")")


def test_constrained_rows_beside_free_ones_are_what_they_are_alone(model):
    scheduler = model.scheduler(3, 60)
    settings = [{"regex": "[ab]{8}"}, {}, {"json_schema": SCHEMA}]
    sampling = [model.sampling(temperature=1.0, max_tokens=30, **some) for some in settings]
    tokens = [[], [], []]
    for row, some in enumerate(sampling):
        scheduler.add(model.request([5, 6], some, row))
    for event in scheduler.run():
        tokens[event.request].append(event.token)
    for row, some in enumerate(sampling):
        alone = model.scheduler(1, 60)
        alone.add(model.request([5, 6], some, row))
        assert [event.token for event in alone.run()] == tokens[row]


def test_a_constraint_holds_against_all_that_forbids(model):
    options = {"no_repeat_ngram_size": 1, "min_tokens": 50, "logit_bias": {7: 50.0}, "bad_words_ids": ((64,),)}
    done = model.complete(["abc"], regex="aaaa", **options)[0]
    assert (done.text, done.reason) == ("aaaa", "complete")


def test_a_tokenizer_without_special_tokens_will_do():
    plain = byte_tokenizer()
    plain._special_ids = frozenset()
    guide = Constraints(plain).guide(SamplingConfig(regex="ab?"))
    letters = dict(zip("ab", (plain.encode(letter)[0] for letter in "ab"), strict=True))
    assert guide.allowed([], frozenset(), 300).nonzero()[0].tolist() == [letters["a"]]
    assert guide.reason([letters["a"]], frozenset()) is None
    assert guide.reason([letters["a"], letters["b"]], frozenset()) == "complete"
    assert guide.allowed([], frozenset({257}), 300).nonzero()[0].tolist() == [letters["a"]]  # from the beginning again


def test_no_token_that_leads_on_ends_the_text_and_says_so(model):
    guide = Constraints(byte_tokenizer()).guide(SamplingConfig(regex="ab"))
    first, second = (model.tokenizer.encode(letter)[0] for letter in "ab")
    assert guide.reason([first], frozenset({second})) == "dead_end"


def test_the_empty_text_is_one_too(model):
    done = model.complete(["abc"], regex="")[0]
    assert (done.text, done.reason) == ("", "stop_token")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"regex": "(a"}, "regular expression cannot be used: .*unclosed group"),
        ({"regex": "(?=a)b"}, "regular expression cannot be used"),
        ({"grammar": "start: foo"}, "grammar cannot be used: .*unknown name"),
        ({"json_schema": "{"}, "JSON schema cannot be used"),
        ({"json_schema": "[]"}, "a schema is an object"),
        ({"json_schema": {"type": "blah"}}, "Invalid type"),
        ({"json_schema": {"$ref": "http://example.com/x"}}, "JSON schema cannot be used"),
        ({"json_schema": "[" * 5000}, "nested more than"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(model, options, said):
    with pytest.raises(ConfigError, match=said) as error:
        model.stream("a", **options)
    assert "\n" not in str(error.value)


def test_without_the_extra_the_way_to_it_is_told(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    monkeypatch.delitem(__import__("sys").modules, "llguidance")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="regex needs the package llguidance\n  install it with: .*guided"):
        model.generate("a", regex="a")


def test_a_guide_taken_back_says_what_a_new_one_does():
    constraints, random = Constraints(byte_tokenizer()), Random(0)
    grammar = 'start: "(" start ")" | /[0-9]/'
    for settings in ({"regex": "(ab|ba){1,6}c?"}, {"json_schema": SCHEMA}, {"grammar": grammar}):
        config, ends = SamplingConfig(**settings), frozenset({257})
        guide, tokens = constraints.guide(config), []
        for _ in range(60):
            fresh = constraints.guide(config)
            allowed = guide.allowed(tokens, ends, 258)
            assert (allowed == fresh.allowed(tokens, ends, 258)).all()
            assert guide.reason(tokens, ends) == fresh.reason(tokens, ends)
            choices = [token for token in allowed.nonzero()[0].tolist() if token not in ends]
            if random.random() < 0.4 or not choices:
                tokens = tokens[: random.randint(0, len(tokens))]
            else:
                tokens = [*tokens, random.choice(choices)]


def test_only_the_latest_grammars_are_kept(monkeypatch):
    monkeypatch.setattr("shoestring.generate.constraint.MOST_KEPT", 2)
    constraints = Constraints(byte_tokenizer())
    for pattern in ("a", "b", "c", "a"):
        assert constraints.guide(SamplingConfig(regex=pattern)) is not None
    assert [text for _, text in constraints._read] == ["c", "a"]
