"""`pretrain` from a recipe to a run folder: what it writes, measures, keeps to and refuses."""

import itertools
import lzma
import math
import time

import pytest
import torch
import torch.nn.functional as F
import transformers

from shoestring.core.errors import BudgetError, ConfigError, RunError
from shoestring.data.config import NewTokenizerConfig
from shoestring.data.prepare import prepare
from shoestring.data.shards import ShardFolder
from shoestring.evaluate.xz import xz_bits_per_byte
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train import loop, pace
from shoestring.train.metrics import read_metrics
from shoestring.train.plot import text_plot
from tests.train import tiny


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardFolder:
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = NewTokenizerConfig(vocabulary=300)
    return prepare(tiny.corpus(folder / "text"), tokenizer, folder / "shards", validation=0.2)


def test_xz_is_measured_document_by_document(shards):
    bits, text, compressed = xz_bits_per_byte(shards)
    every = {file.read_bytes() for file in (shards.folder.parent / "text").glob("*.py")}
    held_out = [
        shards.tokenizer.decode(document.tokens.tolist()).encode()
        for document in shards.documents_of("validation")
    ]
    assert held_out and all(content in every for content in held_out)
    sizes = [len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) for content in held_out]
    assert (text, compressed) == (sum(map(len, held_out)), sum(sizes))
    assert text == shards.byte_count("validation") and bits == 8 * compressed / text


def test_the_terminal_plot_falls_from_left_to_right():
    lines = text_plot([8.0, 6.0, 4.0, 2.0], width=4, height=4).splitlines()
    assert [line.index("•") for line in lines[:4]] == sorted(line.index("•") for line in lines[:4])
    assert lines[0].startswith("8.00") and lines[3].startswith("2.00")


@pytest.fixture
def recipe(tmp_path, shards):
    file = tmp_path / "recipe.yaml"
    file.write_text(tiny.recipe_text(shards.folder).replace("vocabulary: 320", "vocabulary: 300", 1))
    return file


def test_a_run_leaves_a_model_that_transformers_reads_and_lines_for_every_step(recipe, tmp_path):
    result = pretrain(recipe, out=str(tmp_path / "run"), train__steps=4)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "latest")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "latest")
    assert model.num_parameters() == result.parameters and tokenizer("def f").input_ids
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    wanted = {"tokens", "lr", "grad_norm", "tokens_per_second", "share_of_peak", "memory", "seconds"}
    assert wanted <= training[0].keys()
    held_out = [line for line in lines if "bits_per_byte" in line]
    assert [line["step"] for line in held_out] == [3, 4]
    assert held_out[-1]["bits_per_byte"] == result.bits_per_byte
    assert result.xz_bytes and "xz -9e, document by document" in str(result)


def test_held_out_bits_are_those_of_transformers_over_each_document(recipe, shards, tmp_path):
    """Documents shorter than a row are seen alone, so a loop over documents must give the same sum."""
    result = pretrain(recipe, out=str(tmp_path / "run"), train__steps=2, train__sequence_length=64)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "latest")
    nats = tokens = 0
    stream = [
        i for d in shards.documents_of("validation") for i in (shards.separator_id, *d.tokens.tolist())
    ] + [shards.separator_id]
    for start in range(0, len(stream) - 1, 64):
        row = stream[start : start + 65]
        cuts = [0, *(i for i in range(1, len(row) - 1) if row[i] == shards.separator_id), len(row) - 1]
        for a, b in zip(cuts[:-1], cuts[1:], strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([row[a:b]])).logits[0]
            nats += F.cross_entropy(logits, torch.tensor(row[a + 1 : b + 1]), reduction="sum").item()
            tokens += b - a
    assert result.held_out_loss == pytest.approx(nats / tokens, rel=1e-5)
    bits = nats / math.log(2) / shards.byte_count("validation")
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-5)


def test_a_run_continues_from_another_models_weights_and_tokenizer(recipe, tmp_path):
    pretrain(recipe, out=str(tmp_path / "first"), train__steps=6)
    overrides = {"model.init": str(tmp_path / "first"), "optimizer.learning_rate": 1e-9, "train.steps": 1}
    result = pretrain(recipe, overrides=overrides, out=str(tmp_path / "second"))
    first = read_metrics(tmp_path / "first" / "metrics.jsonl")[-1]["bits_per_byte"]
    assert result.bits_per_byte == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"model.vocabulary": "260"}, ConfigError, "ids and the model rows for 260"),
        ({"budget.memory": "1MB"}, BudgetError, "1.0 MB of memory are too little"),
        ({"budget.engine": "streamed"}, ConfigError, "streamed layers are frozen"),
        ({"precision.compute": "int8", "budget.memory": "1GB"}, ConfigError, "cannot be promised with trained weights"),
        ({"train.checkpoint_blocks": "true"}, ConfigError, "is now called train.activation_checkpointing"),
        ({"train.sequence_length": "128", "train.microbatch": "1"}, ConfigError, "longer than model.context"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(recipe, tmp_path, settings, error, says):
    with pytest.raises(error, match=says):
        pretrain(recipe, overrides=settings, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_broken_loss_names_the_run_and_its_last_checkpoint(recipe, tmp_path):
    settings = {"optimizer.learning_rate": 1e30, "train.clip": None, "train.checkpoint_every": 1, "train.steps": 20}
    with pytest.raises(RunError, match="(?s)10 steps in a row were skipped .* the last checkpoint is .*step-0000"):
        pretrain(recipe, overrides=settings, out=str(tmp_path / "run"))


def test_a_time_budget_plans_once_and_finishes_its_schedule(recipe, tmp_path, monkeypatch):
    """By a clock that moves each time it is looked at, so that a busy machine changes nothing."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * 0.03)
    monkeypatch.setattr(loop, "Clock", lambda: pace.Clock(time.perf_counter))
    result = pretrain(recipe, overrides={"train.time": "3s"}, out=str(tmp_path / "run"))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    planned = [line for line in lines if line.get("event") == "planned"]
    assert len(planned) == 1
    assert planned[0]["steps"] >= int(result.checkpoint.name.removeprefix("step-")) == result.steps
    rates = [line["lr"] for line in lines if "loss" in line]
    assert rates[-1] < 0.4 * max(rates), "the schedule is finished"


def test_automatic_precision_is_settled_in_the_runs_recipe(tmp_path):
    out = tmp_path / "run"
    pretrain("quickstart-smoke", train__steps=1, precision__compute="auto", out=str(out))
    settled = load_pretrain_recipe(out / "recipe.yaml").precision.compute
    assert settled in ("float32", "bfloat16")
    assert pretrain("quickstart-smoke", resume=out, train__steps=1, precision__compute="auto").steps == 1
