"""Some linears of each block in 8 bits where the others are in fewer: which, to what weights, and read back as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.cli.main import main
from shoestring.compression.quantize.config import LINEARS, quantize_config
from shoestring.compression.quantize.job import quantize
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears
from tests.compression.quantize.test_quantize_resumed import content, stop_at
from tests.finetuning import tiny

FEW: dict[str, Any] = {"group": 16, "rows": 4, "context": 64, "held_out": 2}
WIDE = ("value", "down")
IN_EIGHT = {"attention.value", "feed_forward.down"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.chat_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="module")
def made(model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(model, tmp_path_factory.mktemp("made") / "q", calibrate=sums, wide=WIDE, **FEW).folder


def bits(folder: Path) -> dict[str, int]:
    return {name: linear.config.bits for name, linear in packed_linears(load_model(folder)).items()}


def test_the_linears_that_are_named_have_8_bits_and_the_others_4(made: Path) -> None:
    expected = {f"blocks.{index}.{name}": 8 if name in IN_EIGHT else 4 for index in range(2) for name in LINEARS}
    assert bits(made) == expected
    groups = json.loads((made / "config.json").read_text())["quantization_config"]["config_groups"]
    assert groups["group_0"]["targets"] == ["Linear"] and groups["group_0"]["weights"]["num_bits"] == 4
    assert groups["group_1"]["weights"]["num_bits"] == 8
    assert sorted(groups["group_1"]["targets"]) == [
        f"model.layers.{index}.{name}" for index in range(2) for name in ("mlp.down_proj", "self_attn.v_proj")
    ]
    assert json.loads((made / "compression.json").read_text())["how"] == (
        "quantize to 4 bits in groups of 16, value and down in 8, gptq"
    )


def test_each_is_rounded_as_where_all_are_so(model: Path, tmp_path: Path) -> None:
    for out, given in (("four", {"bits": 4}), ("eight", {"bits": 8}), ("both", {"bits": 4, "wide": WIDE})):
        quantize(model, tmp_path / out, method="rtn", group=16, symmetric=False, **given)
    four, eight, both = (packed_linears(load_model(tmp_path / out)) for out in ("four", "eight", "both"))
    for name, linear in both.items():
        judge = eight if name.split(".", 2)[2] in IN_EIGHT else four
        assert torch.equal(linear.weights(), judge[name].weights())
    sizes = [(tmp_path / out / "model.safetensors").stat().st_size for out in ("four", "both", "eight")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    model: Path, sums: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 10, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quantize(model, tmp_path / "q", calibrate=sums, wide=WIDE, **FEW)
    said: list[str] = []
    quantize(model, tmp_path / "q", calibrate=sums, wide=tuple(reversed(WIDE)), say=said.append, **FEW)
    assert any(line.startswith("resume") for line in said) and content(tmp_path / "q") == content(made)


def test_it_is_saved_again_as_it_was_read(made: Path, tmp_path: Path) -> None:
    decoder = load_model(made)
    save_model(decoder, tmp_path / "again", Tokenizer.load(made))
    assert bits(tmp_path / "again") == bits(made)
    again = load_model(tmp_path / "again")
    assert all(torch.equal(buffer, again.get_buffer(name)) for name, buffer in decoder.named_buffers())


def test_groups_alike_are_one_and_tensors_that_fit_two_ways_are_refused(model: Path, tmp_path: Path) -> None:
    """A group of 32 inputs, and a whole row where 32 are all."""
    quantize(model, folder := tmp_path / "q", method="rtn", group=0, wide=WIDE)
    before, file = bits(folder), folder / "config.json"
    config = json.loads(file.read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_2"] = groups["group_0"] | {"targets": ["re:.*k_proj"]}
    file.write_text(json.dumps(config))
    assert bits(folder) == before
    groups["group_2"]["weights"] = groups["group_0"]["weights"] | {"group_size": 32, "strategy": "group"}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="layers.0.self_attn.q_proj do not tell which is its"):
        load_model(folder)


def test_tensors_that_fit_no_way_are_refused(made: Path, tmp_path: Path) -> None:
    save_model(load_model(made), tmp_path / "q", Tokenizer.load(made))
    file = tmp_path / "q" / "config.json"
    file.write_text(file.read_text().replace('"num_bits": 8', '"num_bits": 5'))
    with pytest.raises(ModelFileError, match="v_proj.weight_packed has shape"):
        load_model(tmp_path / "q")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wide": ["down"], "bits": 8}, "leave one of them out"),
        ({"wide": ["down"], "method": "awq", "calibrate": "stdlib"}, "methods rtn and gptq, not with awq"),
        ({"wide": ["lm_head"]}, "wide"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        quantize_config({"method": "rtn", **given})


def test_the_verb_takes_names_with_commas(
    model: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--calibrate", str(sums), "--group", "16", "--rows", "2", "--context", "64", "--out", str(tmp_path / "q")]
    assert main(["quantize", str(model), *flags, "--wide", "down, value"]) == 0
    shown = capsys.readouterr()
    assert "value and down in 8" in shown.err and "in 4 and 8 bits" in shown.out
    assert set(bits(tmp_path / "q").values()) == {4, 8}
    assert main(["generate", str(tmp_path / "q"), "--prompt", "1+1", "--max-tokens", "3"]) == 0
    assert main(["quantize", str(model), *flags[:-1], str(tmp_path / "other"), "--wide", "dwn"]) == 2
    assert "wide" in capsys.readouterr().err and not (tmp_path / "other").exists()
