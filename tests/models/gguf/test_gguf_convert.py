"""A GGUF file written by gguf's own writer becomes a folder that transformers reads as the same model."""

from __future__ import annotations

import errno
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoestring.core.errors import ModelFileError, RunError
from shoestring.models.gguf import dequantize, safetensors_stream
from shoestring.models.gguf.convert import convert
from tests.models.gguf.gguf_files import quantize_model, tiny_model, vocabulary, write_gguf

TOKENS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))


def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def read(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_converted_model_has_the_logits_of_the_model_that_was_stored(
    arch: str, kind: str, tmp_path: Path
) -> None:
    model = tiny_model(arch)
    quantize_model(model, kind)
    folder = convert(write_gguf(tmp_path / "m.gguf", model, kind), tmp_path / "folder")
    torch.testing.assert_close(logits(read(folder)), logits(model), rtol=0, atol=0)


def test_skipping_the_permutation_of_llama_files_would_change_the_logits(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = convert(write_gguf(tmp_path / "m.gguf", model, permuted=False), tmp_path / "folder")
    assert (logits(read(folder)) - logits(model)).abs().max() > 0.1


def test_head_is_tied_when_the_file_has_no_output_tensor(tmp_path: Path) -> None:
    model = tiny_model("qwen2", tie_word_embeddings=True)
    folder = convert(write_gguf(tmp_path / "m.gguf", model), tmp_path / "folder")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    torch.testing.assert_close(logits(read(folder)), logits(model), rtol=0, atol=0)


def test_heads_wider_than_the_model_are_unpermuted_by_their_own_width(tmp_path: Path) -> None:
    model = tiny_model("llama", head_dim=32)
    path = write_gguf(
        tmp_path / "m.gguf",
        model,
        metadata={"llama.attention.key_length": 32, "llama.attention.value_length": 32},
    )
    torch.testing.assert_close(
        logits(read(convert(path, tmp_path / "folder"))), logits(model), rtol=0, atol=0
    )


def test_slices_smaller_than_a_tensor_give_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "Q8_0")
    whole = load_file(convert(path, tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr(dequantize, "SLICE_BYTES", 5000)
    sliced = load_file(convert(path, tmp_path / "sliced") / "model.safetensors")
    assert whole.keys() == sliced.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(sliced[name], values)


def test_conversion_holds_slices_and_never_a_whole_large_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequantize, "SLICE_BYTES", 50_000)
    model = tiny_model("llama", hidden_size=1024, num_hidden_layers=1, num_attention_heads=64)
    largest = model.get_input_embeddings().weight.nbytes
    path = write_gguf(tmp_path / "m.gguf", model, "Q8_0")
    tracemalloc.start()
    try:
        convert(path, tmp_path / "folder")
        assert tracemalloc.get_traced_memory()[1] < largest / 2
    finally:
        tracemalloc.stop()


def test_a_full_disk_halfway_is_the_error_that_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(values: np.ndarray, dtype: str) -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_stream, "cast", full)
    with pytest.raises(RunError, match="the disk is full"):
        convert(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "Q8_0"), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_large_models_become_shards_with_an_index(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    folder = convert(write_gguf(tmp_path / "m.gguf", model), tmp_path / "folder", max_shard_bytes=100_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    torch.testing.assert_close(logits(read(folder)), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_chosen_dtype_rounds_to_nearest(dtype: str, tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    folder = convert(write_gguf(tmp_path / "m.gguf", model), tmp_path / "folder", dtype=dtype)
    with safe_open(folder / "model.safetensors", "pt") as stored:
        for name, values in model.state_dict().items():
            expected = values.to(getattr(torch, dtype))
            torch.testing.assert_close(stored.get_tensor(name), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "float32")])
def test_the_dtype_is_the_smallest_exact_one(kind: str, dtype: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().half())  # vectors that both types hold
    folder = convert(write_gguf(tmp_path / "m.gguf", model, kind), tmp_path / "folder")
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_vectors_that_do_not_fit_sixteen_bits_keep_a_file_in_float32(tmp_path: Path) -> None:
    folder = convert(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "F16"), tmp_path / "folder")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def llama3_divisors(head_dim: int, rope: dict) -> np.ndarray:
    """transformers' frequencies without the scaling over those with it."""
    config = transformers.LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
    return (plain / scaled).numpy().astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_tensor(factor: float, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny_model("llama", rope_parameters=rope)
    divisors = llama3_divisors(16, rope)
    path = write_gguf(tmp_path / "m.gguf", model, pre="llama-bpe", extra={"rope_freqs.weight": divisors})
    folder = convert(path, tmp_path / "folder")
    found = json.loads((folder / "config.json").read_text())
    assert {**found["rope_scaling"], "rope_theta": found["rope_theta"]} == rope
    torch.testing.assert_close(logits(read(folder)), logits(model), rtol=0, atol=0)
    divisors[-1] *= 1.01
    path = write_gguf(tmp_path / "other.gguf", model, extra={"rope_freqs.weight": divisors})
    with pytest.raises(ModelFileError, match="none of Llama 3's"):
        convert(path, tmp_path / "other")


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_other_scalings_come_from_the_metadata(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0}
    metadata = {"qwen2.rope.scaling.type": kind, "qwen2.rope.scaling.factor": 4.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = metadata["qwen2.rope.scaling.original_context_length"] = 32
    model = tiny_model("qwen2", rope_parameters=rope)
    folder = convert(write_gguf(tmp_path / "m.gguf", model, metadata=metadata), tmp_path / "folder")
    torch.testing.assert_close(logits(read(folder)), logits(model), rtol=0, atol=0)
    assert (logits(model) - logits(tiny_model("qwen2"))).abs().max() > 0.01


def test_generation_config_has_the_ids_of_the_file(tmp_path: Path) -> None:
    tokens = vocabulary()[0]
    eot = {"tokenizer.ggml.eot_token_id": tokens.index("<|pad|>")}
    folder = convert(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), metadata=eot), tmp_path / "folder")
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": tokens.index("<|begin|>"),
        "eos_token_id": [tokens.index("<|im_end|>"), tokens.index("<|pad|>")],
        "pad_token_id": tokens.index("<|pad|>"),
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"llama.logit_scale": 2.0}}, "llama.logit_scale is not supported"),
        ({"metadata": {"llama.attention.sliding_window": 16}}, "only full causal attention"),
        (
            {"metadata": {"llama.rope.dimension_count": 8}},
            "rope.dimension_count differs from the head width 16",
        ),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "'longrope' is not supported"),
        ({"extra": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}}, "'blk.0.attn_q.bias' is not known"),
        (
            {"extra": {"blk.2.attn_norm.weight": np.zeros(64, np.float32)}},
            "'blk.2.attn_norm.weight' is not known",
        ),
        ({"leave_out": ("blk.1.ffn_up.weight",)}, "'blk.1.ffn_up.weight' is missing"),
        (
            {"leave_out": ("output_norm.weight",), "extra": {"output_norm.weight": np.zeros(32, np.float32)}},
            r"'output_norm.weight' has the shape \(32,\), expected \(64,\)",
        ),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(
    change: dict, sentence: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), **change)
    with pytest.raises(ModelFileError, match=sentence) as error:
        convert(path, tmp_path / "folder")
    assert error.value.where == str(path)
    assert not (tmp_path / "folder").exists()


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1))
    with pytest.raises(ModelFileError, match="'gemma' is not supported"):
        convert(path, tmp_path / "folder")


def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=len(vocabulary()[0]) + 64)
    with pytest.raises(ModelFileError, match="but token_embd.weight has"):
        convert(write_gguf(tmp_path / "m.gguf", model), tmp_path / "folder")
