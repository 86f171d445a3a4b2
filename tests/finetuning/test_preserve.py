"""Fine-tuning held near the base: the gradient of the sum, a run that moves less, and exact resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import shoestring
from shoestring.core.errors import ConfigError, DataError
from shoestring.data.batch import Batch
from shoestring.evaluate.suite.categories.every import CATEGORIES
from shoestring.evaluate.suite.question import Category, questions
from shoestring.finetuning.config import PreserveConfig
from shoestring.finetuning.everyday import everyday_questions, write_everyday
from shoestring.finetuning.preserve import Preserving, ordinary_batches, ordinary_examples
from shoestring.generate.language_model import LanguageModel
from shoestring.models.adapters import attach, without_adapters
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, read_generation_config
from shoestring.models.peft_folder import load_adapted
from shoestring.nn.base_distance import base_distance_plain
from shoestring.nn.lora_config import LoRAConfig
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine, forward_loss
from tests.finetuning.tiny import SHORT


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ordinary") / "ordinary.jsonl"
    asked = ["How are you?", "Tell me of the sea.", "Why is it warm in here?", "Say something kind to a friend."]
    rows = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": f"{question} I do wonder."}]
        for question in asked
    ]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def batches_of(file: Path, base: Path, tokens: int = 128, taken: int = 0) -> Iterator[Batch]:
    dataset = ordinary_examples(file, PreserveConfig(tokens=tokens), base)
    return ordinary_batches(dataset, tokens, 1, taken)


def moved_model(base: Path) -> Decoder:
    """With an adapter that is not zero."""
    model = load_model(base)
    attach(model, LoRAConfig(rank=2), 1)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return model.double()


def test_a_step_leaves_the_gradient_of_loss_and_distance(base: Path, examples: Path, ordinary: Path) -> None:
    general = next(batches_of(ordinary, base))
    taken = next(batches_of(examples, base))
    model, twin = moved_model(base), moved_model(base)
    objective = Preserving(next_token, model, batches_of(ordinary, base), 0.7)
    loss = ResidentEngine.around(model, objective).forward_backward([taken])

    expected, _ = forward_loss(twin, next_token, taken)
    places = (general.tokens_BT, general.positions_BT, general.segments_BT)
    with torch.no_grad(), without_adapters(twin):
        before = twin(*places)[0]
    real = general.segments_BT >= 0
    distance = base_distance_plain(twin(*places)[0][real], before[real], twin.head) / int(real.sum())
    (expected.sum / expected.count + 0.7 * distance).backward()
    assert loss.mean == pytest.approx(expected.mean, rel=1e-9)
    assert loss.metrics["base_distance"] / loss.count == pytest.approx(float(distance), rel=1e-4)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == 2 * 7 * len(model.blocks)
    for name, p in twin.named_parameters():
        if p.requires_grad:
            assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-7)


def test_the_base_is_asked_once_for_a_row_that_comes_again(base: Path, examples: Path, ordinary: Path) -> None:
    taken, general = next(batches_of(examples, base)), next(batches_of(ordinary, base))
    gradients = []
    for times in (1, 2):  # the second time from what was kept
        model = moved_model(base)
        passes = []
        model.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        engine = ResidentEngine.around(model, Preserving(next_token, model, iter([general] * 2)))
        for _ in range(times):
            model.zero_grad(set_to_none=True)
            engine.forward_backward([taken])
        assert len(passes) == 1 + 2 * times
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gradients[0] and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def distance_of(run: Path, base: Path, ordinary: Path) -> float:
    tuned, _ = load_adapted(run / "latest")
    batch = next(batches_of(ordinary, base, 256))
    places = (batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    real = batch.segments_BT >= 0
    with torch.no_grad():
        before = load_model(base).eval()
        rows = tuned.eval()(*places)[0][real]
        return float(base_distance_plain(rows, before(*places)[0][real], before.head)) / int(real.sum())


def test_a_run_that_preserves_moves_less_where_it_should_and_still_learns(
    base: Path, examples: Path, ordinary: Path, tmp_path: Path
) -> None:
    settings = {**SHORT, "train.steps": 30, "train.evaluate_every": 30, "train.checkpoint_every": 30}
    plain = shoestring.finetune(base, examples, overrides={**settings, "out": str(tmp_path / "plain")})
    settings |= {"preserve.source": str(ordinary), "preserve.weight": 100.0}
    held = shoestring.finetune(base, examples, overrides={**settings, "out": str(tmp_path / "held")})
    far, near = (distance_of(tmp_path / name, base, ordinary) for name in ("plain", "held"))
    assert near < 0.5 * far
    assert held.loss_after < held.loss_before - 0.1 and held.loss_before == plain.loss_before
    lines = [json.loads(line) for line in (tmp_path / "held" / "metrics.jsonl").read_text().splitlines()]
    told = [line["base_distance"] for line in lines if "base_distance" in line]
    assert told[0] == pytest.approx(0, abs=1e-6) and max(told) > 1e-4


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_goes_on_with_the_same_examples(
    every: int, base: Path, examples: Path, ordinary: Path, tmp_path: Path
) -> None:
    settings = {**SHORT, "preserve.source": str(ordinary), "preserve.tokens": 96, "preserve.every": every}
    whole = shoestring.finetune(base, examples, overrides={**settings, "out": str(tmp_path / "whole")})
    batches, later = batches_of(ordinary, base, 96), batches_of(ordinary, base, 96, taken=4)
    taken = [next(batches).tokens_BT for _ in range(6)]
    assert torch.equal(taken[4], next(later).tokens_BT) and not torch.equal(taken[4], taken[0])
    cut = tmp_path / "cut"
    shoestring.finetune(base, examples, overrides={**settings, "out": str(cut)})
    for folder in cut.glob("step-000006"):
        for file in folder.rglob("*"):
            file.unlink() if file.is_file() else None
    resumed = shoestring.finetune(resume=cut)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "base_distance" in line]
    assert steps == list(range(1, 7, every))
    expected, found = (load_file(r.checkpoint / "adapter_model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"adapter.method": "full"}, "adapter"),
        ({"budget.engine": "streamed"}, "streamed"),
        ({"budget.weights": "int8"}, "streamed"),
        ({"preserve.source": "everyday", "preserve.tokens": 64}, "96 or more"),
    ],
)
def test_what_has_no_base_beside_it_is_refused(
    changes: dict, said: str, base: Path, examples: Path, ordinary: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        overrides = {**SHORT, "preserve.source": str(ordinary), "out": str(tmp_path / "run"), **changes}
        shoestring.finetune(base, examples, overrides=overrides)
    assert not (tmp_path / "run").exists()


def test_everyday_examples_are_the_models_own_and_made_once(base: Path, examples: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "preserve.source": "everyday", "train.steps": 2, "out": str(tmp_path / "run")}
    shoestring.finetune(base, examples, overrides=settings)
    file = tmp_path / "run" / "everyday.jsonl"
    rows = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    assert len(rows) > 20 and all([turn["role"] for turn in row] == ["user", "assistant"] for row in rows)
    assert len({row[0]["content"] for row in rows}) == len(rows)
    again = tmp_path / "again.jsonl"
    model = LanguageModel.load(base)
    write_everyday(model.decoder, model.tokenizer, read_generation_config(base), again)
    assert again.read_text() == file.read_text()


def test_no_everyday_question_is_one_of_the_suites_that_is_held_out() -> None:
    held_out = {question.asked for category in CATEGORIES for question in questions(category, "held-out")}
    asked = everyday_questions()
    assert len(asked) == len(set(asked)) == 92 and not held_out & set(asked)
    facts = [one.split() for category in CATEGORIES for one in problems_of(category) if one.startswith("fact ")]
    kinds = {"capital": "capital", "opposite": "contrary", "element": "symbol", "young": "young"}
    looked_at = 0
    for _, kind, *about in facts:
        for question in asked:
            if kinds.get(kind, "\0") in question:
                assert f" {' '.join(about)} " not in question.replace("?", " ")
                looked_at += 1
    assert looked_at > 100


def problems_of(category: Category) -> list[str]:
    return [question.problem for question in questions(category, "held-out")]


def test_examples_that_do_not_fit_are_refused_before_there_is_a_folder(
    base: Path, examples: Path, ordinary: Path, tmp_path: Path
) -> None:
    overrides = {**SHORT, "preserve.source": str(ordinary), "preserve.tokens": 16, "out": str(tmp_path / "run")}
    with pytest.raises(DataError, match="larger preserve.tokens"):
        shoestring.finetune(base, examples, overrides=overrides)
    assert not (tmp_path / "run").exists()
