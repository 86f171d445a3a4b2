"""Streamed decoding: the same greedy tokens as the resident model, adapters too, within the memory that is given."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import shoestring
from shoestring.cli.main import main
from shoestring.core.errors import BudgetError
from shoestring.core.machine import rss_bytes
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.offload import load as module
from shoestring.offload.model import StreamedDecoder, open_streamed
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.shapes import Machine
from tests.finetuning import tiny as chat
from tests.offload import tiny

PROMPTS = ["1+1?", "What is 2 + 5", "x"]


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """A tiny model, and how to load it as if it did not fit."""
    folder = chat.chat_model(tmp_path / "model")
    predict_use = module.predict_use

    def resident_is_too_large(config, use, machine, source, weights="source", slots=0):
        found = predict_use(config, use, machine, source, weights, slots)
        return found if slots else replace(found, tensors=(("all", 10**15),))

    monkeypatch.setattr(module, "predict_use", resident_is_too_large)

    def load(place=folder, **settings):
        return shoestring.load(place, memory="16GB", **settings)

    return folder, load


def test_greedy_tokens_and_batches_equal_the_resident_models(streamed):
    folder, load = streamed
    model, resident = load(), shoestring.load(folder)
    assert isinstance(model.decoder, StreamedDecoder) and not isinstance(resident.decoder, StreamedDecoder)
    options = {"temperature": 0.0, "max_tokens": 12, "repetition_penalty": 1.0}
    assert model.generate(PROMPTS, **options) == resident.generate(PROMPTS, **options)
    assert model.chat("2+3?", **options) == resident.chat("2+3?", **options)
    module.close(model)


def test_an_adapter_decodes_on_a_streamed_base(streamed, tmp_path):
    folder, load = streamed
    decoder = tiny.adapt(load_model(folder))
    save_adapter(decoder, tmp_path / "adapter", folder)
    model, resident = load(tmp_path / "adapter"), shoestring.load(tmp_path / "adapter")
    options = {"temperature": 0.0, "max_tokens": 12}
    assert model.generate(PROMPTS, **options) == resident.generate(PROMPTS, **options)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        ours, theirs = (m.decoder.head(m.decoder(tokens)[0]) for m in (model, resident))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    module.close(model)


def test_a_model_that_fits_is_loaded_whole(tmp_path):
    folder = chat.chat_model(tmp_path / "model")
    assert not isinstance(shoestring.load(folder, memory="16GB").decoder, StreamedDecoder)


def test_a_budget_below_the_process_itself_is_refused_with_what_would_do(streamed):
    _, load = streamed
    with pytest.raises(BudgetError, match="(?s)too little to decode.*would do"):
        shoestring.load(streamed[0], memory=(rss_bytes() - allocator.kept()) // 2)


def test_the_command_line_decodes_within_a_memory(streamed, capsys):
    folder, _ = streamed
    words = ["generate", str(folder), "--prompt", "1+1?", "--temperature", "0", "--max-tokens", "8"]
    assert main(words) == 0
    resident = capsys.readouterr().out
    assert main([*words, "--memory", "16GB"]) == 0
    assert capsys.readouterr().out == resident
    assert main([*words, "--memory", "10MB"]) == 2
    assert "too little to decode" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "expected"), [("auto", torch.bfloat16), ("float32", None), ("bf16", torch.bfloat16)])
def test_a_model_that_fits_in_bfloat16_alone_is_not_streamed(asked, expected, tmp_path, monkeypatch):
    folder = chat.chat_model(tmp_path / "model")
    save_model(load_model(folder).bfloat16(), tmp_path / "half", Tokenizer.load(folder))
    predict_use = module.predict_use

    def float32_is_too_large(config, use, machine, source, weights="source", slots=0):
        found = predict_use(config, use, machine, source, weights, slots)
        return replace(found, tensors=(("all", 10**15),)) if use.compute == "float32" and not slots else found

    monkeypatch.setattr(module, "predict_use", float32_is_too_large)
    said: list[str] = []
    model = shoestring.load(tmp_path / "half", memory="16GB", dtype=asked, say=said.append)
    assert isinstance(model.decoder, StreamedDecoder) == (expected is None)
    assert model.decoder.embedding.weight.dtype == (expected or torch.float32)
    assert any("computing in bfloat16" in sentence for sentence in said) == (asked == "auto")
    assert isinstance(model.generate("1+1?", max_tokens=3), str)
    module.close(model)


def test_weights_in_bfloat16_take_half_of_what_float32_takes(tmp_path):
    config = load_model(chat.chat_model(tmp_path / "model")).config
    machine = Machine(10**8, flops=1.0, threads=1)
    whole, half = (
        dict(predict_use(config, Use(1, 64, 1, compute=kind), machine, "bfloat16").tensors)["weights"]
        for kind in ("float32", "bfloat16")
    )
    assert whole == 2 * half == 4 * config.parameter_count()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_tied_matrix_under_the_name_of_the_head_is_streamed(family, tmp_path):
    folder = tiny.save(tmp_path / "model", family)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    streamed, resident = open_streamed(folder, dtype=torch.float64), load_model(folder, dtype=torch.float64)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        ours, theirs = (model.head(model(tokens)[0]) for model in (streamed, resident))
    torch.testing.assert_close(ours, theirs)
    streamed.close()


def test_what_weights_were_before_they_were_rounded_goes_back(tmp_path):
    """A model in few bits takes its codes, and not what its layers took in float32 while they came."""
    shape = {**chat.SHAPE, "width": 256, "layers": 4, "feed_forward": {"kind": "swiglu", "width": 1024}}
    folder = chat.chat_model(tmp_path / "model", shape)
    gc.collect()
    allocator.give_back()
    before = allocator.counts().held
    model = shoestring.load(folder, weights="int4")
    held = allocator.counts().held - before
    codes = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.decoder.parameters(), *model.decoder.buffers())}
    assert 1 << 20 < held < sum(codes.values()) + (1 << 20)
