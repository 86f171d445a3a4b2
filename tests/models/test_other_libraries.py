"""Folders that the libraries of GPTQ and AWQ made (`other_libraries/make.py`) give the logits that these give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears

FOLDERS = {folder.name: folder for folder in sorted((Path(__file__).parent / "other_libraries").glob("*-4"))}


def logits(decoder: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder.head(decoder(tokens_BT)[0])


def test_both_methods_of_both_libraries_are_there() -> None:
    assert set(FOLDERS) == {"auto-round-awq-4", "auto-round-gptq-4", "gptqmodel-awq-4", "gptqmodel-gptq-4"}
    for name, folder in FOLDERS.items():
        section = json.loads((folder / "config.json").read_text())["quantization_config"]
        made = json.loads((folder / "made.json").read_text())
        assert section["quant_method"] == name.split("-")[-2] == made["arguments"][1] and made["gptqmodel"]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_same_logits(name: str, tmp_path: Path) -> None:
    decoder, told = load_model(FOLDERS[name], dtype=torch.float32), load_file(FOLDERS[name] / "logits.safetensors")
    found = logits(decoder, told["tokens"])
    assert_close(found, told["logits"], rtol=0, atol=1e-4)
    assert len(packed_linears(decoder)) == 14 and found.std() > 1
    linear = packed_linears(decoder)["blocks.1.feed_forward.up"]
    linear.zero[0, 0] += 1  # or another meaning of zero points would pass
    assert (logits(decoder, told["tokens"]) - found).abs().max() > 1e-3


@pytest.mark.parametrize("name", FOLDERS)
def test_saved_again_as_compressed_tensors_it_is_the_same(name: str, tmp_path: Path) -> None:
    decoder = load_model(FOLDERS[name], dtype=torch.float32)
    save_model(decoder, tmp_path / "again")
    section = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == "compressed-tensors"
    again, tokens_BT = load_model(tmp_path / "again", dtype=torch.float32), torch.arange(20).unsqueeze(0)
    assert torch.equal(logits(again, tokens_BT), logits(decoder, tokens_BT))
