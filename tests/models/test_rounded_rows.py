"""Embedding and head in 8 bits by rows: read as what they stand for by all that reads a folder, and kept so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoestring.cli.main import main
from shoestring.compression.merge.job import merge
from shoestring.compression.quantize.job import quantize
from shoestring.core.errors import ModelFileError
from shoestring.finetuning.job import finetune
from shoestring.models.decoding_weights import load_for_decoding
from shoestring.models.folder import load_model, stored_dtypes
from shoestring.models.rounded_rows import RoundedRows
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.head import DenseBlock
from shoestring.nn.quantized.decoding import DecodingEmbedding, DecodingHead
from shoestring.offload.model import open_streamed
from tests.finetuning import tiny

NAMES = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny.chat_model(folder / "dense", {**tiny.SHAPE, "tied_head": request.param})
    return quantize(folder / "dense", folder / "q", method="rtn", group=16, embedding=8).folder


@pytest.fixture(scope="module")
def values(made: Path) -> dict[str, torch.Tensor]:
    """What each end stands for, by the tensors of the file."""
    tensors = load_file(made / "model.safetensors")
    found = {}
    for end, name in NAMES.items():
        codes, scale = tensors.get(name, tensors[NAMES["embedding"]]), tensors[f"{name}_scale"]
        assert codes.dtype == torch.int8 and scale.shape == (codes.shape[0], 1) and scale.dtype == torch.bfloat16
        found[end] = codes.double() * scale.double()
    return found


def test_they_are_near_the_dense_ones_and_alone_in_the_file(made: Path, values: dict[str, torch.Tensor]) -> None:
    dense = load_model(made.parent / "dense")
    tied = dense.config.tied_head
    for end, exact in values.items():
        weight = dense.get_submodule(end).weight if end == "head" else dense.embedding.weight
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((exact - weight).abs() <= 0.51 * step + 1e-8).all() and not torch.equal(exact.float(), weight)
    names = {name for name in load_file(made / "model.safetensors") if name.startswith(tuple(NAMES.values()))}
    both = {NAMES["embedding"], *(f"{name}_scale" for name in NAMES.values())}
    assert names == both | (set() if tied else {NAMES["head"]})
    report = json.loads((made / "compression.json").read_text())
    assert report["how"] == "quantize to 4 bits in groups of 16, embedding in 8, rtn"


def test_each_way_to_read_gives_the_same_numbers(made: Path, values: dict[str, torch.Tensor]) -> None:
    with WeightFiles(made, packed=True) as files:
        assert files.dtype_of("embedding.weight") == torch.bfloat16 == stored_dtypes(made, True)["embedding.weight"]
        for end in files.rounded:
            place, exact = files.places[f"{end}.weight"], values[end].float()
            file, name = place.file, place.tensor
            assert isinstance(file, RoundedRows) and place.info.dtype == torch.float32
            assert torch.equal(file.read(name), exact) and torch.equal(file.read_rows(name, 3, 9), exact[3:9])
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                file.read_into(name, whole := torch.empty(exact.shape, dtype=dtype))
                file.read_part(name, 5, part := torch.empty((4, exact.shape[1]), dtype=dtype))
                assert torch.equal(whole, exact.to(dtype)) and torch.equal(part, exact[5:9].to(dtype))
            file.read_rows_into(name, 7, row := torch.empty(exact.shape[1]))
            file.stream_rows(name, rows := torch.empty(6, exact.shape[1]), 2)
            assert torch.equal(row, exact[7]) and torch.equal(rows, exact[2:8])
            again = file.again()
            assert torch.equal(again.read(name), exact)
            again.__exit__()
            assert torch.equal(torch.cat([linear.weights() for linear in file.linears(7)]), exact)


def test_a_large_matrix_is_made_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    with WeightFiles(made, packed=True) as files:
        place = files.places["embedding.weight"]
        whole = place.file.read(place.tensor)
        monkeypatch.setattr("shoestring.models.rounded_rows._TOGETHER", 5 * whole.shape[1] + 1)
        assert torch.equal(place.file.read(place.tensor), whole)


def test_decoding_multiplies_the_codes_as_they_are(made: Path, values: dict[str, torch.Tensor]) -> None:
    for weights in ("file", "int8", "int4"):
        decoder = load_for_decoding(made, weights)
        assert isinstance(decoder.head, DecodingHead) and decoder.head.matrix.held.dtype in (torch.int8, torch.uint8)
        (_, block), *_ = decoder.head.blocks(10**6, torch.float32)
        assert isinstance(block, DenseBlock)
        assert torch.equal(block._weight_VD, values["head"].float())
        assert isinstance(decoder.embedding, DecodingEmbedding)
        tokens = torch.arange(decoder.config.vocabulary)
        assert torch.equal(decoder.embedding(tokens), values["embedding"].float())
    dense = load_for_decoding(made, "float32")
    assert torch.equal(dense.head.weight, values["head"].float())


def test_rows_that_are_all_but_zero_stay_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens that were never trained; and a matrix of several parts is laid out in their order."""
    folder = tiny.chat_model(tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    tensors[NAMES["embedding"]][5] *= 1e-7
    tensors[NAMES["embedding"]][6] = 0
    save_file(tensors, folder / "model.safetensors")
    made = quantize(folder, tmp_path / "q", method="rtn", group=16, embedding=8).folder
    exact = load_model(made).embedding.weight
    assert exact[5].abs().max() < 1e-5 and not exact[6].any()
    for together in (4096, 32):
        monkeypatch.setattr("shoestring.models.decoding_weights._TOGETHER", together)
        decoder = load_for_decoding(made, "file")
        assert isinstance(decoder.embedding, DecodingEmbedding)
        assert torch.equal(decoder.embedding(torch.arange(len(exact))), exact)
        hidden = torch.randn(3, exact.shape[1], generator=torch.Generator().manual_seed(0))
        assert (decoder.head(hidden) - hidden @ exact.T).abs().max() < 0.02 * (hidden @ exact.T).abs().max()


def test_a_tied_matrix_under_the_heads_name_is_told(tmp_path: Path) -> None:
    folder = quantize(tiny.chat_model(tmp_path / "dense"), tmp_path / "q", method="rtn", group=16, embedding=8).folder
    expected = load_model(folder).embedding.weight
    change_tensors(folder, lambda t: t.update({NAMES["head"]: t.pop(NAMES["embedding"])}))
    assert torch.equal(load_model(folder).embedding.weight, expected)


def test_streamed_it_computes_what_it_does_in_memory(made: Path) -> None:
    tokens_BT = torch.arange(24).view(2, 12)
    whole, streamed = load_model(made), open_streamed(made)
    with torch.no_grad():
        logits = [decoder.head(decoder(tokens_BT)[0]) for decoder in (whole, streamed)]
    assert {memory.dtype for memory in streamed.head.source._memory} == {torch.int8}
    streamed.close()
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_an_adapter_trains_beside_it_and_is_merged_without_touching_it(made: Path, tmp_path: Path) -> None:
    sums = tiny.sums(tmp_path / "sums.jsonl")
    finetune(str(made), str(sums), overrides={**tiny.SHORT, "out": str(tmp_path / "run")})
    merged = merge(tmp_path / "run", tmp_path / "merged").folder
    before, after = (load_file(folder / "model.safetensors") for folder in (made, merged))
    names = {name for name in before if name.startswith(tuple(NAMES.values()))}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in names)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert main(["generate", str(merged), "--prompt", "1+1", "--max-tokens", "3", "--weights", "file"]) == 0
    whole = merge(tmp_path / "run", tmp_path / "whole", dense=True).folder
    assert stored_dtypes(whole)["embedding.weight"] == torch.bfloat16


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("lm_head.weight_scale"), "lm_head.weight"),
        (lambda t: t.pop("model.embed_tokens.weight_scale"), "embed_tokens.weight is int8|lm_head.weight_scale is not"),
        (lambda t: t.update({"model.embed_tokens.weight_scale": t["model.embed_tokens.weight_scale"][:-1].clone()}),
         "embed_tokens.weight_scale has shape"),
        (lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].float()}),
         "has scales, but is float32"),
        (lambda t: t.update({"model.embed_tokens.weight_zero_point": t["model.embed_tokens.weight_scale"].char()}),
         "embed_tokens.weight_zero_point is not part"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_told_by_name(made: Path, tmp_path: Path, change: Any, said: str) -> None:
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_tensors(tmp_path, change)
    with pytest.raises(ModelFileError, match=said):
        load_model(tmp_path)


def test_a_scale_of_the_heads_own_is_its_own_and_that_of_a_tied_one_the_embeddings(made: Path, tmp_path: Path) -> None:
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_tensors(tmp_path, lambda t: t["lm_head.weight_scale"].mul_(2))
    if load_model(made).config.tied_head:
        with pytest.raises(ModelFileError, match="lm_head.weight_scale differs from model.embed_tokens.weight_scale"):
            load_model(tmp_path)
    else:
        assert torch.equal(load_model(tmp_path).head.weight, 2 * load_model(made).head.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda group: group["weights"].update(num_bits=4), "embedding and head in 8 bits by rows"),
        (lambda group: group.update(input_activations={**group["weights"], "dynamic": True, "strategy": "token"}),
         "embedding and head in 8 bits by rows"),
    ],
)  # fmt: skip
def test_what_would_change_them_is_refused(made: Path, tmp_path: Path, change: Any, said: str) -> None:
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    assert groups["group_1"]["targets"] == ["model.embed_tokens", "lm_head"]
    change(groups["group_1"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="config_groups") as error:
        load_model(tmp_path)
    assert said in str(error.value.hint)


def test_scales_of_a_head_that_no_group_names_are_refused(made: Path, tmp_path: Path) -> None:
    """It may be one whose inputs are rounded too, as those of all linears."""
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]["config_groups"]["group_1"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="weight_scale"):
        load_model(tmp_path)
