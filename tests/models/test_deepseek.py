"""DeepSeek-V2 and V3 of transformers, without experts: logits and gradients, both directions; what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import family_of
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.nn.attention.config import MLAConfig
from shoestring.nn.config import GQAConfig, RopeConfig, YarnScaling
from shoestring.nn.feed_forward_config import SwiGLUConfig
from tests.models.test_families_parity import assert_same_model, edit_config, tokens

SIZES = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "bos_token_id": 1,
    "eos_token_id": 2, "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "first_k_dense_replace": 2, "n_routed_experts": 4, "moe_intermediate_size": 8,
    "attn_implementation": "eager",
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7,
    "mscale_all_dim": 0.9,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
MODELS: dict[str, tuple] = {
    "v3": (DeepseekV3Config, DeepseekV3ForCausalLM, {"rope_parameters": PLAIN, "tie_word_embeddings": True}),
    "v3, query latent, biases, yarn": (
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        {"rope_parameters": YARN, "q_lora_rank": 12, "attention_bias": True},
    ),
    "v3, halves": (DeepseekV3Config, DeepseekV3ForCausalLM, {"rope_parameters": PLAIN, "rope_interleave": False}),
    "v2, query latent, yarn": (
        DeepseekV2Config,
        DeepseekV2ForCausalLM,
        {"rope_parameters": YARN, "q_lora_rank": 12},
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def peer_model(name: str):
    config_class, model_class, options = MODELS[name]
    torch.manual_seed(0)
    peer = model_class(config_class(**{**SIZES, **options}))
    with torch.no_grad():
        for parameter_name, parameter in peer.named_parameters():
            parameter.copy_(("norm" in parameter_name) + 0.2 * torch.randn(parameter.shape))
    return peer


@every_model
def test_a_folder_of_transformers_computes_the_same_here(name, tmp_path):
    peer = peer_model(name)
    peer.save_pretrained(tmp_path)
    assert_same_model(load_model(tmp_path), peer)


@every_model
def test_a_folder_of_ours_computes_the_same_in_transformers(name, tmp_path):
    peer_model(name).save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    ours = build(config, seed=3)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save_model(ours, tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert type(again) is DeepseekV3ForCausalLM
    assert_same_model(ours, again)
    assert read_config(tmp_path / "ours") == config


def test_the_old_form_of_rotary_settings_is_read(tmp_path):
    peer = peer_model("v3, query latent, biases, yarn")
    peer.save_pretrained(tmp_path)
    scaling = {**YARN, "type": "yarn"}
    del scaling["rope_type"], scaling["rope_theta"]
    edit_config(tmp_path, rope_parameters=None, rope_theta=1e4, rope_scaling=scaling)
    assert_same_model(load_model(tmp_path), peer)


@pytest.mark.parametrize("change", [{"rope_interleave": False}, {"rope_parameters": {**YARN, "mscale_all_dim": 0.2}}])
def test_a_wrong_setting_is_noticed(change, tmp_path):
    peer = peer_model("v3, query latent, biases, yarn")
    peer.save_pretrained(tmp_path)
    edit_config(tmp_path, **change)
    with pytest.raises(AssertionError):
        assert_same_model(load_model(tmp_path), peer)


def test_decoding_with_the_cache_equals_the_whole_sequence(tmp_path):
    peer_model("v3, query latent, biases, yarn").save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens_BT = tokens()[:, :20]
    cache = ours.new_cache(2, 20)
    with torch.no_grad():
        parts = [ours(part, cache=cache)[0] for part in tokens_BT.split([9, 1, 1, 4, 5], dim=1)]
        assert_close(torch.cat(parts, dim=1), ours(tokens_BT)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"first_k_dense_replace": 1}, "experts"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_we_do_not_compute_is_refused(change, message, tmp_path):
    peer_model("v3").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelFileError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("mscale_all_dim", [0.1, 0.707, 1.0, 1 / 3, 1.3])
@pytest.mark.parametrize("factor", [1.5, 4.0, 40.0])
def test_mscale_reads_back_exactly(mscale_all_dim, factor, tmp_path):
    from shoestring.models.families.deepseek import _mscale

    attention = MLAConfig(
        heads=2, latent_rank=8, content_width=4, rotary_width=4, value_width=4, mscale=_mscale(factor, mscale_all_dim)
    )
    position = RopeConfig(scaling=YarnScaling(factor=factor, original_context=64))  # type: ignore[call-arg]
    config = ModelConfig(
        vocabulary=11, width=8, layers=1, context=32, attention=attention, feed_forward=SwiGLUConfig(width=8),
        position=position,
    )  # fmt: skip
    assert family_of(config).model_type == "deepseek_v3"
    save_model(build(config, seed=0), tmp_path)
    assert read_config(tmp_path) == config


def test_what_deepseek_has_no_field_for_is_saved_as_our_own():
    attention = MLAConfig(heads=2, latent_rank=8, content_width=4, rotary_width=4, value_width=4, mscale=1.2)
    sizes = {"vocabulary": 11, "width": 8, "layers": 1, "context": 32, "feed_forward": SwiGLUConfig(width=8)}
    assert family_of(ModelConfig(attention=attention, **sizes)).model_type == "shoestring"
    window = GQAConfig(heads=2, kv_heads=1, head_width=4, window=4)
    assert family_of(ModelConfig(attention=window, **sizes)).model_type == "shoestring"
