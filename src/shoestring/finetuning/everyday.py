"""Everyday questions, and what a model says to them: ordinary examples for `preserve` where there are no others.

Answers are samples of all that the model could say, not only of the likeliest.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from shoestring.core.files import atomic_write
from shoestring.core.waiting import Waiting, waiting
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.tokenizer import Tokenizer
from shoestring.finetuning.config import PreserveConfig
from shoestring.finetuning.material import Material
from shoestring.finetuning.preserve import ordinary_examples
from shoestring.generate.language_model import LanguageModel
from shoestring.models.adapters import without_adapters
from shoestring.models.decoder import Decoder
from shoestring.models.folder import GenerationDefaults
from shoestring.train import parallel
from shoestring.train.run import say

_THINGS = (
    "bread", "the moon", "a bicycle", "rain", "a library", "coffee", "friendship", "a garden", "winter", "music",
    "dogs", "homework", "a long walk", "old houses", "chess", "public transport", "sleep", "honey", "volcanoes",
    "the stars",
)  # fmt: skip
_ASKS = (
    "Explain {} in two sentences.", "Write a short poem about {}.", "Why do people like {}?",
    "Give me three facts about {}.", "Tell me a short story with {} in it.", "What should a child know about {}?",
    "What is the history of {}?", "Give me some advice about {}.", "What are the good and bad sides of {}?",
    "Write a short message to a friend about {}.", "Let us talk about {}.", "What is special about {}?",
)  # fmt: skip
# What is known and has a short answer, which tuning on form makes a model forget first. None of it is held out by
# `shoestring evaluate`.
_KNOWN = (
    ("The capital of {} is which city?", "France; Spain; Germany; Japan; Russia; Egypt; Poland; Chile; Cuba; India"),
    ("What would you call the contrary of {}?", "hot; big; fast; high; full; new; clean; wide; cheap; sharp; early"),
    ("What is {}?", '"dog" in French; "water" in Spanish; "house" in French; "red" in German; "goodbye" in Spanish'),
    ("Which symbol do chemists use for {}?", "carbon; nitrogen; gold; zinc; magnesium; titanium"),
    ("What name has the young of {}?", "a dog; a sheep; a lion; a frog; a swan"),
    ("Say shortly: {}", "who wrote Hamlet?; what do bees make?; how many legs has a spider?; which animal is tallest?;"
     " what colour do blue and yellow make?; how many years has a century?; in which city is the Eiffel Tower?"),
)  # fmt: skip
_TALKS, _AT_ONCE, _LONGEST = 48, 24, 80  # of the others; so many are answered together, in so many tokens


def write_everyday(decoder: Decoder, tokenizer: Tokenizer, defaults: GenerationDefaults, file: Path) -> None:
    """Some ninety questions and answers as `messages`, the same for a model every time."""
    training = decoder.training
    try:
        rows = _ask(LanguageModel(decoder, tokenizer, defaults=defaults))
    finally:
        decoder.train(training)
    with atomic_write(file) as text:
        text.writelines(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)


def everyday_examples(config: PreserveConfig, material: Material, decoder: Decoder, out: Path) -> SupervisedDataset:
    """What the model said to everyday questions before it was trained, kept in the run's folder."""
    file = out / "everyday.jsonl"
    if parallel.rank() == 0 and not file.is_file():
        say("preserve  the model answers everyday questions, on which it is to stay as it is")
        with without_adapters(decoder):
            write_everyday(decoder, material.dataset.tokenizer, material.generation, file)
    parallel.wait()
    return ordinary_examples(file, config, material.base)


def everyday_questions() -> list[str]:
    """Half of them to talk about, half with a short answer that is known; in an order at random, always the same."""
    rng = random.Random(1)
    talks = rng.sample([ask.format(thing) for thing in _THINGS for ask in _ASKS], _TALKS)
    known = [ask.format(about.strip()) for ask, all_of in _KNOWN for about in all_of.split(";")]
    asked = [*talks, *known]
    rng.shuffle(asked)
    return asked


def _ask(model: LanguageModel) -> list[list[dict[str, str]]]:
    asked = everyday_questions()
    with waiting("preserve  answers to everyday questions", len(asked)) as told:
        return _asked(model, asked, told)


def _asked(model: LanguageModel, asked: list[str], told: Waiting) -> list[list[dict[str, str]]]:
    rows = []
    for first in range(0, len(asked), _AT_ONCE):
        questions = asked[first : first + _AT_ONCE]
        prompts = [model.encode_chat([{"role": "user", "content": question}]) for question in questions]
        answers = model.complete_ids(
            prompts, told.advance, max_tokens=_LONGEST, temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0,
            seed=first,
        )  # fmt: skip
        for question, answer in zip(questions, answers, strict=True):
            said = answer.text.strip()
            if answer.reason == "max_tokens":  # nothing stops in mid-sentence
                said = said[: max(said.rfind(mark) for mark in ".!?") + 1]
            if said:
                rows.append([{"role": "user", "content": question}, {"role": "assistant", "content": said}])
    return rows
