"""Tiny random models of transformers, the judge: logits and the gradient of every parameter, both directions.

Biases and norm weights are drawn too: at their initial zeros and ones a forgotten one would go unnoticed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import family_of
from shoestring.models.folder import load_model, read_config, save_model

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 1e6}

MODELS: dict[str, tuple] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "rope_parameters": DEFAULT}),
    "llama untied, llama3 scaling": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3}),
    "llama, biases everywhere, multi-query, linear scaling": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True, "rope_parameters": DEFAULT}),
    "qwen2 untied, yarn": (Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": YARN}),
    "qwen3": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {"head_dim": 12, "tie_word_embeddings": True, "rope_parameters": DEFAULT},
    ),
    "qwen3 untied, biases, yarn with a temperature": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": {
                **YARN, "attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False,
            },
        },
    ),
}  # fmt: skip
every_model = pytest.mark.parametrize("name", MODELS)


def peer_model(name: str) -> PreTrainedModel:
    config_class, model_class, options = MODELS[name]
    torch.manual_seed(0)
    peer = model_class(config_class(**{**SIZES, **options}))
    with torch.no_grad():
        for parameter_name, parameter in peer.named_parameters():
            centre = 1.0 if "norm" in parameter_name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape))
    return peer


def tokens() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, 90), generator=torch.Generator().manual_seed(1))


def logits_and_loss(model: PreTrainedModel | Decoder, tokens_BT: torch.Tensor):
    if isinstance(model, Decoder):
        logits = model.head(model(tokens_BT)[0])
    else:
        logits = model(tokens_BT).logits
    return logits, F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())


def assert_same_model(ours: Decoder, peer: PreTrainedModel) -> None:
    """Logits and the gradient of each parameter agree at torch's default float32 tolerances."""
    results = []
    for model in (ours, peer):
        model.zero_grad()
        logits, loss = logits_and_loss(model, tokens())
        loss.backward()
        results.append(logits)
    assert_close(results[0], results[1])
    family = family_of(ours.config)
    gradients = {family.tensor_name(name): p.grad for name, p in ours.named_parameters()}
    peers = {name: p.grad for name, p in peer.named_parameters()}
    assert gradients.keys() == peers.keys()
    for name, gradient in gradients.items():
        assert peers[name].abs().max() > 0, name
        assert_close(gradient, peers[name], msg=lambda text, name=name: f"{name}: {text}")


@every_model
def test_a_model_saved_by_transformers_computes_the_same_here(name, tmp_path):
    peer = peer_model(name)
    peer.save_pretrained(tmp_path)
    assert_same_model(load_model(tmp_path), peer)


@every_model
def test_a_model_saved_here_computes_the_same_in_transformers(name, tmp_path):
    peer = peer_model(name)
    peer.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    ours = build(config, seed=3)
    with torch.no_grad():
        for parameter_name, parameter in ours.named_parameters():
            centre = 1.0 if "norm" in parameter_name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape))
    save_model(ours, tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert type(again) is type(peer)
    assert_same_model(ours, again)
    assert read_config(tmp_path / "ours") == config


def test_a_sharded_folder_of_transformers_is_read(tmp_path):
    peer = peer_model("qwen2")
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_model(load_model(tmp_path), peer)


def test_transformers_reads_a_sharded_folder_of_ours(tmp_path):
    peer_model("qwen3").save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours", max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    assert_same_model(ours, AutoModelForCausalLM.from_pretrained(tmp_path / "ours"))


def test_a_wrong_theta_is_noticed(tmp_path):
    peer = peer_model("llama")
    peer.save_pretrained(tmp_path)
    edit_config(tmp_path, rope_parameters={**DEFAULT, "rope_theta": 9e5})
    with pytest.raises(AssertionError):
        assert_same_model(load_model(tmp_path), peer)


def test_interleaved_rotary_halves_are_noticed(tmp_path):
    """GGUF's order of a query projection's rows, left as it is."""
    peer = peer_model("llama")
    peer.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    with torch.no_grad():
        weight = ours.blocks[0].attention.query.weight
        weight.copy_(weight.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32))
    with pytest.raises(AssertionError):
        assert_same_model(ours, peer)


@pytest.mark.parametrize("name", ["llama untied, llama3 scaling", "qwen2 untied, yarn"])
def test_a_config_in_the_old_form_computes_the_same(name, tmp_path):
    peer = peer_model(name)
    peer.save_pretrained(tmp_path)
    scaling = dict(MODELS[name][2]["rope_parameters"])
    theta = scaling.pop("rope_theta")
    edit_config(tmp_path, rope_parameters=None, rope_theta=theta, rope_scaling=scaling)
    assert_same_model(load_model(tmp_path), peer)


@pytest.mark.parametrize("name", ["llama untied, llama3 scaling", "qwen2 untied, yarn"])
def test_the_old_fields_that_we_write_are_enough_for_transformers(name, tmp_path):
    peer_model(name).save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    edit_config(tmp_path / "ours", rope_parameters=None)
    assert_same_model(ours, AutoModelForCausalLM.from_pretrained(tmp_path / "ours"))


def test_yarn_with_two_mscales_has_the_temperature_of_transformers(tmp_path):
    config = Qwen2Config(**SIZES, rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 1.2})
    torch.manual_seed(0)
    peer = Qwen2ForCausalLM(config)
    peer.save_pretrained(tmp_path)
    assert_same_model(load_model(tmp_path), peer)


def test_packed_documents_give_what_transformers_gives_for_each_alone(tmp_path):
    peer = peer_model("llama")
    peer.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    lengths = [[7, 20, 3], [30]]
    tokens_BT = tokens()[:, :30]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    segments = torch.stack([torch.cat([torch.full((n,), i) for i, n in enumerate(row)]) for row in lengths])
    packed = ours.head(ours(tokens_BT, positions, segments)[0])
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            alone = peer(tokens_BT[row : row + 1, start : start + size]).logits[0]
            assert_close(packed[row, start : start + size], alone)
            start += size


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
