"""Adapters and quantized weights on mixtures of experts and latent attention: in a step, from disk, and decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.models.adapters import attach, merge, quantize_blocks
from shoestring.models.folder import load_model
from shoestring.models.peft_folder import load_adapted, load_adapter, save_adapter
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.moe import Router
from shoestring.nn.quantized.config import Int4Config, Int8Config, NF4Config
from shoestring.offload.config import QUANTIZED
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.model import open_streamed
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.models.tiny_families import make_model
from tests.offload import tiny

KINDS = ("mixtral", "qwen3_moe", "deepseek_v3")
TOKENS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def folder_of(family: str, folder: Path) -> Path:
    make_model(family, torch.float32).save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model(TOKENS)[0])


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"dropout": 0.3}], ids=str)
def test_adapters_on_every_linear_take_a_step_and_are_merged(family, settings, tmp_path):
    folder = folder_of(family, tmp_path / "model")
    model = tiny.adapt(load_model(folder), **settings)
    ResidentEngine.around(model, next_token).forward_backward(tiny.batches(1))
    assert all(parameter.grad is not None for parameter in tiny.trained(model).values())
    save_adapter(model, tmp_path / "adapter", folder)
    again, _ = load_adapted(tmp_path / "adapter")
    expected = logits(model.eval())
    assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)
    assert_close(logits(merge(again)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("config", [Int8Config(), Int4Config(), NF4Config()], ids=lambda config: config.kind)
def test_a_quantized_model_computes_what_its_dense_weights_compute(family, config, tmp_path):
    folder = folder_of(family, tmp_path / "model")
    quantized = load_model(folder, quantized=config)
    afterwards = load_model(folder)
    names = quantize_blocks(afterwards, config)
    assert not any("router" in name for name in names)
    expected = logits(afterwards)
    assert torch.equal(logits(quantized), expected)
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = afterwards.get_submodule(parent)
        setattr(owner, last, owner.get_submodule(last).to_linear())
    assert_close(logits(afterwards), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("format", ["source", "int8", "int4"])
def test_a_streamed_step_with_adapters_is_the_resident_one(family, format, tmp_path):
    folder = folder_of(family, tmp_path / "model")
    resident = load_model(folder, quantized=QUANTIZED.get(format))
    streamed = open_streamed(folder, format)
    found = []
    for kind, model in ((ResidentEngine, tiny.adapt(resident)), (StreamedEngine, tiny.adapt(streamed))):
        loss = kind.around(model, next_token).forward_backward(tiny.batches(1))
        found.append((loss.mean, {name: parameter.grad for name, parameter in tiny.trained(model).items()}))
    streamed.close()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("config", [Int8Config(), NF4Config(), LoRAConfig(rank=3)], ids=lambda c: type(c).__name__)
def test_cached_decoding_of_replaced_linears_equals_the_whole_sequence(config, tmp_path):
    """Latent attention absorbs the weight of one linear, whatever stands there."""
    model = load_model(folder_of("deepseek_v3", tmp_path / "model"))
    if isinstance(config, LoRAConfig):
        tiny.adapt(model).eval()
    else:
        quantize_blocks(model, config)
        attach(model, LoRAConfig(rank=2))
        quantized = load_model(tmp_path / "model", quantized=config)
        assert_close(logits(model), logits(quantized))
        model = quantized
    cache = model.new_cache(2, 12)
    with torch.no_grad():
        parts = [model(part, cache=cache)[0] for part in TOKENS.split([7, 1, 1, 3], dim=1)]
        assert_close(torch.cat(parts, dim=1), model(TOKENS)[0], rtol=1e-4, atol=1e-4)


def test_a_router_cannot_be_adapted(tmp_path):
    model = load_model(folder_of("mixtral", tmp_path / "model"))
    with pytest.raises(ConfigError, match="no linear is called 'router'"):
        attach(model, LoRAConfig(rank=2), modules=["router"])
    routers = [name for name, module in model.named_modules() if isinstance(module, Router)]
    assert len(routers) == 2 and not set(routers) & set(attach(model, LoRAConfig(rank=2)))


def test_an_adapter_of_the_router_is_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = folder_of("mixtral", tmp_path / "model")
    save_adapter(tiny.adapt(load_model(folder)), tmp_path / "adapter", folder)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    router = "base_model.model.model.layers.0.block_sparse_moe.gate"
    more = {f"{router}.lora_A.weight": torch.zeros(3, 24), f"{router}.lora_B.weight": torch.zeros(5, 3)}
    save_file({**load_file(file), **more}, file)
    with pytest.raises(ModelFileError, match="changes the router of experts"):
        load_adapter(load_model(folder), tmp_path / "adapter")

