"""Whole distillations of a tiny teacher: every kind of teaching, students of every kind, resume, budgets, mistakes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import shoestring
from shoestring.cli.main import main
from shoestring.compression.distill import job as job_module
from shoestring.compression.distill import samples
from shoestring.compression.distill.job import distill
from shoestring.compression.distill.result import Distilled
from shoestring.compression.quantize.job import quantize
from shoestring.compression.report import read_report, summary
from shoestring.core.errors import ConfigError
from shoestring.data.tokenizer import Tokenizer
from shoestring.evaluate.perplexity import perplexity
from shoestring.generate.language_model import LanguageModel
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.train.interrupt import Interrupted, StopRequest
from tests.compression.distill.distilling import SHORT, SMALLER, losses, run
from tests.finetuning import tiny


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {file.name + name: x for file in folder.rglob("*.safetensors") for name, x in load_file(file).items()}


WAYS = {
    "forward": {},
    "reverse": {"distill.divergence": "reverse"},
    "mixture": {"distill.divergence": "mixture", "distill.beta": 0.3, "distill.labels": 0.2},
    "samples": {"distill.cache_samples": 20, "distill.temperature": 1.5},
    "on-policy": {"distill.on_policy": 0.5, "distill.new_tokens": 8},
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(way: str, teacher: Path, student: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    """A run of twelve steps, with its checkpoints of each third one."""
    more = {"train.steps": 12, "train.keep": 9, "train.checkpoint_every": 3, **WAYS[way]}
    return run(teacher, student, sums, tmp_path_factory.mktemp(way) / "run", **more)


def test_each_way_brings_the_student_nearer_and_leaves_an_ordinary_model(
    way: str, made: Distilled, teacher: Path
) -> None:
    divergences = losses(made.out, "divergence")
    assert made.steps == len(divergences) == 12 and sum(divergences[-3:]) < sum(divergences[:3])
    assert isinstance(LanguageModel.load(made.out).chat("1+1?", max_tokens=4), str)
    decoder = load_model(made.model)
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        ours = decoder.head(decoder(tokens)[0])
        judge = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32).eval()
        assert_close(judge(tokens).logits, ours, rtol=1e-4, atol=1e-5)
    report = read_report(made.model)
    assert report is not None and report["verb"] == "distill" and report["teacher"]["model"] == str(teacher)
    assert "distill from" in summary(report)
    assert "student before" in str(made) and f"shoestring chat {made.model}" in str(made)
    assert (made.out / ".samples").is_dir() == (way == "samples")


def test_what_the_report_says_is_what_perplexity_measures(
    teacher: Path, student: Path, text: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held.txt"
    held_out.write_text("".join(f"{n} is more than {n - 1}\n" for n in range(200, 215)))
    changes = {"data.validation_source": str(held_out), "train.evaluate_examples": None}
    result = run(teacher, student, text, tmp_path / "run", **changes)
    report = read_report(result.model)
    assert report is not None and result.labels == report["held_out_tokens"] > 100
    # The end of the text, which perplexity leaves out, is one label of them.
    for folder, side in ((teacher, report["teacher"]), (student, report["before"]), (result.model, report["after"])):
        ours = perplexity(folder, held_out, context=128, stride=128)
        nats = side["loss"] * result.labels - ours.loss * ours.tokens
        assert ours.tokens == result.labels - 1 and 0 < nats < 60
        assert_close(side["bits_per_byte"], side["loss"] * result.labels / math.log(2) / ours.bytes)
    assert report["teacher"]["decoding"]["tokens_per_second"] > 0 and report["after"]["decoding"]["memory"] > 0
    assert report["before"]["weight_bytes"] == report["after"]["weight_bytes"] < report["teacher"]["weight_bytes"]


def test_a_student_that_is_its_teacher_is_at_no_distance(teacher: Path, sums: Path, tmp_path: Path) -> None:
    for divergence in ("forward", "reverse", "mixture"):
        out = tmp_path / divergence
        run(teacher, teacher, sums, out, **{"distill.divergence": divergence, "train.steps": 1})
        assert abs(losses(out, "divergence")[0]) < 1e-6 and losses(out, "cross_entropy")[0] > 0.5


def test_the_first_loss_is_the_full_divergence_at_the_labels_that_count(
    teacher: Path, student: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers' models, on the batches of the first step."""
    seen: list[Any] = []
    plain = job_module.DistillJob._look
    monkeypatch.setattr(job_module.DistillJob, "_look", lambda self, group: seen.extend(group) or plain(self, group))
    run(teacher, student, sums, tmp_path / "run", **{"train.steps": 1, "data.layout": "padded"})
    theirs, ours = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (teacher, student))
    total, count = 0.0, 0
    for batch in seen:
        with torch.no_grad():
            log_p, log_q = (model(batch.tokens_BT).logits.log_softmax(-1) for model in (theirs, ours))
        each = (log_p.exp() * (log_p - log_q)).sum(-1)[batch.labels_BT != -100]
        total, count = total + float(each.sum()), count + len(each)
        assert 0 < len(each) < batch.labels_BT.numel() / 2  # only what the assistant says
    assert_close(losses(tmp_path / "run")[0], total / count, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_has_the_same_bits(made: Distilled, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made.out, broken, symlinks=True)
    (broken / "recipe.yaml").write_text((broken / "recipe.yaml").read_text().replace(str(made.out), str(broken)))
    for folder in broken.glob("step-*"):
        if folder.name > "step-000003":
            shutil.rmtree(folder)
    again = distill(resume=broken)
    assert again.steps == 12 and losses(broken) == losses(made.out)
    first, second = weights(made.checkpoint), weights(again.checkpoint)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_streamed_teacher_says_what_a_resident_one_does(
    teacher: Path, student: Path, sums: Path, tmp_path: Path
) -> None:
    for where in ("resident", "streamed"):
        for more, name in ({}, "whole"), ({"distill.cache_samples": 10}, "samples"):
            run(teacher, student, sums, tmp_path / f"{where}-{name}", **{"budget.teacher": where}, **more)
    for name in ("whole", "samples"):
        resident, streamed = (losses(tmp_path / f"{where}-{name}") for where in ("resident", "streamed"))
        assert_close(torch.tensor(streamed), torch.tensor(resident), rtol=1e-5, atol=1e-6)


def test_the_teacher_is_asked_once_and_again_only_for_what_is_missing(
    teacher: Path, student: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it is asked: the same command goes on behind the last part."""
    monkeypatch.setattr(samples, "_PART_TOKENS", 256)
    asked: list[int] = []
    stopped: list[int] = []
    plain = samples._ask

    def ask(model: Any, dataset: Any, rows: Any, number: int, *more: Any) -> Any:
        if asked == [0, 1] and not stopped:
            stopped.append(number)
            raise KeyboardInterrupt
        asked.append(number)
        return plain(model, dataset, rows, number, *more)

    more = {"distill.cache_samples": 10}
    monkeypatch.setattr(samples, "_ask", ask)
    with pytest.raises(KeyboardInterrupt):
        run(teacher, student, sums, tmp_path / "run", **more)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".samples"]  # no run, only what was asked
    asked.append(-1)
    first = weights(run(teacher, student, sums, tmp_path / "run", **more).checkpoint)
    assert asked[:4] == [0, 1, -1, 2] and sorted(asked[3:]) == asked[3:]
    parts = sorted((tmp_path / "run" / ".samples").glob("part-*"))
    sound = [part.read_bytes() for part in parts]
    # As if killed before its first checkpoint, with one part lost and one damaged.
    for folder in (tmp_path / "run").glob("step-*"):
        shutil.rmtree(folder)
    parts[0].unlink()
    parts[3].write_bytes(sound[3][:-1] + bytes([sound[3][-1] ^ 1]))
    asked.clear()
    second = weights(distill(resume=tmp_path / "run").checkpoint)
    assert asked == [0, 3] and [part.read_bytes() for part in parts] == sound
    assert len(parts) > 4 and all(torch.equal(first[name], second[name]) for name in first)
    asked.clear()
    run(teacher, student, sums, tmp_path / "whole", **more)
    assert [part.read_bytes() for part in sorted((tmp_path / "whole" / ".samples").glob("part-*"))] == sound
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_an_interrupted_run_is_saved_and_goes_on(
    teacher: Path, student: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_to_stop(stop: StopRequest) -> StopRequest:
        stop.requested = True
        return stop

    monkeypatch.setattr(StopRequest, "__enter__", asked_to_stop)
    with pytest.raises(Interrupted, match="distill --resume"):
        run(teacher, student, sums, tmp_path / "run")
    monkeypatch.undo()
    assert distill(resume=tmp_path / "run").steps == 4


KINDS: dict[str, dict[str, Any]] = {
    "reversible low rank": {"block": "reversible", "linear": {"kind": "low_rank", "rank": 4}, "layers": 2},
    "latent": {"attention": {
        "kind": "mla", "heads": 2, "latent_rank": 8, "content_width": 8, "rotary_width": 8, "value_width": 8,
    }},
    "untied": {"tied_head": False, "logit_softcap": 20.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_student_of_any_kind_learns_text(kind: str, teacher: Path, text: Path, tmp_path: Path) -> None:
    shape = {**SMALLER, "vocabulary": read_config(teacher).vocabulary, **KINDS[kind]}
    recipe = tmp_path / "shapes.yaml"
    recipe.write_text(json.dumps({"model": shape}))
    result = run(teacher, recipe, text, tmp_path / "run", **{"train.steps": 8})
    assert result.after.loss is not None and result.before.loss is not None
    assert result.after.loss < result.before.loss
    assert read_config(result.model) == ModelConfig.model_validate(shape)
    saved, again = load_model(result.model), tmp_path / "again"
    save_model(saved, again, Tokenizer.load(result.model))
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        first, second = (one.head(one(tokens)[0]) for one in (saved, load_model(again)))
    assert torch.equal(first, second)
    assert Tokenizer.load(result.model).fingerprint() == Tokenizer.load(teacher).fingerprint()


def test_a_quantized_student_gets_an_adapter(teacher: Path, sums: Path, text: Path, tmp_path: Path) -> None:
    packed = quantize(teacher, tmp_path / "packed", group=16, method="rtn").folder
    result = run(teacher, packed, text, tmp_path / "run", **{"train.steps": 16, "optimizer.learning_rate": 3e-3})
    assert (result.model / "adapter_config.json").is_file() and "adapter" in str(result)
    assert result.after.loss is not None and result.before.loss is not None
    divergences = losses(tmp_path / "run", "divergence")
    assert 0 < sum(divergences[-3:]) < 0.9 * sum(divergences[:3])
    assert isinstance(LanguageModel.load(result.model).chat("1+1?", max_tokens=4), str)
    with pytest.raises(ConfigError, match="few bits"):
        run(teacher, packed, sums, tmp_path / "full", **{"adapter.method": "full"})
    assert not (tmp_path / "full").exists()


def test_a_distilled_student_takes_an_adapter(teacher: Path, student: Path, sums: Path, tmp_path: Path) -> None:
    made = run(teacher, student, sums, tmp_path / "run")
    tuned = shoestring.finetune(made.model, sums, steps=4, out=tmp_path / "tuned", overrides={
        "train.sequence_length": 128, "train.batch_tokens": 256, "data.validation": 0.2,
    })  # fmt: skip
    assert tuned.loss_after < tuned.loss_before
    from_adapter = run(tmp_path / "tuned", student, sums, tmp_path / "again", **{"train.steps": 1})
    assert from_adapter.teacher.loss == pytest.approx(tuned.loss_after, rel=0.2)


def test_the_command_does_the_same_and_prints_json(
    teacher: Path, student: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher", str(teacher), "--student", str(student), "--data", str(sums), "--out", str(tmp_path / "run")]
    flags += ["--divergence", "mixture", "--beta", "0.4", "--temperature", "2", "--labels", "0.1", "--json"]
    assert main(["distill", *flags, *tiny.flags({**SHORT, "train.steps": 2})]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2 and result["teacher"]["loss"] > 0 and Path(result["model"]).is_dir()
    assert main(["distill", "--resume", str(tmp_path / "run"), "--steps", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    assert main(["model", "show", result["model"]]) == 0
    assert "distill from" in capsys.readouterr().out
