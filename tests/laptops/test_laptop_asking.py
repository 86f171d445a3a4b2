"""A model whose layers lie on two machines is asked: an adapter's texts, perplexity, the suite, as of one machine."""

from __future__ import annotations

import json

import pytest

from shoestring.evaluate.perplexity import perplexity
from shoestring.evaluate.suite.run import evaluate
from shoestring.finetuning.job import finetune
from shoestring.generate.language_model import LanguageModel
from shoestring.laptops.scoring import Evaluated, evaluated
from tests.laptops.test_laptop_runs import SETTINGS, machines  # noqa: F401

PROMPT = "3 + 4 ="


@pytest.fixture(scope="module")
def adapter(base, examples, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return finetune(base, examples, out=out, overrides={**SETTINGS, "train.answers": 0}).best


def asked(two, *command: str) -> dict:
    two.start("desk", *command, "--over", str(two.folder / "machines.yaml"), "--json")
    two.until("desk", "join      shoestring join")
    two.join("anna")
    said, _ = two.running["desk"].communicate(timeout=300)
    assert two.running["desk"].returncode == 0, two.log("desk")
    assert two.running["anna"].wait(60) == 0, two.log("anna")
    return json.loads(said[said.index("[" if said.lstrip().startswith("[") else "{") :])


def test_texts_of_an_adapter_are_those_of_one_machine(machines, adapter):  # noqa: F811
    flags = ("--prompt", PROMPT, "--temperature", "0", "--max-tokens", "12")
    found = asked(machines(), "generate", str(adapter), *flags)
    (expected,) = LanguageModel.load(adapter).complete([PROMPT], temperature=0.0, max_tokens=12)
    assert found["text"] == expected.text and set(found["machines"]) == {"desk", "anna"}


@pytest.mark.long
def test_the_perplexity_of_examples_is_that_of_one_machine(machines, adapter, examples):  # noqa: F811
    found = asked(machines(), "perplexity", str(adapter), "--data", str(examples), "--context", "128")
    expected = perplexity(adapter, examples, context=128)
    assert found["loss"] == pytest.approx(expected.loss, abs=1e-5)
    assert (found["tokens"], found["documents"]) == (expected.tokens, expected.documents)


@pytest.mark.long
def test_the_suites_answers_are_those_of_one_machine(machines, base):  # noqa: F811
    found = asked(machines(), "evaluate", str(base), "--only", "arithmetic,patterns", "--items", "2")
    expected, _ = evaluate(LanguageModel.load(base), only=["arithmetic", "patterns"], items=2)
    (one,) = found
    assert [score["right"] for score in one["categories"]] == [score.right for score in expected.scores]
    assert set(one["machines"]) == {"desk", "anna"}


def test_programs_that_answers_are_run_on_no_friends_machine(base, tmp_path):
    request = {"side": "held-out", "only": ["code that works"], "items": 1, "name": "mine"}
    found = evaluated(LanguageModel.load(base), request, tmp_path)
    assert isinstance(found, Evaluated) and not found.values["answered"]
    assert set(found.values["evaluation"]["left_out"].values()) == {
        "its answers are programs, which are not run over machines"
    }
