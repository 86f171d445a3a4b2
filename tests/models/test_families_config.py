"""config.json, read strictly: what is understood, what is harmless, what is refused by name."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest

from shoestring.core.errors import ModelFileError
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import (
    config_fields,
    family_named,
    family_of,
    read_config,
    read_config_and_ignored,
)
from shoestring.nn.rope import RotaryEmbedding

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range":
    0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings":
    8192, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type":
    "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps":
    1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype":
    "bfloat16", "transformers_version": "4.43.1", "use_cache": True, "use_mrope": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size":
    1024, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size":
    151936,
}  # fmt: skip


def write(folder, values) -> None:
    (folder / "config.json").write_text(json.dumps(values))


def refusal(folder, values) -> ModelFileError:
    write(folder, values)
    with pytest.raises(ModelFileError) as caught:
        read_config(folder)
    return caught.value


@pytest.mark.parametrize(
    ("values", "parameters"), [(SMOLLM2, 134_515_008), (QWEN25, 494_032_768), (QWEN3, 596_049_920)]
)
def test_public_configs_are_read_and_have_the_published_size(values, parameters, tmp_path):
    write(tmp_path, values)
    assert read_config(tmp_path).parameter_count() == parameters


@pytest.mark.parametrize("values", [SMOLLM2, QWEN25, QWEN3])
def test_a_config_survives_writing_and_reading(values, tmp_path):
    write(tmp_path, values)
    config = read_config(tmp_path)
    written = config_fields(config, "bfloat16")
    assert written["model_type"] == values["model_type"]
    assert written["architectures"] == values["architectures"]
    write(tmp_path, written)
    assert read_config(tmp_path) == config


def test_harmless_fields_are_listed(tmp_path):
    write(tmp_path, SMOLLM2)
    ignored = read_config_and_ignored(tmp_path)[1]
    assert {"use_cache", "torch_dtype", "transformers.js_config", "eos_token_id"} <= set(ignored)
    assert not {"hidden_size", "rope_theta"} & set(ignored)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"hidden_size": "576"}, "hidden_size"),
        ({"hidden_size": -576}, "hidden_size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_key_value_heads": 4}, "kv_heads"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "'mrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": "x"}}, "mscale"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "shift": 3}}, "shift"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"model_type": "gemma3"}, "gemma3"),
        ({"model_type": None}, "model_type"),
    ],
)  # fmt: skip
def test_what_would_change_the_computation_is_refused_by_name(change, named, tmp_path):
    error = refusal(tmp_path, {**SMOLLM2, **change})
    assert named in error.message
    assert "config.json" in str(error)
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "change",
    [
        {"use_sliding_window": True},
        {"layer_types": ["full_attention"] * 23 + ["sliding_attention"]},
        {"layer_types": "full_attention"},
        {"use_mrope": True},
        {"mlp_bias": True},
    ],
)
def test_windows_and_kinds_that_qwen_could_use_are_refused(change, tmp_path):
    assert next(iter(change)) in refusal(tmp_path, {**QWEN25, **change}).message


def test_windows_that_no_layer_uses_are_read(tmp_path):
    write(tmp_path, QWEN25)
    plain = read_config(tmp_path)
    unused = {"use_sliding_window": True, "max_window_layers": 24}
    write(tmp_path, {**QWEN25, **unused, "layer_types": ["full_attention"] * 24})
    assert read_config(tmp_path) == plain


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_old_and_new_rotary_settings_mean_the_same(tmp_path):
    bare = {k: v for k, v in QWEN25.items() if k != "rope_theta"}
    write(tmp_path, {**QWEN25, "rope_scaling": YARN})
    old = read_config(tmp_path)
    write(tmp_path, {**QWEN25, "rope_scaling": {**YARN, "type": "yarn"}})
    assert read_config(tmp_path) == old
    write(tmp_path, {**bare, "rope_parameters": {**YARN, "rope_theta": 1e6}})
    assert read_config(tmp_path) == old
    write(tmp_path, {**QWEN25, "rope_scaling": YARN, "rope_parameters": {**YARN, "rope_theta": 1e6}})
    assert read_config(tmp_path) == old


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_parameters": {**YARN, "rope_theta": 1e6}, "rope_scaling": {**YARN, "factor": 2.0}},
    ],
)
def test_rotary_settings_that_contradict_each_other_are_refused(change, tmp_path):
    assert "contradict" in refusal(tmp_path, {**QWEN25, **change}).message


def test_the_family_follows_from_the_kinds():
    def config(**attention) -> ModelConfig:
        shape = {"heads": 4, "kv_heads": 2, "head_width": 8, **attention}
        return ModelConfig.model_validate({
            "vocabulary": 50, "width": 32, "layers": 1, "context": 64, "attention": shape,
            "feed_forward": {"width": 48},
        })  # fmt: skip

    assert family_of(config()).model_type == "llama"
    assert family_of(config(qkv_bias=True, output_bias=True)).model_type == "llama"
    assert family_of(config(qkv_bias=True)).model_type == "qwen2"
    assert family_of(config(qk_norm=True)).model_type == "qwen3"
    assert family_of(config(output_bias=True)).model_type == "shoestring"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "[" * 100_000, '{"a": "\ud800'],
    ids=["empty", "open", "list", "deep", "not UTF-8"],
)
def test_a_broken_config_json_is_one_sentence(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelFileError, match="config.json"):
        read_config(tmp_path)


STRANGE = [
    0,
    -1,
    1,
    1.5,
    True,
    "x",
    [],
    [1],
    {},
    {"a": 1},
    10**400,
    1e308,
    1e-308,
    float("nan"),
    float("inf"),
    None,
]


@pytest.mark.parametrize("values", [SMOLLM2, QWEN25, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_strange_values_are_read_or_refused_in_a_sentence(values):
    scaled = {**values, "rope_scaling": {**YARN, "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.1}}
    for name, strange in itertools.product(scaled, STRANGE):
        assert_read_or_refused({**scaled, name: strange})
    for name, strange in itertools.product(scaled["rope_scaling"], STRANGE):
        assert_read_or_refused({**scaled, "rope_scaling": {**scaled["rope_scaling"], name: strange}})


def assert_read_or_refused(values) -> None:
    try:
        config, _ = family_named(values["model_type"]).read_config(values)
    except ModelFileError as error:
        assert "\n" not in error.message
        return
    RotaryEmbedding(config.position, min(config.attention.head_width, 4096))


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ModelFileError, match="no config.json"):
        read_config(tmp_path)
    with pytest.raises(ModelFileError, match="no such folder"):
        read_config(tmp_path / "absent")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="adapter"):
        read_config(tmp_path)


def test_reading_a_config_does_not_import_torch(tmp_path):
    write(tmp_path, QWEN3)
    code = (
        "import sys; from shoestring.models.families.registry import read_config\n"
        f"read_config({str(tmp_path)!r}); sys.exit('torch' in sys.modules)"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=path).returncode == 0
