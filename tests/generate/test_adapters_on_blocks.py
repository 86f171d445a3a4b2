"""Adapters come and go on weights that are kept for decoding, a GGUF file's own blocks among them."""

from __future__ import annotations

import pytest
import torch

from shoestring.generate.language_model import LanguageModel
from shoestring.generate.live_adapters import LiveAdapters
from shoestring.models.adapters import adapted_linears, attach
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.native_stack import NativeStack
from tests.generate.test_ways_of_decoding import decoder_of
from tests.generate.tiny import byte_tokenizer
from tests.models.gguf.gguf_files import quantize_model, tiny_model, write_gguf

TOKENS = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(2))


def adapted(decoder, folder, dora=False):
    """Write an adapter that changes what this decoder computes, and leave it at work."""
    attach(decoder, LoRAConfig(rank=2, dora=dora))
    for linear in adapted_linears(decoder).values():
        torch.nn.init.normal_(linear.adapters["default"].lora_B, std=0.5, generator=torch.Generator().manual_seed(3))
    save_adapter(decoder, folder, None)
    return decoder


@torch.inference_mode()
def states(decoder):
    return decoder(TOKENS, cache=decoder.new_cache(1, 20))[0]


def off(one, other):
    return (one - other).norm() / other.norm()


@pytest.mark.parametrize(("weights", "dora", "near"), [
    ("int8", False, 0.05), ("int4", False, 0.3), ("bf16", False, 0.02), ("int8", True, 0.05),
])  # fmt: skip
def test_an_adapter_works_on_blocks_and_leaves_them_as_they_were(weights, dora, near, tmp_path):
    save_model(decoder_of(), tmp_path / "model", byte_tokenizer())
    wanted = states(adapted(load_model(tmp_path / "model"), tmp_path / "adapter", dora))
    model = LanguageModel.load(tmp_path / "model", weights=weights)
    before, said = states(model.decoder), model.generate("Once", temperature=0, max_tokens=8)
    adapters = LiveAdapters(model)
    adapters.use(str(tmp_path / "adapter"))
    assert off(states(model.decoder), wanted) < near < off(before, wanted)
    assert model.generate("Once", temperature=0, max_tokens=8) != said
    adapters.off()
    assert isinstance(model.decoder._stack, NativeStack) and torch.equal(states(model.decoder), before)
    assert model.generate("Once", temperature=0, max_tokens=8) == said


def test_an_adapter_works_on_a_gguf_files_own_blocks(tmp_path):
    made = tiny_model("llama")
    quantize_model(made, "Q4_1")
    path = write_gguf(tmp_path / "m.gguf", made, "Q4_1")
    wanted = states(adapted(LanguageModel.load(path).decoder, tmp_path / "adapter"))
    model = LanguageModel.load(path, weights="file")
    before = states(model.decoder)
    LiveAdapters(model).use(str(tmp_path / "adapter"))
    assert off(states(model.decoder), wanted) < 0.05 < off(before, wanted)
