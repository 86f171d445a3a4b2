"""Trainer files that are damaged, or written by someone else, are refused in a sentence that names them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoestring.core.errors import BudgetError, DataError, RunError
from shoestring.core.seeds import restore_rng_state, rng_state
from shoestring.data.supervised.batches import resumed_place
from shoestring.pretraining.job import pretrain
from shoestring.train.checkpoint import OPTIMIZER, RANDOM, STATE, read_state, restore, write_checkpoint
from shoestring.train.metrics import read_metrics, truncate_metrics
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.plot import write_plot
from shoestring.train.resident import ResidentEngine
from shoestring.train.state import TrainerState
from tests.train import tiny


@pytest.fixture
def engine():
    engine = ResidentEngine(tiny.model)
    engine.load()
    engine.begin(next_token, AdamWConfig())
    return engine


@pytest.fixture
def folder(tmp_path, engine):
    state = TrainerState(step=3, total_steps=8, planned_steps=8)
    return write_checkpoint(tmp_path, state, engine.state(), 1, lambda folder: None)


def test_what_was_written_is_read(folder, engine):
    assert read_state(folder).step == 3
    restore(folder, engine)


DAMAGE = {
    "step": ["x", None, -1, 9, 10**30, [], 1.5], "total_steps": ["x", {}, 2], "planned_steps": [None, "x"],
    "seconds": ["x", {}], "events": [{}, [1], [{}], [{"event": "planned"}], [{"event": 1, "step": 1}],
        [{"event": "started", "step": 0, "before": "x"}], [{"event": "started", "step": 0}],
        [{"event": "source", "step": 0}]],
    "held_out": [1, {}, {"step": 1}], "data": [[], "x"], "matmul": [[]], "format": [2, None],
    "optimizer": [[], {"a": 1}, {"a": {"b": "c"}}, None], "unheard": [1], "finished": ["maybe"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values])
def test_a_state_that_no_run_has_written_is_refused(folder, key, value):
    content = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps(content | {key: value}))
    with pytest.raises(RunError, match="not a trainer state") as caught:
        read_state(folder)
    assert "state.json" in str(caught.value) and "\n    " not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"a":' * 5000, "{" + "9" * 5000, "\0"])
def test_a_state_that_is_none_is_refused(folder, text):
    (folder / STATE).write_text(text)
    with pytest.raises(RunError, match="not a trainer state"):
        read_state(folder)


def change(folder, file, how):
    tensors = load_file(folder / file)
    how(tensors)
    save_file(tensors, folder / file)


NAME = "blocks.0.attention.query.weight"


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (lambda t: t.pop(f"{NAME}/exp_avg"), f"lacks {NAME}/exp_avg"),
        (lambda t: [t.pop(key) for key in list(t) if key.startswith(NAME)], f"lacks {NAME}/"),
        (lambda t: t.update({f"{NAME}/other": torch.zeros(32, 32)}), f"has an unknown {NAME}/other"),
        (lambda t: t.update({f"{NAME}/exp_avg": torch.zeros(3)}), "expected"),
        (lambda t: t.update({f"{NAME}/exp_avg": torch.zeros(())}), "expected"),
        (lambda t: t.update({f"{NAME}/exp_avg": t[f"{NAME}/exp_avg"].to(torch.int8)}), "of floats"),
    ],
    ids=["a moment", "all of one", "unknown", "shape", "scalar", "kind"],
)
def test_moments_that_do_not_fit_are_refused(folder, engine, how, sentence):
    names = {key.rpartition("/")[0] for key in load_file(folder / OPTIMIZER)}
    assert NAME in names
    change(folder, OPTIMIZER, how)
    with pytest.raises(RunError, match=sentence):
        restore(folder, engine)


@pytest.mark.parametrize(
    "changes",
    [
        {"numpy_position": torch.tensor([10**9, 0])},
        {"numpy_position": torch.tensor([-5, 0])},
        {"numpy_position": torch.tensor([1])},
        {"numpy": torch.zeros(3, dtype=torch.int64)},
        {"python": torch.zeros(3, dtype=torch.int64)},
        {"python": torch.full((625,), -1)},
        {"torch": torch.zeros(3, dtype=torch.uint8)},
    ],
)
def test_a_random_state_that_is_damaged_is_refused(folder, engine, changes):
    before = rng_state()
    change(folder, RANDOM, lambda tensors: tensors.update(changes))
    with pytest.raises(RunError, match="random state is damaged"):
        restore(folder, engine)
    restore_rng_state(before)


@pytest.mark.parametrize(
    "state", [{}, {"epoch": "x", "next_sample": 0}, {"epoch": 0, "next_sample": 10}, {"epoch": -1}]
)
def test_a_stream_cannot_go_on_from_nowhere(state):
    assert resumed_place({"epoch": 2, "next_sample": 3}, lambda epoch: 10) == (2, 3)
    with pytest.raises(DataError, match="no place in its data"):
        resumed_place(state, lambda epoch: 10)


LINES = [
    '{"step": 1, "tokens": 8, "loss": 2.5}',
    '{"step": 2, "tokens": 16, "loss": null}',
    '{"step": 2, "event": "skipped"}',
    '{"step": 3, "tokens": "x", "loss": 2.0}',
    '{"step": 3, "loss": NaN, "tokens": 1}',
    "[" * 5000,
    '{"step": 10' + "0" * 5000,
    '{"step": 4, "tokens": 16, "held_out_loss": 0, "held_out_tokens": 3, "bits_per_byte": 1}',
    '{"step": 5, "tokens": 16, "held_out_loss": 1.0}',
    "{",
    "\0",
]


def test_losses_that_are_no_numbers_are_not_drawn_and_not_lost(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(LINES))
    assert [line["loss"] for line in read_metrics(file) if "loss" in line] == [2.5]
    assert [line["step"] for line in read_metrics(file) if "held_out_loss" in line] == [4]
    assert write_plot(file, tmp_path / "loss.png", "", 2.0).stat().st_size > 1000
    truncate_metrics(file, 3)
    assert [json.loads(line).get("event") for line in file.read_text().splitlines()] == [
        None,
        None,
        "skipped",
        None,
        None,
    ]


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    with pytest.raises(BudgetError, match="the machine has"):
        pretrain(recipe, out=str(tmp_path / "run"), model__width=10_000_000)
    assert not (tmp_path / "run").exists()
