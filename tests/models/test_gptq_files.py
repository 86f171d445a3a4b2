"""Folders of GPTQ and AWQ are read to the weights that their formats say; what would change them is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import family_of
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears
from tests.finetuning.tiny import SHAPE
from tests.models.gptq_folders import make_folder

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    config = ModelConfig.model_validate({**SHAPE, "vocabulary": 64})
    attention = config.attention.model_copy(update={"qkv_bias": True})
    save_model(build(config.model_copy(update={"attention": attention}), seed=2), folder)
    return folder


@pytest.mark.parametrize(
    ("method", "bits", "group", "version"),
    [("gptq", 4, 16, 1), ("gptq", 4, 16, 2), ("gptq", 8, -1, 1), ("gptq", 3, 8, 2), ("gptq", 2, 16, 1),
     ("awq", 4, 16, 1), ("awq", 4, -1, 1)],
)  # fmt: skip
def test_weights_are_those_that_the_format_says(
    dense: Path, tmp_path: Path, method: str, bits: int, group: int, version: int
) -> None:
    weights = make_folder(dense, tmp_path / "q", method, bits, group, version)
    decoder, original = load_model(tmp_path / "q"), load_model(dense)
    family, linears = family_of(decoder.config), packed_linears(decoder)
    assert len(linears) == 14 == len(weights)
    for name, linear in linears.items():
        assert_close(linear.weights(), weights[family.tensor_name(f"{name}.weight")], rtol=1e-6, atol=1e-7)
        bias = original.get_submodule(name).bias
        assert linear.bias is None if bias is None else torch.equal(linear.bias, bias)
    tokens_BT = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        found = decoder.head(decoder(tokens_BT)[0])
        for name, weight in weights.items():
            ours = next(n for n, _ in original.named_parameters() if family.tensor_name(n) == name)
            original.get_parameter(ours).copy_(weight)
        assert_close(found, original.head(original(tokens_BT)[0]), rtol=0, atol=1e-5)
    save_model(decoder, tmp_path / "again")  # as compressed-tensors
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "again").head(load_model(tmp_path / "again")(tokens_BT)[0]), found)


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(f"{QUERY}.scales"), "q_proj.scales is missing"),
        (lambda tensors: tensors.pop(f"{QUERY}.qzeros"), "q_proj.qzeros is missing"),
        (lambda tensors: tensors.pop(f"{QUERY}.qweight"), "q_proj"),
        (lambda tensors: tensors.update({f"{QUERY}.qweight": tensors[f"{QUERY}.qweight"][:2].contiguous()}),
         "q_proj.qweight has shape"),
        (lambda tensors: tensors.update({f"{QUERY}.qweight": tensors[f"{QUERY}.qweight"].float()}),
         "q_proj.qweight is float32 instead of int32"),
        (lambda tensors: tensors.update({f"{QUERY}.qzeros": tensors[f"{QUERY}.qzeros"][:, :1].contiguous()}),
         "q_proj.qzeros has shape"),
        (lambda tensors: tensors.update({f"{QUERY}.scales": tensors[f"{QUERY}.scales"].double()}),
         "q_proj.scales is float64"),
        (lambda tensors: tensors.update({"lm_head.qweight": torch.zeros(4, 64, dtype=torch.int32)}), "lm_head.qweight"),
        (lambda tensors: tensors.update({f"{QUERY}.perm": torch.zeros(32)}), "q_proj.perm is not part"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_told_by_name(
    dense: Path, tmp_path: Path, method: str, change: Callable[[dict[str, torch.Tensor]], Any], said: str
) -> None:
    make_folder(dense, tmp_path / "q", method)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=said):
        load_model(tmp_path / "q")


def test_groups_whose_inputs_do_not_follow_each_other_are_refused(dense: Path, tmp_path: Path) -> None:
    make_folder(dense, tmp_path / "q", "gptq")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    tensors[f"{QUERY}.g_idx"] = tensors[f"{QUERY}.g_idx"].flip(0).contiguous()
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="(?s)q_proj.g_idx: the inputs of a group.*desc_act off"):
        load_model(tmp_path / "q")


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("gptq", {"bits": 5}, "bits is 5"),
        ("gptq", {"bits": None}, "bits is None"),
        ("gptq", {"group_size": 0}, "group_size is 0"),
        ("gptq", {"group_size": "64"}, "group_size is '64'"),
        ("gptq", {"group_size": 5}, "groups of 5 do not divide the 32 inputs"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ("gptq", {"dynamic": {"-:x": {}}}, "dynamic is"),
        ("gptq", {"rotation": "hadamard"}, "rotation is 'hadamard'"),
        ("gptq", {"lm_head": True}, "lm_head is True"),
        ("gptq", {"weights_are_upside_down": True}, "weights_are_upside_down is True"),
        ("awq", {"version": "gemv"}, "version is 'gemv'"),
        ("awq", {"bits": 3}, "bits is 3"),
        ("awq", {"group_size": -2}, "group_size is -2"),
        ("awq", {"group_size": 8}, "qzeros has shape"),
    ],
)
def test_what_would_change_the_weights_is_refused_by_name(
    dense: Path, tmp_path: Path, method: str, changes: dict[str, Any], said: str
) -> None:
    make_folder(dense, tmp_path / "q", method)
    file = tmp_path / "q" / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"].update(changes)
    file.write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match=said):
        load_model(tmp_path / "q")


def test_such_folders_decode_in_blocks(dense: Path, tmp_path: Path) -> None:
    from shoestring.models.decoding_weights import load_for_decoding
    from shoestring.nn.quantized.decoding import DecodingLinear

    make_folder(dense, tmp_path / "q", "gptq", group=-1)
    plain, blocks = load_model(tmp_path / "q"), load_for_decoding(tmp_path / "q", "file")
    kinds = {name: type(module) for name, module in blocks.named_modules()}
    assert kinds["blocks.0.attention.query"] is DecodingLinear
    tokens_BT = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        found, expected = (decoder.head(decoder(tokens_BT)[0]) for decoder in (blocks, plain))
    assert 0 < (found - expected).std() < 0.05 * expected.std()
