"""Mixtures of experts against transformers' Mixtral and Qwen3-MoE: logits, gradients, balance loss, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from torch.testing import assert_close

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, read_config, save_model

VOCABULARY = 60
TOKENS = torch.randint(0, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2, "max_position_embeddings": 64,
}  # fmt: skip


def theirs(kind: str, layers: int = 2) -> transformers.PreTrainedModel:
    """A tiny model of transformers with random weights; norms too, which begin as ones."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": layers}
    if kind == "mixtral":
        config = transformers.MixtralConfig(**sizes, num_local_experts=5, intermediate_size=24)
        model = transformers.MixtralForCausalLM(config)
    else:
        config = transformers.Qwen3MoeConfig(
            **sizes, num_experts=5, moe_intermediate_size=24, norm_topk_prob=kind == "qwen3_moe normed"
        )
        model = transformers.Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0, 0.2)
    return model.eval()


KINDS = ["mixtral", "qwen3_moe", "qwen3_moe normed"]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_gives_its_logits_and_gradients(kind, tmp_path):
    model = theirs(kind)
    model.save_pretrained(tmp_path)
    decoder = load_model(tmp_path)
    logits = decoder.head(decoder(TOKENS[:, :-1])[0])
    expected = model(TOKENS[:, :-1]).logits
    assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    layers = model.model.layers
    for block, layer in zip(decoder.blocks, layers, strict=True):
        feed_forward, mlp = block.feed_forward, layer.mlp
        assert_close(feed_forward.router.weight.grad, mlp.gate.weight.grad, rtol=1e-3, atol=1e-6)
        for number, expert in enumerate(feed_forward.experts):
            joined = torch.cat([expert.gate.weight.grad, expert.up.weight.grad])
            assert_close(joined, mlp.experts.gate_up_proj.grad[number], rtol=1e-3, atol=1e-6)
            assert_close(expert.down.weight.grad, mlp.experts.down_proj.grad[number], rtol=1e-3, atol=1e-6)
        assert_close(block.attention.query.weight.grad, layer.self_attn.q_proj.weight.grad, rtol=1e-3, atol=1e-6)
    assert_close(decoder.embedding.weight.grad, model.model.embed_tokens.weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_our_folder_is_read_by_transformers(kind, tmp_path):
    theirs(kind).save_pretrained(tmp_path / "theirs")
    decoder = load_model(tmp_path / "theirs")
    save_model(decoder, tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.config.model_type == kind.split()[0]
    with torch.no_grad():
        assert_close(model(TOKENS).logits, decoder.head(decoder(TOKENS)[0]), rtol=1e-4, atol=1e-5)
    assert read_config(tmp_path / "ours") == decoder.config


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_stored_one_by_one_as_in_published_folders(kind, tmp_path):
    model = theirs(kind)
    model.save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    names = set(stored(tmp_path / "ours"))
    inner = "block_sparse_moe.experts.4.w2" if kind == "mixtral" else "mlp.experts.4.down_proj"
    assert f"model.layers.1.{inner}.weight" in names
    assert names == set(stored(tmp_path / "theirs"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_balance_loss_of_one_layer_is_that_of_transformers(kind, tmp_path):
    model = theirs(kind, layers=1)
    model.save_pretrained(tmp_path)
    decoder = load_model(tmp_path)
    expected = model(TOKENS, output_router_logits=True).aux_loss * model.config.router_aux_loss_coef
    assert_close(decoder(TOKENS)[1]["expert_balance"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("mixtral", {"sliding_window": 8}, "sliding_window is set"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise is set"),
        ("mixtral", {"num_local_experts": None}, "num_local_experts is missing"),
        ("mixtral", {"num_experts_per_tok": 9}, r"active \(9\) must be at most experts \(5\)"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "some blocks have no experts"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "some blocks have no experts"),
        ("qwen3_moe", {"num_experts": 7}, "num_local_experts is 5 and num_experts is 7"),
    ],
)
def test_what_cannot_be_computed_is_refused(kind, change, sentence, tmp_path):
    theirs(kind).config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = {"architectures": ["x"], **json.loads(file.read_text()), **change}
    file.write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match=sentence):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("experts", "attention", "expected"),
    [
        ({}, {}, "mixtral"),
        ({}, {"qk_norm": True}, "qwen3_moe"),
        ({"normalize": False}, {"qk_norm": True}, "qwen3_moe"),
        ({"normalize": False}, {}, "shoestring"),
        ({"shared_width": 8}, {}, "shoestring"),
        ({"balance": "bias"}, {}, "shoestring"),
        ({"balance": "none"}, {}, "mixtral"),
        ({}, {"qkv_bias": True}, "shoestring"),
        ({}, {"window": 8}, "shoestring"),
    ],
)
def test_only_what_transformers_computes_is_written_as_its_family(experts, attention, expected, tmp_path):
    config = ModelConfig.model_validate({
        "vocabulary": 60, "width": 16, "layers": 1, "context": 32,
        "attention": {"heads": 2, "kv_heads": 1, "head_width": 8, **attention},
        "feed_forward": {"kind": "moe", "width": 8, "experts": 3, **experts},
    })  # fmt: skip
    save_model(build(config, seed=0), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == expected
    assert read_config(tmp_path / "model").feed_forward.model_dump(exclude={"balance_weight"}) == (
        config.feed_forward.model_dump(exclude={"balance_weight"})
    )
