"""transformers, with the compressed-tensors library, reads what is written here to the same logits."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoestring.compression.job import quantize
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model
from tests.models.tiny_families import SIZES, make_model, save

FORMS = {
    "W4A16": {"bits": 4, "group": 8},
    "W4A16 asymmetric": {"bits": 4, "group": 8, "symmetric": False},
    "W8A16": {"bits": 8, "group": 8},
    "W8A16 by rows, asymmetric": {"bits": 8, "group": 0, "symmetric": False},
    "W8A8": {"bits": 8, "group": 0, "activations": "int8"},
}
TOKENS_BT = torch.randint(0, SIZES["vocab_size"], (2, 20), generator=torch.Generator().manual_seed(0))


def ours(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return decoder.head(decoder(TOKENS_BT)[0])


def theirs(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(TOKENS_BT).logits


@pytest.mark.parametrize(
    ("family", "form"), [*itertools.product(["llama"], FORMS), ("qwen2", "W4A16 asymmetric"), ("qwen3", "W8A8")]
)
def test_the_same_logits(tmp_path: Path, family: str, form: str) -> None:
    save(family, tmp_path / "dense", torch.float32)
    quantize(tmp_path / "dense", tmp_path / "q", method="rtn", **FORMS[form])
    found = ours(load_model(tmp_path / "q"))
    torch.testing.assert_close(found, theirs(tmp_path / "q"), rtol=0, atol=1e-4)
    assert (found - ours(load_model(tmp_path / "dense"))).abs().max() > 2e-3  # or the dense weights would pass


def test_a_head_of_its_own_stays_dense(tmp_path: Path) -> None:
    make_model("llama", torch.float32, tie_word_embeddings=False).save_pretrained(tmp_path / "dense")
    quantize(tmp_path / "dense", tmp_path / "q", method="rtn", **FORMS["W4A16"])
    torch.testing.assert_close(ours(load_model(tmp_path / "q")), theirs(tmp_path / "q"), rtol=0, atol=1e-4)
