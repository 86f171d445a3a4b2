"""Quantizing that was stopped goes on behind the last whole block, to the same bytes; and it stays inside a budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cgroup import memory_group, why_not
from shoestring.compression.passage import InMemory, OnDisk
from shoestring.compression.quantize import blocks, job
from shoestring.compression.quantize.config import quantize_config
from shoestring.compression.quantize.job import quantize
from shoestring.compression.quantize.memory import make_room
from shoestring.compression.unfinished import place_of, unfinished
from shoestring.core.errors import BudgetError, ModelFileError, RunError
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from tests.finetuning import tiny

FEW: dict[str, Any] = {"group": 16, "rows": 4, "context": 64, "held_out": 2, "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three blocks."""
    folder = tiny.chat_model(tmp_path_factory.mktemp("model") / "model")
    tokenizer = Tokenizer.load(folder)
    config = load_model(folder).config.model_copy(update={"layers": 3, "initializer_range": 0.2})
    save_model(build(config, seed=1), folder, tokenizer, replace=True)
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


def stop_at(monkeypatch: pytest.MonkeyPatch, matrix: int, error: BaseException) -> None:
    """Once so many matrices have been rounded."""
    found, rounded = [], blocks._rounded

    def one(*given: Any) -> Any:
        found.append(1)
        if len(found) > matrix:
            raise error
        return rounded(*given)

    monkeypatch.setattr(blocks, "_rounded", one)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "compression.json"}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_stopped_run_goes_on_behind_its_last_block_to_the_same_bytes(
    model: Path, sums: Path, tmp_path: Path, monkeypatch, method: str
) -> None:
    whole = quantize(model, tmp_path / "whole", method=method, calibrate=sums, **FEW)
    out, said = tmp_path / "q", []
    with monkeypatch.context() as patched:
        stop_at(patched, 10, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quantize(model, out, method=method, calibrate=sums, say=said.append, **FEW)
    assert not out.exists() and "1 block done: the same command goes on" in said[-1]
    assert len(json.loads((place_of(out) / "journal.json").read_text())["parts"]) == 2
    with monkeypatch.context() as patched:
        stop_at(patched, 14, AssertionError("no more than the two blocks that were left"))
        result = quantize(model, out, method=method, calibrate=sums, say=said.append, **FEW)
    assert any("resume    behind 1 block" in line for line in said)
    assert content(out) == content(whole.folder) and not place_of(out).exists()
    assert (result.matrices, result.after.loss, result.packed_bytes, result.before.loss) == (
        whole.matrices, whole.after.loss, whole.packed_bytes, whole.before.loss
    )  # fmt: skip


def test_what_is_unfinished_of_something_else_or_broken_is_begun_anew_and_told(
    model: Path, sums: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "q"

    def stopped(**settings: Any) -> None:
        with monkeypatch.context() as patched:
            stop_at(patched, 10, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                quantize(model, out, calibrate=sums, **{**FEW, **settings})

    stopped()
    said: list[str] = []
    stopped(seed=5)  # the other text
    part = place_of(out) / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    result = quantize(model, out, calibrate=sums, say=said.append, **{**FEW, "seed": 5})
    assert any("anew" in line and "files are broken" in line for line in said)
    again = quantize(model, tmp_path / "again", calibrate=sums, **{**FEW, "seed": 5})
    assert content(out) == content(again.folder) and result.after.loss == again.after.loss
    (tmp_path / "p").mkdir()
    for journal in ("{", '{"version": 1}'):
        place_of(tmp_path / "p").mkdir(exist_ok=True)
        (place_of(tmp_path / "p") / "journal.json").write_text(journal)
        with unfinished(tmp_path / "p", {}, said.append) as work:
            assert work.parts == [] and "its journal is broken" in said.pop()


def test_a_sentence_about_what_was_given_leaves_nothing_behind(
    model: Path, sums: Path, tmp_path: Path, monkeypatch
) -> None:
    stop_at(monkeypatch, 10, ModelFileError("broken"))
    with pytest.raises(ModelFileError, match="broken"):
        quantize(model, tmp_path / "out" / "q", calibrate=sums, **FEW)
    assert not list((tmp_path / "out").iterdir())


def test_without_text_it_goes_on_to_the_same_bytes_too(model: Path, tmp_path: Path, monkeypatch) -> None:
    given: dict[str, Any] = {"method": "rtn", "group": 16}
    quantize(model, tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        stop_at(patch, 10, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quantize(model, tmp_path / "q", **given)
    said: list[str] = []
    quantize(model, tmp_path / "q", say=said.append, **given)
    assert any("behind 1 block of" in line for line in said) and content(tmp_path / "q") == content(tmp_path / "whole")


def test_two_runs_do_not_make_one_folder(tmp_path: Path) -> None:
    with unfinished(tmp_path / "q", {}, None) as work:
        other = unfinished(tmp_path / "q", {}, None)
        with pytest.raises(RunError, match="another process is making this folder"), other:
            pass
        assert work.folder.is_dir()


@pytest.mark.parametrize("method", ["gptq", "learned"])
def test_hidden_states_on_disk_give_the_same_bytes(
    model: Path, sums: Path, tmp_path: Path, monkeypatch, method: str
) -> None:
    settings = {**FEW, "method": method, "calibrate": sums, **({"steps": 3} if method == "learned" else {})}
    in_memory = quantize(model, tmp_path / "memory", **settings)
    made = []
    monkeypatch.setattr(job, "make_room", lambda *given: on_disk(made, make_room(*given)))
    result = quantize(model, tmp_path / "disk", **settings)
    assert made and content(in_memory.folder) == content(result.folder)
    assert result.after.loss == in_memory.after.loss and result.before.loss == in_memory.before.loss


def on_disk(made: list[Any], room: Any) -> Any:
    made.append(type(room)(room.tokens, True, room.lines, room.beside))
    return made[-1]


def test_hidden_states_come_back_from_disk(tmp_path: Path) -> None:
    x_BTD = torch.randn(2, 3, 5)
    for kept in (InMemory(), OnDisk(tmp_path / "x")):
        kept.put(x_BTD)
        assert torch.equal(kept.get(), x_BTD)
    (tmp_path / "x").write_bytes(b"short")
    with pytest.raises(RunError, match="were changed while they are used"):
        kept.get()


QWEN_3B = {
    "vocabulary": 151_936, "width": 2048, "layers": 36, "context": 32_768, "tied_head": True,
    "attention": {"heads": 16, "kv_heads": 2, "head_width": 128, "qkv_bias": True}, "feed_forward": {"width": 11_008},
}  # fmt: skip


def test_a_3b_model_is_predicted_to_fit_in_3_gb_and_what_does_not_fit_says_what_would() -> None:
    config = ModelConfig.model_validate(QWEN_3B)
    settings = quantize_config({"calibrate": "text", "method": "gptq"})
    room = make_room(config, settings, 400_000_000, 3_000_000_000)
    assert room.total < 0.97 * 3e9 < make_room(config, settings, 400_000_000, None).total or not room.on_disk
    with pytest.raises(BudgetError, match="(?s)too little to quantize this model by gptq.*MB would do") as caught:
        make_room(config, settings, 400_000_000, 1_000_000_000)
    least = int(str(caught.value).split("MB would do")[0].split()[-1])
    assert make_room(config, settings, 400_000_000, least * 1_000_000).on_disk


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "learned"])
def test_tensors_take_no_more_than_is_predicted(sums: Path, model: Path, tmp_path: Path, method: str) -> None:
    if not allocator.install():
        pytest.fail("this machine has no compiler, and nothing counts memory")
    config = load_model(model).config
    wide = {**config.model_dump(), "width": 128, "layers": 1, "feed_forward": {"width": 512}}
    save_model(build(ModelConfig.model_validate(wide), seed=0), tmp_path / "wide", Tokenizer.load(model))
    settings = {"calibrate": sums, "rows": 8, "context": 128, "method": method}
    settings |= {"steps": 2} if method == "learned" else {}
    room = make_room(ModelConfig.model_validate(wide), quantize_config({**settings, "calibrate": "x"}), 0, None)
    allocator.reset_peaks()
    before = allocator.live()
    quantize(tmp_path / "wide", tmp_path / "q", **settings)
    counts = allocator.counts()
    assert counts is not None and counts.live_peak - before <= room.tensors


@pytest.mark.long
def test_a_3b_shape_is_quantized_in_a_group_of_3_gb(model: Path, tmp_path: Path) -> None:
    """Its widths and vocabulary in two of its layers, which is all that is in memory at a time."""
    assert why_not() is None, why_not()
    config = ModelConfig.model_validate({**QWEN_3B, "layers": 2})
    decoder = build(config, seed=0, dtype=torch.bfloat16)
    save_model(decoder, tmp_path / "3b", Tokenizer.load(model))
    del decoder
    command = [
        sys.executable, "-m", "shoestring", "quantize", str(tmp_path / "3b"), "--calibrate", "stdlib",
        "--memory", "3GB", "--rows", "16", "--out", str(tmp_path / "q"),
    ]  # fmt: skip
    with memory_group(3_000_000_000) as group:
        done = subprocess.run(group.command(command), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert group.kills == 0
    report = json.loads((tmp_path / "q" / "compression.json").read_text())
    assert report["peak_memory"] < 3e9 and len(report["matrices"]) == 14
