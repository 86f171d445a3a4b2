"""Whole fine-tuning runs on a tiny model: every method, resume after a kill, best checkpoint, early stopping."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import shoestring
from shoestring.core.errors import BudgetError, ConfigError, DataError, ModelFileError, RunError
from shoestring.data.tokenizer import Tokenizer
from shoestring.finetuning.config import finetune_recipe
from shoestring.finetuning.job import finetune
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels import allocator
from shoestring.models.adapters import HalvedBases, attach, halve_bases
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import load_adapted, merge_folder
from shoestring.nn.lora_config import LoRAConfig
from tests.finetuning.tiny import SHORT


def run(base: Path, examples: Path, out: Path, **changes):
    return finetune(base, examples, overrides={**SHORT, "out": str(out), **changes})


@pytest.mark.parametrize(
    "method", [{}, {"adapter.method": "dora"}, {"adapter.method": "full"}]
    + [{"adapter.method": "qlora", "adapter.base": base} for base in ("nf4", "int4", "int8")],
)  # fmt: skip
def test_each_method_learns_and_leaves_a_model_that_can_be_asked(
    method: dict, base: Path, examples: Path, tmp_path: Path
) -> None:
    result = run(base, examples, tmp_path / "run", **method)
    assert result.steps == 6 and result.loss_after < result.loss_before
    assert len(result.answers) == 2 and all(answer.after is not None for answer in result.answers)
    assert result.answers[0].question in examples.read_text()
    folder = tmp_path / "run" / "latest"
    adapter = (folder / "adapter_config.json").is_file()
    assert adapter == (method.get("adapter.method") != "full") and (folder / "config.json").is_file() != adapter
    assert isinstance(LanguageModel.load(tmp_path / "run").chat("1+1?", max_tokens=4), str)
    text = str(result)
    assert "before" in text and f"shoestring chat {result.model}" in text
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_the_adapter_of_a_run_gives_the_same_logits_in_peft_and_merged(
    base: Path, examples: Path, tmp_path: Path
) -> None:
    run(base, examples, tmp_path / "run")
    decoder, _ = load_adapted(tmp_path / "run" / "latest")
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        ours = decoder.head(decoder.eval()(tokens)[0])
        judge = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "latest", dtype=torch.float32).eval()
        assert_close(judge(tokens).logits, ours, rtol=1e-4, atol=1e-5)
        merged = merge_folder(tmp_path / "run")
        assert merged == tmp_path / "run" / "merged"
        plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
        assert_close(plain(tokens).logits, ours, rtol=1e-4, atol=1e-5)
        untouched = load_model(base)
        assert not torch.allclose(untouched.head(untouched(tokens)[0]), ours, atol=1e-3)
    with pytest.raises(RunError, match="exists already"):
        merge_folder(tmp_path / "run")
    with pytest.raises(ModelFileError, match="nothing to merge"):
        merge_folder(base)


# One process that imports torch, and forks of it in which nothing has run yet: each is killed at a step.
_KILLED = """
import os, signal, sys, traceback
import torch._dynamo  # by the first optimizer: here once, not in each fork
from shoestring.finetuning.job import finetune
from shoestring.train import checkpoint
base, data, out = sys.argv[1:4]
write, step = checkpoint.write_checkpoint, 0
def dying(out, state, *rest):
    folder = write(out, state, *rest)
    if state.step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return folder
checkpoint.write_checkpoint = dying
overrides = dict(pair.split("=") for pair in sys.argv[4:])
for step in (2, 4):
    child = os.fork()
    if child == 0:
        try:
            finetune(resume=out) if os.path.exists(out) else finetune(base, data, overrides={**overrides, "out": out})
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.mark.parametrize(
    "method", ["qlora", "full", "streamed", *(pytest.param(name, marks=pytest.mark.long) for name in ("lora", "dora"))]
)
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(
    method: str, base: Path, examples: Path, tmp_path: Path
) -> None:
    settings = {**SHORT, "adapter.method": method, "adapter.dropout": 0.1, "train.evaluate_every": 3}
    if method == "streamed":
        settings |= {"adapter.method": "lora", "budget.engine": "streamed"}
    whole = shoestring.finetune(base, examples, overrides={**settings, "out": str(tmp_path / "whole")})
    pairs = [f"{key}={value}" for key, value in settings.items()]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(base), str(examples), str(tmp_path / "cut"), *pairs],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stderr
    resumed = shoestring.finetune(resume=tmp_path / "cut")
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    for file in (name, "trainer/optimizer.safetensors"):
        expected, found = load_file(whole.checkpoint / file), load_file(resumed.checkpoint / file)
        assert expected.keys() == found.keys() and len(expected) > 0
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [(a.before, a.after) for a in resumed.answers] == [(a.before, a.after) for a in whole.answers]
    assert resumed.loss_before == whole.loss_before and resumed.loss_after == whole.loss_after


def test_the_best_checkpoint_is_kept_and_a_run_that_gets_worse_stops(
    base: Path, examples: Path, tmp_path: Path
) -> None:
    result = run(
        base, examples, tmp_path / "run", **{
            "train.steps": 200, "train.evaluate_every": 1, "train.patience": 2, "optimizer.learning_rate": 0.3,
            "schedule.warmup": 0.1, "train.clip": None,
        },
    )  # fmt: skip
    assert result.steps < 200
    best = json.loads((result.best / "trainer" / "state.json").read_text())
    last = json.loads((result.checkpoint / "trainer" / "state.json").read_text())
    assert last["finished"] and last["step"] == result.steps == last["best_step"] + 2
    assert best["held_out"]["loss"] == last["best_loss"] == result.loss_after
    assert (tmp_path / "run" / "best").resolve().name == result.best.name != result.checkpoint.name
    assert result.model.name == "best" and "held-out loss is higher" in str(result)
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert kept == [result.best.name, result.checkpoint.name]
    again = finetune(resume=tmp_path / "run")
    assert again.steps == result.steps and again.answers == result.answers


def test_epochs_decide_the_steps_and_time_ends_a_run(base: Path, examples: Path, tmp_path: Path) -> None:
    epochs = run(base, examples, tmp_path / "epochs", **{"train.steps": None, "train.epochs": 2})
    one = run(base, examples, tmp_path / "one", **{"train.steps": None, "train.epochs": 1})
    assert epochs.steps == 2 * one.steps
    timed = run(base, examples, tmp_path / "timed", **{"train.steps": None, "train.time": "2s"})
    assert timed.steps > 0 and timed.seconds < 4


def test_small_steps_are_as_small_as_asked_for_or_told(base: Path, examples: Path, tmp_path: Path, capsys) -> None:
    """Rows had 256 tokens at least, and so had steps."""

    def steps(asked: int) -> tuple[list[int], str]:
        out = tmp_path / str(asked)
        run(base, examples, out, **{"train.steps": 2, "train.batch_tokens": asked, "train.sequence_length": None})
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        tokens = [0, *(line["tokens"] for line in lines if "loss" in line)]
        return [b - a for a, b in zip(tokens, tokens[1:], strict=False)], capsys.readouterr().err

    taken, told = steps(100)
    assert taken and max(taken) <= 100 and "batch  " not in told
    taken, told = steps(16)
    assert max(taken) > 16 and "batch     a step has up to " in told and "not 16 (train.batch_tokens)" in told


def test_a_longer_run_goes_on_with_its_adapter(base: Path, examples: Path, tmp_path: Path) -> None:
    first = run(base, examples, tmp_path / "run")
    longer = finetune(resume=tmp_path / "run", overrides={"train.steps": 9})
    assert (longer.steps, longer.loss_before) == (9, first.loss_before) and longer.loss_after <= first.loss_after


def test_a_resume_with_other_settings_is_refused(base: Path, examples: Path, tmp_path: Path) -> None:
    run(base, examples, tmp_path / "run")
    with pytest.raises(RunError, match="adapter.rank") as caught:
        finetune(resume=tmp_path / "run", overrides={"adapter.rank": 4})
    assert "model.init" not in str(caught.value)  # a setting of pretraining alone


def test_mistakes_leave_no_run_folder(base: Path, examples: Path, tmp_path: Path) -> None:
    mistakes = [
        ({"budget.memory": "1MB"}, BudgetError, "too little"),
        ({"adapter.rnak": 4}, ConfigError, "did you mean adapter.rank"),
        ({"train.batch_rows": 2, "train.batch_tokens": 64}, ConfigError, "both sizes of a step"),
        ({"train.time": "3m"}, ConfigError, "exactly one of steps, epochs and time"),
        ({"adapter.method": "lroa"}, ConfigError, "did you mean lora"),
    ]
    for changes, kind, said in mistakes:
        with pytest.raises(kind, match=said):
            run(base, examples, tmp_path / "run", **changes)
    with pytest.raises(ModelFileError, match="no model"):
        finetune(str(tmp_path / "nothing"), examples, out=str(tmp_path / "run"))
    with pytest.raises(DataError, match="no such file"):
        finetune(base, tmp_path / "nothing.jsonl", out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_no_model_to_begin_from(base: Path, examples: Path, tmp_path: Path) -> None:
    run(base, examples, tmp_path / "run")
    with pytest.raises(ModelFileError, match="merge it first"):
        finetune(tmp_path / "run", examples, out=str(tmp_path / "second"))


def test_the_learning_rate_follows_the_method_unless_given() -> None:
    assert (
        finetune_recipe("m", "d").optimizer.learning_rate
        > finetune_recipe("m", "d", {"adapter.method": "full"}).optimizer.learning_rate
    )
    assert finetune_recipe("m", "d", {"optimizer.learning_rate": 1e-4}).optimizer.learning_rate == 1e-4
    assert finetune_recipe("m", "d").train.epochs == 3


def test_python_has_the_name_of_the_command(base: Path, examples: Path, tmp_path: Path) -> None:
    result = shoestring.finetune(base, examples, overrides={**SHORT, "train.steps": 1}, out=str(tmp_path / "run"))
    assert result.steps == 1


def test_products_in_bfloat16_keep_the_base_in_bfloat16_and_learn_nearly_the_same(
    base: Path, examples: Path, tmp_path: Path
) -> None:
    plain = run(base, examples, tmp_path / "plain")
    halved = run(base, examples, tmp_path / "halved", **{"precision.compute": "bfloat16"})
    assert halved.loss_after == pytest.approx(plain.loss_after, rel=0.02)
    assert halved.loss_after != plain.loss_after
    decoder, _ = load_adapted(tmp_path / "halved" / "latest")
    before = decoder(torch.arange(9)[None])[0]
    halve_bases(decoder)
    linear = decoder.blocks[0].attention.query
    assert linear.base.weight.dtype == torch.bfloat16 and linear.adapters["default"].lora_A.dtype == torch.float32
    assert_close(decoder(torch.arange(9)[None])[0], before, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("modules", [None, ["q_proj", "down_proj"]])
def test_a_base_in_bfloat16_is_never_whole_in_float32(base: Path, tmp_path: Path, modules: list[str] | None) -> None:
    shape = load_model(base).config.model_dump()
    deep = ModelConfig.model_validate({**shape, "width": 128, "layers": 8, "feed_forward": {"width": 512}})
    save_model(build(deep, seed=0), tmp_path / "deep", Tokenizer.load(base))

    def made(halved: HalvedBases | None) -> tuple[Any, int]:
        allocator.reset_peaks()
        before = allocator.live()
        decoder = load_model(tmp_path / "deep", as_read=halved)
        attach(decoder, LoRAConfig(), 0, modules)
        halve_bases(decoder)
        return decoder, allocator.counts().live_peak - before

    (whole, most), (found, peak) = made(None), made(HalvedBases(deep, modules))
    expected = dict(whole.named_parameters())
    assert {name: parameter.dtype for name, parameter in found.named_parameters()} == {
        name: parameter.dtype for name, parameter in expected.items()
    }
    assert all(torch.equal(parameter, expected[name]) for name, parameter in found.named_parameters())
    halved = sum(p.nbytes for p in expected.values() if p.dtype == torch.bfloat16)
    block = sum(parameter.numel() * 4 for parameter in whole.blocks[0].parameters())
    assert halved > 5e5 and peak <= most - halved + block + 1e5
    with pytest.raises(ConfigError, match="wrong"):
        HalvedBases(deep, ["wrong"])
