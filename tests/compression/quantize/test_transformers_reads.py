"""transformers, with the compressed-tensors library, reads what is written here to the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from shoestring.compression.quantize.config import LINEARS
from shoestring.compression.quantize.job import quantize
from shoestring.models.decoder import Decoder
from shoestring.models.families.family import BLOCK_NAMES
from shoestring.models.folder import load_model
from tests.models.tiny_families import SIZES, make_model, norms_in_float64

FORMS = {
    "W4A16": {"bits": 4, "group": 8},
    "W4A16 asymmetric": {"bits": 4, "group": 8, "symmetric": False},
    "W8A16": {"bits": 8, "group": 8},
    "W8A16 by rows": {"bits": 8, "group": 0},
    "W8A16 by rows, asymmetric": {"bits": 8, "group": 0, "symmetric": False},
    "W3A16": {"bits": 3, "group": 8},
    "W4A16, some in 8": {"bits": 4, "group": 8, "wide": ("down", "query", "key", "value")},
    "W4A16, embedding in 8": {"bits": 4, "group": 8, "embedding": 8},
    "W8A16 by rows, embedding in 8": {"bits": 8, "group": 0, "embedding": 8},
    "W8A8, embedding in 8": {"bits": 8, "group": 0, "activations": "int8", "embedding": 8},
    "W8A8": {"bits": 8, "group": 0, "activations": "int8"},
}
TOKENS_BT = torch.randint(0, SIZES["vocab_size"], (2, 20), generator=torch.Generator().manual_seed(0))


def ours(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return decoder.head(decoder(TOKENS_BT)[0])


def theirs(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS_BT).logits


def made(family: str, folder: Path, form: str, **sizes) -> Path:
    make_model(family, torch.float32, **sizes).save_pretrained(folder / "dense")
    quantize(folder / "dense", folder / "q", method="rtn", **FORMS[form])
    return folder / "q"


@pytest.mark.parametrize(
    ("family", "form"),
    [("llama", "W4A16"), ("qwen2", "W8A16"), ("qwen3", "W4A16"), ("qwen2", "W8A16 by rows"),
     ("qwen2", "W4A16, some in 8"), ("llama", "W4A16, embedding in 8"), ("qwen3", "W8A16 by rows, embedding in 8")]
)  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_the_same_logits(tmp_path: Path, family: str, form: str, tied: bool) -> None:
    folder = made(family, tmp_path, form, tie_word_embeddings=tied)
    found = ours(load_model(folder))
    judge = theirs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    torch.testing.assert_close(found, judge, rtol=0, atol=1e-4)
    assert (found - ours(load_model(tmp_path / "dense"))).abs().max() > 2e-3  # or the dense weights would pass


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("form", ["W8A8", "W8A8, embedding in 8"])
def test_inputs_of_8_bits_give_the_same_outputs(tmp_path: Path, family: str, form: str) -> None:
    """Of each linear for the same inputs. A row's largest input, if it is negative, is 127.5 steps: between two codes,
    so that in a whole model its last bit decides, and only rows without such a case have the same logits."""
    folder = made(family, tmp_path, form)
    decoder = load_model(folder, dtype=torch.float64)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    norms_in_float64(model)
    random = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, SIZES["vocab_size"], (16, 12), generator=random)
    with torch.no_grad():
        off_B = (decoder.head(decoder(tokens_BT)[0]) - model(tokens_BT).logits).abs().amax((1, 2))
        assert (off_B < 1e-9).sum() >= 4 and off_B.max() < 0.2
        for name in LINEARS:
            linear = decoder.get_submodule(f"blocks.1.{name}")
            judge = model.get_submodule(f"model.layers.1.{BLOCK_NAMES[name]}")
            x = torch.randn(2, 5, linear.in_features, generator=random, dtype=torch.float64)
            torch.testing.assert_close(linear(x), judge(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "form"),
    [("llama", "W4A16 asymmetric"), ("qwen2", "W8A16 by rows, asymmetric"), ("qwen3", "W4A16 asymmetric"),
     ("llama", "W3A16")],
)  # fmt: skip
def test_the_library_makes_the_same_weights_of_the_tensors(tmp_path: Path, family: str, form: str) -> None:
    """What compressed-tensors 0.20.1 does itself: models with packed zero points it prepares in a wrong shape, so that
    transformers refuses them, and those of 3 bits it does not choose a format for."""
    folder = made(family, tmp_path, form)
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(section).config_groups["group_0"]
    library = BaseCompressor.get_value_from_registry(section["format"])
    tensors = load_file(folder / "model.safetensors")
    parts = ["weight_packed", "weight_scale", "weight_shape"]
    parts += [] if scheme.weights.symmetric else ["weight_zero_point"]
    for name in [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]:
        state = {part: tensors.pop(f"{name}.{part}") for part in parts}
        state["weight_scale"] = state["weight_scale"].float()
        tensors[f"{name}.weight"] = library.decompress(state, scheme)["weight"]
    model = make_model(family, torch.float32)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    torch.testing.assert_close(ours(load_model(folder)), theirs(model), rtol=0, atol=1e-4)
