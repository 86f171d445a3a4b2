"""`compress` on a tiny model: sizes as predicted, the best that meets the goal, stopped and resumed, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.cli.main import main
from shoestring.compression.calibration import read_calibration
from shoestring.compression.compress import choice, job
from shoestring.compression.compress.candidates import families
from shoestring.compression.compress.cast import cast
from shoestring.compression.compress.choice import Goal
from shoestring.compression.compress.config import compress_config
from shoestring.compression.compress.job import _shapes, compress
from shoestring.compression.compress.measure import loss_of
from shoestring.compression.compress.result import Compressed
from shoestring.compression.quantize.job import quantize
from shoestring.core.errors import ConfigError, ModelFileError, RunError
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears
from shoestring.models.peft_folder import save_adapter
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.lora_config import LoRAConfig
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny
from tests.train.tiny import corpus

SHAPE = {
    "width": 64, "layers": 2, "context": 128,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 16},
    "feed_forward": {"kind": "swiglu", "width": 128},
}  # fmt: skip
FEW: dict[str, Any] = {"rows": 4, "context": 64, "held_out": 2, "recover": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose every matrix counts."""
    folder, tokenizer = tmp_path_factory.mktemp("model") / "model", chatml(templates.CHATML)
    decoder = build(ModelConfig.model_validate({**SHAPE, "vocabulary": tokenizer.vocabulary_size}), seed=1)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2, generator=random)
    save_model(decoder, folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def half(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16, which nothing makes smaller without a loss."""
    folder = tmp_path_factory.mktemp("half") / "model"
    cast(model, folder)
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


def quick(calls: list[tuple[str, int, int]], patch: pytest.MonkeyPatch) -> None:
    """Note method, bits and group of each call of quantize; learning takes few steps."""

    def quantizing(source: Path, to: Path, **settings: Any) -> Any:
        calls.append((settings["method"], settings["bits"], settings["group"]))
        return quantize(source, to, **settings, **({"steps": 2} if settings["method"] == "learned" else {}))

    patch.setattr(job, "quantize", quantizing)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    calls: list[tuple[str, int, int]] = []
    quick(calls, monkeypatch)
    return calls


@pytest.fixture(scope="module")
def made(model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    """Under a target, alone in its folder."""
    with pytest.MonkeyPatch.context() as patch:
        quick([], patch)
        patch.setattr(choice, "AS_GOOD", math.inf)  # so little text is measured that nothing seems lost
        return compress(model, tmp_path_factory.mktemp("made") / "small", "0.3x", calibrate=sums, **FEW)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sizes_are_predicted_to_the_byte(model: Path, tmp_path: Path) -> None:
    with WeightFiles(model) as files:
        shapes = _shapes(files)
    every = {candidate.key: candidate for family in families(shapes) for candidate in family}
    assert cast(model, tmp_path / "half") == every["bfloat16"].bytes
    for key in ("rtn-8-0", "rtn-8-0-embedding", "rtn-4-64", "rtn-3-32"):
        settings = every[key].steps[0][1]
        assert quantize(model, tmp_path / key, **settings).after.weight_bytes == every[key].bytes
    some = every["gptq-4-32-embedding-output-down"]
    settings = {**some.steps[0][1], "method": "rtn"}
    assert quantize(model, tmp_path / "some", **settings).after.weight_bytes == some.bytes
    for bits in (3, 4):  # zero points are packed along the other side
        made = quantize(model, tmp_path / f"asymmetric-{bits}", bits, 32, "rtn", symmetric=False, dtype="bfloat16")
        assert made.after.weight_bytes == every[f"gptq-asymmetric-{bits}-32"].bytes


def test_a_cast_model_is_the_same_in_bfloat16(model: Path, tmp_path: Path) -> None:
    cast(model, tmp_path / "half")
    dense, half = load_model(model), load_model(tmp_path / "half")
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter.float(), dense.get_parameter(name).bfloat16().float())
    assert Tokenizer.load(tmp_path / "half").chat_template == Tokenizer.load(model).chat_template
    assert left(tmp_path / "half").count("model.safetensors") == 1 and "part.safetensors" not in left(tmp_path / "half")


def test_the_loss_is_what_quantizing_measures(model: Path, sums: Path, tmp_path: Path) -> None:
    settings = compress_config({"calibrate": str(sums), "target": "0.3x", **FEW})
    text = read_calibration(settings, Tokenizer.load(model), 128, None)
    made = quantize(model, tmp_path / "q", 4, 32, "rtn", sums, rows=4, context=64, held_out=2)
    assert made.before.loss is not None and made.after.loss is not None
    assert loss_of(model, text, None)[0] == pytest.approx(made.before.loss, rel=1e-5)
    assert loss_of(tmp_path / "q", text, None)[0] == pytest.approx(made.after.loss, rel=1e-5)
    assert loss_of(model, text, 10**10)[0] == pytest.approx(made.before.loss, rel=1e-5)


def test_the_best_under_a_target_is_taken_and_the_table_says_what_was_tried(model: Path, made: Compressed) -> None:
    result, folder = made, made.folder
    assert result.after.bytes <= 0.3 * result.before.bytes and left(folder.parent) == ["small"]
    tried = [row for row in result.rows if row.figures is not None]
    assert result.quality == max(row.quality for row in tried) and result.chosen.said == "taken"
    assert all(row.predicted == row.figures.bytes <= 0.3 * result.before.bytes for row in tried)
    untried = {row.key: row.said for row in result.rows if row.figures is None}
    assert untried["bfloat16"] == "larger than the target" and "finer was small enough" in untried["rtn-3-64"]
    kept = json.loads((folder / "compression.json").read_text())
    assert kept["verb"] == "compress" and kept["chosen"] == result.chosen.key
    assert kept["after"]["loss"] == result.after.loss and len(kept["candidates"]) == len(result.rows)
    linears = packed_linears(load_model(folder))
    settings = result.chosen.steps[0][1]
    expected = {(8 if name.rpartition(".")[2] in settings.get("wide", ()) else settings["bits"]) for name in linears}
    assert {each.config.bits for each in linears.values()} == expected
    assert {each.config.group for each in linears.values()} == {settings["group"]}
    text = str(result)
    assert "not tried" in text and f"{result.quality:.1%} kept" in text and "as it is" in text
    assert result.before.bytes == sum(t.numel() * 4 for t in load_model(model).parameters())


def test_the_smallest_that_keeps_the_quality_is_taken(model: Path, sums: Path, tmp_path: Path, counted: list) -> None:
    result = compress(model, tmp_path / "good", keep="97%", calibrate=sums, **FEW)
    good = [row for row in result.rows if row.quality is not None and row.quality >= 0.97]
    assert result.chosen in good and result.after.bytes == min(row.figures.bytes for row in good)
    with pytest.raises(RunError, match="exists|not empty"):
        compress(model, tmp_path / "good", keep="97%", calibrate=sums, **FEW)


def test_a_stopped_run_goes_on_with_the_next_candidate_and_another_goal_with_the_same_figures(
    model: Path, sums: Path, tmp_path: Path, made: Compressed, counted: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = job.quantize, []

    def stopping(source: Path, to: Path, **settings: Any) -> Any:
        if settings["method"] == "awq":
            raise KeyboardInterrupt
        return real(source, to, **settings)

    monkeypatch.setattr(job, "quantize", stopping)
    monkeypatch.setattr(choice, "AS_GOOD", math.inf)
    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "small", "0.3x", calibrate=sums, say=said.append, **FEW)
    assert left(tmp_path) == [".small.compress"] and "4 candidates done" in said[-1]
    before = list(counted)
    monkeypatch.setattr(job, "quantize", real)
    resumed = compress(model, tmp_path / "small", "0.3x", calibrate=sums, say=said.append, **FEW)
    assert any("4 candidates of an earlier run are known" in line for line in said)
    assert [method for method, *_ in before] == ["rtn", "gptq", "gptq", "gptq"] and counted[4][0] == "awq"
    assert resumed.chosen.key == made.chosen.key and resumed.after.loss == made.after.loss
    one, other = ((each.folder / "model.safetensors").read_bytes() for each in (resumed, made))
    assert one == other


def test_pruning_is_the_last_way_and_no_candidate_has_seen_what_is_measured(
    model: Path, tmp_path: Path, counted: list
) -> None:
    text = corpus(tmp_path / "text")
    given = {**FEW, "recover": 2}
    result = compress(model, tmp_path / "small", "0.16x", calibrate=text, **given)
    said = {row.key: row.said for row in result.rows}
    last = [row for row in result.rows if row.figures is not None][-1]
    assert last.key == "pruned-0.7" and last.figures is not None and last.figures.bytes == last.predicted
    assert said["pruned-0.9"] == "larger than the target" and "finer was small enough" in said["pruned-0.6"]
    settings = compress_config({"calibrate": str(text), "target": "0.16x", **given})
    few, many = (
        read_calibration(settings.model_copy(update={"rows": rows, "read": 70}), Tokenizer.load(model), 128, None)
        for rows in (4, 64)
    )
    measured = [batch.tokens_BT for batch in few.measured]
    assert all(torch.equal(a, b) for a, b in zip(measured, (b.tokens_BT for b in many.measured), strict=True))
    windows = [{tuple(row.tolist()) for b in each for row in b.tokens_BT} for each in (few.measured, many.calibrating)]
    assert windows[0] and not windows[0] & windows[1]


def test_the_suite_counts_where_it_is_worse(
    model: Path, sums: Path, tmp_path: Path, counted: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="answers none of the suite's questions"):
        compress(model, tmp_path / "small", "0.3x", calibrate=sums, suite="core", items=1, **FEW)
    assert left(tmp_path) == []
    asked = []

    def suite_of(folder: Path, name: str, *rest: Any) -> float:
        asked.append(name)
        return 0.5 if folder == model else 0.4 if "gptq, " in name else 0.1

    monkeypatch.setattr(job, "suite_of", suite_of)
    result = compress(model, tmp_path / "small", "0.3x", calibrate=sums, suite="core", items=1, **FEW)
    assert result.chosen.key.startswith("gptq-4") and result.quality <= 0.8 and len(asked) == 1 + len(set(asked[1:]))
    assert "50.0%" in str(result) and "suite" in str(result)


def test_time_that_is_up_takes_what_there_is(
    model: Path, half: Path, sums: Path, tmp_path: Path, counted: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = compress(model, tmp_path / "small", "0.3x", calibrate=sums, time=1e-6, **FEW)
    assert len(counted) == 1 and result.chosen.key.startswith("rtn")
    assert any(row.said == "the time was up" for row in result.rows)
    monkeypatch.setattr(Goal, "quality", lambda goal, found: 0.5)
    with pytest.raises(RunError, match="the time was up before a candidate met the goal"):
        compress(half, tmp_path / "good", keep="100%", calibrate=sums, time=1e-6, **FEW)
    assert ".good.compress" in left(tmp_path)


def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    model: Path, half: Path, sums: Path, tmp_path: Path, counted: list, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refused(*words: str) -> str:
        assert main(["compress", str(half), "--calibrate", str(sums), "--out", str(tmp_path / "x"), *words]) == 2
        assert left(tmp_path) == []
        return capsys.readouterr().err

    smallest = refused("--target", "10kB")
    assert "cannot be reached: the smallest is 0.1 MB (" in smallest and "embedding, head and norms" in smallest
    assert "the model's weights take 182 kB" in refused("--target", "100MB")
    assert not counted
    monkeypatch.setattr(Goal, "quality", lambda goal, found: 0.5)  # on so little text a quality may be above 1
    error = refused("--keep", "99%", "--rows", "4", "--context", "64", "--recover", "0")
    assert "no candidate keeps 99.00% of the quality: the best keeps 50.00% (" in error and "--keep 50.0%" in error
    adapted = load_model(model)
    attach(adapted, LoRAConfig(rank=2))
    save_adapter(adapted, tmp_path / "adapter", model)
    with pytest.raises(ConfigError, match="is an adapter"):
        compress(tmp_path / "adapter", tmp_path / "x", "0.5x", calibrate=sums)
    gelu = {**SHAPE, "vocabulary": 300, "feed_forward": {"kind": "gelu", "width": 64}}
    save_model(build(ModelConfig.model_validate(gelu), seed=1), tmp_path / "adapter" / "gelu")
    with pytest.raises(ModelFileError, match="can be quantized"):
        compress(tmp_path / "adapter" / "gelu", tmp_path / "x", "0.5x", calibrate=sums)


def test_the_command_shows_the_table_and_json(
    model: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compress", str(model), "--target", "0.5x", "--calibrate", str(sums), "--rows", "4", "--context", "64"]
    assert main([*words, "--out", str(tmp_path / "half")]) == 0
    shown = capsys.readouterr()
    assert "bfloat16" in shown.out and "taken" in shown.out and "try       bfloat16" in shown.err
    assert main([*words, "--out", str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "bfloat16"
    assert main(["model", "show", str(tmp_path / "half")]) == 0
    assert "compress: bfloat16" in capsys.readouterr().out
