"""The suite put to a model: at chance without knowledge, the same again, going on after a kill, what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shoestring.core.errors import ConfigError
from shoestring.evaluate.suite import sandbox
from shoestring.evaluate.suite.categories.every import CATEGORIES
from shoestring.evaluate.suite.kept import Kept, digest_of, write_answers
from shoestring.evaluate.suite.likelihood import _read_each, _read_once
from shoestring.evaluate.suite.picture import draw
from shoestring.evaluate.suite.question import questions
from shoestring.evaluate.suite.results import Answered, differences
from shoestring.evaluate.suite.run import categories, evaluate, prompt
from shoestring.generate.language_model import LanguageModel
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny

FEW = ("spelling", "places in a list", "one word alone")


@pytest.fixture(scope="module")
def model(base: Path) -> LanguageModel:
    return LanguageModel.load(base)


def test_a_model_that_knows_nothing_is_at_chance_in_every_category(tmp_path, monkeypatch):
    tokenizer = chatml(templates.CHATML)
    shape = ModelConfig.model_validate({**tiny.SHAPE, "context": 2048, "vocabulary": tokenizer.vocabulary_size})
    model = LanguageModel(build(shape, seed=3), tokenizer)
    complete = model.complete_ids
    monkeypatch.setattr(model, "complete_ids", lambda *a, **options: complete(*a, **{**options, "max_tokens": 8}))
    result, _ = evaluate(model, items=15)
    assert result.left_out.keys() <= {"found in 1,200 tokens", "functions that pass tests"}
    assert len(result.scores) + len(result.left_out) == len(CATEGORIES)
    for score in result.scores:
        low, _ = score.interval
        assert low <= score.chance, f"{score.name}: {score.share:.0%} right, {score.chance:.0%} by chance"


def test_the_same_model_has_the_same_scores(model):
    first, answered = evaluate(model, only=FEW, items=5)
    second, again = evaluate(model, only=FEW, items=5)
    assert answered == again and first.scores == second.scores
    assert [score.of for score in first.scores] == [5, 5, 5]


def test_a_question_is_put_as_the_chat_template_has_it_and_written_out_without_one(model, monkeypatch):
    (question,) = questions(categories(["remembers one thing"])[0], "held-out", 1)
    assert prompt(model, question) == model.encode_chat(list(question.messages))
    monkeypatch.setattr(model.tokenizer, "chat_templates", {})
    text = model.tokenizer.decode(prompt(model, question))
    assert text.endswith(f"User: {question.asked}\nAssistant:") and text.count("Assistant:") == 2


class Killed(Exception):
    """In the place of what ends a process."""


def test_killed_and_gone_on_with_is_as_uninterrupted(model, tmp_path, monkeypatch):
    names = ("spelling", "JSON arrays", "tables")  # answers of three lengths: no two are asked together
    whole, answered = evaluate(model, only=names, items=4)
    kept, calls = Kept("of this model", tmp_path), []
    complete = model.complete_ids

    def counted(prompts, *arguments, **options):
        if len(calls) == 2:
            raise Killed
        calls.append(len(prompts))
        return complete(prompts, *arguments, **options)

    monkeypatch.setattr(model, "complete_ids", counted)
    with pytest.raises(Killed):
        evaluate(model, only=names, items=4, kept=kept)
    assert calls == [4, 4] and len(list(tmp_path.iterdir())) == 2
    asked = []
    monkeypatch.setattr(model, "complete_ids", lambda *a, **o: (asked.append(len(a[0])), complete(*a, **o))[1])
    result, found = evaluate(model, only=names, items=4, kept=kept)
    assert asked == [4], "what was answered before the kill is not asked again"
    assert found == answered and result.scores == whole.scores


def test_categories_that_are_asked_together_are_answered_as_each_alone(model):
    _, together = evaluate(model, only=FEW, items=5)
    alone = [one for name in FEW for one in evaluate(model, only=[name], items=5)[1]]
    order = [category.name for category in CATEGORIES]
    assert together == sorted(alone, key=lambda one: order.index(one.category))


def test_a_damaged_answer_is_asked_again_and_another_model_too(model, tmp_path, capsys):
    first, answered = evaluate(model, only=FEW[:1], items=3, kept=Kept("one", tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    assert evaluate(model, only=FEW[:1], items=3, kept=Kept("one", tmp_path))[1] == answered
    assert "is damaged" in capsys.readouterr().err
    evaluate(model, only=FEW[:1], items=3, kept=Kept("another", tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_digest_tells_weights_and_number_formats_apart(base, tmp_path):
    one, two = LanguageModel.load(base), LanguageModel.load(base, dtype="bfloat16")
    assert digest_of(one) == digest_of(LanguageModel.load(base)) and digest_of(one) != digest_of(two)
    assert digest_of(one, base) != digest_of(one) and digest_of(LanguageModel(one.decoder, one.tokenizer)) is None
    kept = [LanguageModel.load(base, weights="int8"), LanguageModel.load(base, cache="int8")]
    assert len({digest_of(model) for model in (one, two, *kept)}) == 4


def test_what_cannot_be_scored_here_is_left_out_by_name(model, monkeypatch):
    monkeypatch.setattr(sandbox, "why_not", lambda: "no namespaces here")
    result, answered = evaluate(model, only=("functions that pass tests", "found in 1,200 tokens", "spelling"), items=2)
    assert result.left_out["functions that pass tests"] == "no namespaces here"
    assert "tokens, and the model's context is of" in result.left_out["found in 1,200 tokens"]
    assert [score.name for score in result.scores] == ["spelling"] and len(answered) == 2


def test_with_little_memory_fewer_are_asked_at_once_and_answered_alike(model, monkeypatch):
    _, answered = evaluate(model, only=FEW, items=6)
    made, slots = model.scheduler, []
    monkeypatch.setattr(model, "scheduler", lambda *a: (slots.append(a), made(*a))[1])
    monkeypatch.setattr(model, "at_once", 1024)
    _, fewer = evaluate(model, only=FEW, items=6)
    assert slots and all(number * length <= 1024 or number == 1 for number, length in slots)
    assert fewer == answered


def test_choices_are_made_by_likelihood_too(model):
    """By bytes of each option, one at a time through the decoder."""
    names = ["places in a list", "spelling"]
    result, answered = evaluate(model, only=names, items=6)
    scores = {score.name: score for score in result.scores}
    assert scores["spelling"].chosen is None
    right = 0
    for question in questions(categories(["places in a list"])[0], "held-out", 6):
        context, values = prompt(model, question), []
        for option in question.options:
            ids = model.tokenizer.encode(option)
            hidden_BTD, _ = model.decoder(torch.tensor([context + ids]))
            logs_TV = model.decoder.head(hidden_BTD[0]).double().log_softmax(-1)
            parts = [logs_TV[len(context) + n - 1, token].item() for n, token in enumerate(ids)]
            values.append(sum(parts) / len(option.encode()))
        right += question.options[values.index(max(values))] == question.answer
    assert scores["places in a list"].chosen == right


def test_differences_are_of_the_same_questions_of_both():
    def of(name, *right):
        return [Answered(name, f"{n}", "", "", verdict) for n, verdict in enumerate(right)]

    first = [*of("a", *[False] * 12), *of("b", True, False), *of("c", True)]
    second = [*of("a", *[True] * 12), *of("b", True, True)]
    found = {one.name: one for one in differences(first, second)}
    assert found.keys() == {"a", "b"}
    assert found["a"].real and found["a"].chance == pytest.approx(2 * 2 * 0.5**12) and found["a"].second == 1
    assert not found["b"].real and found["b"].chance == 1


def test_a_picture_and_transcripts_of_what_was_asked(model, tmp_path):
    result, answered = evaluate(model, only=FEW, items=2, name="a model")
    assert draw([result, result], tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    write_answers(answered, tmp_path / "answers.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [Answered(**line) for line in lines] == answered and len(lines) == 6


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="no category or group 'sums'"):
        categories(["sums"])
    assert {one.group for one in categories(["arithmetic", "spelling"])} == {"arithmetic", "words and letters"}


LATENT = {"heads": 2, "latent_rank": 8, "content_width": 16, "rotary_width": 8, "value_width": 16}


@pytest.mark.parametrize("attention", [
    tiny.SHAPE["attention"], {"kind": "mla", **LATENT}, {"kind": "mtla", "stride": 2, **LATENT},
])  # fmt: skip
def test_prompts_read_once_say_what_they_say_with_every_option(attention):
    tokenizer = chatml(templates.CHATML)
    shape = {**tiny.SHAPE, "attention": attention, "vocabulary": tokenizer.vocabulary_size}
    model = LanguageModel(build(ModelConfig.model_validate(shape), seed=4), tokenizer)
    prompts = [[7, 8, 9, 10, 11], [20, 21], [30, 31, 32]]
    options = [[[5], [6, 7, 8, 9]], [[40, 41], [42]], [[50]]]
    found, each = _read_once(model, prompts, options, 12), _read_each(model, prompts, options)
    for some, others in zip(found, each, strict=True):
        assert some == pytest.approx(others, abs=1e-5)
