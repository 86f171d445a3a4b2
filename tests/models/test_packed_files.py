"""Folders with a quantization_config of compressed-tensors: others' ways of writing it, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import read_config, read_quantization
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears
from shoestring.models.quantization import Scheme
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.replace import replace_linears
from tests.finetuning.tiny import SHAPE

QUERY = "model.layers.0.self_attn.q_proj.weight"


def quantized(**settings: Any) -> Decoder:
    decoder = build(ModelConfig.model_validate({**SHAPE, "vocabulary": 64}), seed=2).eval()
    replace_linears(decoder, PackedConfig(**settings), lambda name, _: name.startswith("blocks."))
    return decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(quantized(group=16, symmetric=False), tmp_path / "q")
    return tmp_path / "q"


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return decoder.head(decoder(torch.arange(30).unsqueeze(0))[0])


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the section quantization_config."""
    file = folder / "config.json"
    values = json.loads(file.read_text())
    change(values["quantization_config"])
    file.write_text(json.dumps(values))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4, "group": 16}, {"bits": 3, "group": 16, "symmetric": False}, {"bits": 5, "group": None},
        {"bits": 8, "group": 8, "scale": "float32"}, {"bits": 8, "group": None, "activations": "int8"},
        {"bits": 8, "group": None, "activations": "int8", "symmetric": False, "scale": "float16"},
    ],
)  # fmt: skip
def test_what_is_saved_comes_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    decoder = quantized(**settings)
    save_model(decoder, tmp_path / "q")
    again = load_model(tmp_path / "q")
    assert {name: linear.config for name, linear in packed_linears(again).items()} == {
        name: linear.config for name, linear in packed_linears(decoder).items()
    }
    for name, buffer in decoder.named_buffers():
        assert torch.equal(buffer, again.get_buffer(name)), name
    assert torch.equal(logits(again), logits(decoder)) and not again.training


def test_the_config_says_what_is_packed(folder: Path) -> None:
    assert read_quantization(folder) == Scheme("compressed-tensors", PackedConfig(group=16, symmetric=False))
    assert read_config(folder) == load_model(folder).config
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert section["format"] == "pack-quantized" and section["ignore"] == ["lm_head"]
    save_model(build(read_config(folder), seed=0), folder.parent / "dense")
    assert read_quantization(folder.parent / "dense") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda section: section["config_groups"].update(mine=section["config_groups"].pop("group_0")),
        lambda section: section.update(quantization_status="frozen", version="0.20.0", sparsity_config={}),
        lambda section: section["config_groups"]["group_0"].update(targets=["re:.*proj"], format="pack-quantized"),
        lambda section: weights_of(section).update(actorder="static", observer="mse", scale_dtype="torch.bfloat16"),
        lambda section: weights_of(section).update(strategy=None, zp_dtype="torch.int8"),
    ],
)
def test_other_ways_to_say_the_same_are_read(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    expected = logits(load_model(folder))
    edit(folder, change)
    assert torch.equal(logits(load_model(folder)), expected)


def weights_of(section: dict[str, Any]) -> dict[str, Any]:
    return section["config_groups"]["group_0"]["weights"]


def in_bytes(section: dict[str, Any]) -> dict[str, Any]:
    """Another group, whose inputs are in 8 bits too."""
    inputs = {"num_bits": 8, "dynamic": True, "strategy": "token"}
    return {**copy.deepcopy(section["config_groups"]["group_0"]), "input_activations": inputs}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda section: section.update(format="nvfp4-pack-quantized"), "format is 'nvfp4-pack-quantized'"),
        (lambda section: section.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (lambda section: section.update(sparsity_config={"format": "dense"}), "sparsity_config"),
        (lambda section: section.update(new_field=3), "new_field is 3"),
        (lambda section: section.update(config_groups={}), "config_groups is 0 groups"),
        (lambda section: section["config_groups"].update(other=in_bytes(section)), "config_groups is of both kinds"),
        (lambda section: section["config_groups"].update(group_0=[]), "config_groups is \\[\\]"),
        (lambda section: section["config_groups"]["group_0"].update(weights=None), "weights is None"),
        (lambda section: weights_of(section).update(type="float"), "type is 'float'"),
        (lambda section: weights_of(section).update(num_bits=16), "num_bits is 16"),
        (lambda section: weights_of(section).update(num_bits=True), "num_bits is True"),
        (lambda section: weights_of(section).update(symmetric=1), "symmetric is 1"),
        (lambda section: weights_of(section).update(strategy="block"), "strategy is 'block'"),
        (lambda section: weights_of(section).update(actorder="group"), "actorder is 'group'"),
        (lambda section: weights_of(section).update(dynamic=True), "dynamic is True"),
        (lambda section: weights_of(section).update(group_size=0), "group_size is 0"),
        (lambda section: section["config_groups"]["group_0"].update(input_activations={"num_bits": 4}),
         "num_bits is 4"),
        (lambda section: section["config_groups"]["group_0"].update(input_activations={"num_bits": 8}),
         "dynamic is None"),
        (lambda section: section["config_groups"]["group_0"].update(output_activations={}), "output_activations"),
    ],
)  # fmt: skip
def test_what_would_change_the_weights_is_refused_by_name(
    folder: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    edit(folder, change)
    for read in (read_config, load_model):
        with pytest.raises(ModelFileError, match=f"(?s)config.json.*quantized in a way that cannot be read.*{said}"):
            read(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(f"{QUERY}_scale"), "q_proj.weight_scale is missing"),
        (lambda tensors: tensors.pop(f"{QUERY}_zero_point"), "q_proj.weight_zero_point is missing"),
        (lambda tensors: tensors.pop(f"{QUERY}_packed"), "q_proj"),
        (lambda tensors: tensors.update({f"{QUERY}_packed": tensors[f"{QUERY}_packed"][:, :2].contiguous()}),
         "q_proj.weight_packed has shape"),
        (lambda tensors: tensors.update({f"{QUERY}_packed": tensors[f"{QUERY}_packed"].float()}),
         "q_proj.weight_packed is float32 instead of int32"),
        (lambda tensors: tensors.update({f"{QUERY}_scale": tensors[f"{QUERY}_scale"].double()}),
         "q_proj.weight_scale is float64"),
        (lambda tensors: tensors.update({f"{QUERY}_shape": torch.tensor([32, 31])}), "weight_shape says another shape"),
        (lambda tensors: tensors.update({f"{QUERY}_g_idx": torch.zeros(32)}), "q_proj.weight_g_idx is not part"),
        (lambda tensors: tensors.update({"lm_head.weight_packed": torch.zeros(64, 4, dtype=torch.int32)}),
         "lm_head.weight_packed"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_told_by_name(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], said: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(ModelFileError, match=said):
        load_model(folder)


def test_other_groups_than_the_tensors_have_are_refused(folder: Path) -> None:
    edit(folder, lambda section: weights_of(section).update(group_size=8))
    with pytest.raises(ModelFileError, match="weight_scale has shape"):
        load_model(folder)
    edit(folder, lambda section: weights_of(section).update(group_size=5))
    with pytest.raises(ModelFileError, match="groups of 5 do not divide the 32 inputs"):
        load_model(folder)


def test_half_precision_and_float64_are_computed_in(folder: Path) -> None:
    exact = logits(load_model(folder, dtype=torch.float64))
    assert exact.dtype == torch.float64
    torch.testing.assert_close(logits(load_model(folder)).double(), exact, rtol=0, atol=1e-5)
    half = load_model(folder, dtype=torch.bfloat16)
    torch.testing.assert_close(logits(half).double(), exact, rtol=0, atol=3e-2)
