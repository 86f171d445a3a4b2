"""Blocks of a file are kept: what they stand for is what gguf's own package says, and decoding gives the same texts."""

import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind

from shoestring.core.errors import ModelFileError
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels.decode import weights_of
from shoestring.models.folder import load_model, read_generation_config
from shoestring.models.gguf import load as module
from shoestring.models.gguf.blocks import BLOCKS, parts_of
from shoestring.models.gguf.convert import convert
from shoestring.models.gguf.load import load_gguf
from shoestring.nn.quantized.decoding import DecodingLinear
from tests.models.gguf.gguf_files import quantize_model, tiny_model, write_gguf

# Where a block's scale is a float16, and how far from zero it may be; of the K formats scales are rounded once more.
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # fmt: skip
NEAR = {"Q4_K": 1e-3, "Q5_K": 1e-3, "Q6_K": 5e-3}


def random_blocks(kind, rows, width, seed=0):
    """Bytes of a tensor of this format; every byte is a code but for the scales."""
    numbers, size = GGML_QUANT_SIZES[Kind[kind]]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * width // numbers, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = random.uniform(-0.2 if kind.endswith("_0") else 0.001, 0.2, len(blocks))
        blocks[:, at : at + 2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.tobytes()


@pytest.mark.parametrize("kind", SCALES)
def test_blocks_stand_for_what_gguf_says(kind):
    assert {Kind[name] for name in SCALES} == BLOCKS
    rows, width = 37, 512
    raw = random_blocks(kind, rows, width)
    wanted = quants.dequantize(np.frombuffer(raw, np.uint8), Kind[kind]).reshape(rows, width)
    found = weights_of(parts_of(raw, Kind[kind], width).matrix()).numpy()
    if kind in NEAR:
        size = np.abs(wanted).reshape(rows, -1, 32).max(-1).repeat(32, 1)
        assert (np.abs(found - wanted) <= NEAR[kind] * size).all()
    else:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0)


def test_rows_in_another_order():
    raw, order = random_blocks("Q4_1", 6, 64), np.array([4, 0, 5, 1, 2, 3])
    parts = parts_of(raw, Kind.Q4_1, 64)
    assert torch.equal(weights_of(parts.matrix(order)), weights_of(parts.matrix())[order])


@pytest.mark.parametrize(("arch", "kind"), [
    ("llama", "Q4_1"), ("llama", "F16"), ("llama", "BF16"), ("qwen2", "Q4_0"), ("qwen2", "F32"), ("qwen3", "Q8_0"),
])  # fmt: skip
def test_a_file_is_decoded_as_its_folder_is(arch, kind, tmp_path, monkeypatch):
    model = tiny_model(arch, tie_word_embeddings=arch == "qwen2")
    quantize_model(model, kind)
    path = write_gguf(tmp_path / "m.gguf", model, kind)
    monkeypatch.setattr(module, "SLICE_BYTES", 8000)  # matrices come in several slices
    decoder, tokenizer, defaults = load_gguf(path)
    folder = convert(path, tmp_path / "folder")
    dense = load_model(folder)
    for name, linear in dense.named_modules():
        if isinstance(linear, torch.nn.Linear):
            mine = decoder.get_submodule(name)
            assert isinstance(mine, DecodingLinear)
            torch.testing.assert_close(weights_of(mine.matrix), linear.weight.detach(), rtol=1e-6, atol=1e-7)
            assert (mine.bias is None) == (linear.bias is None)
            assert mine.bias is None or torch.equal(mine.bias, linear.bias)
    assert defaults == read_generation_config(folder)
    assert tokenizer.encode("The fox's 12") == Tokenizer.load(folder).encode("The fox's 12")
    tokens = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = dense.head(dense(tokens)[0])
        for cache in (None, decoder.new_cache(1, 32)):
            mine = decoder.head(decoder(tokens, cache=cache)[0])
            assert (mine - theirs).norm() <= (1e-4 if "F" in kind else 0.05) * theirs.norm()


def test_formats_without_such_blocks_are_refused_by_name(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "Q8_0")
    monkeypatch.setattr(module, "BLOCKS", BLOCKS - {Kind.Q8_0})
    with pytest.raises(ModelFileError, match="'token_embd.weight' is Q8_0, which is not multiplied as it is"):
        load_gguf(path)
