"""A folder becomes a GGUF file that our reader, gguf's own, and transformers by way of a folder read as one model."""

from __future__ import annotations

import errno
import json
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from safetensors.numpy import load_file

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, ModelFileError, RunError
from shoestring.export import rows
from shoestring.export.gguf import architecture, in_llama_cpp, tensors
from shoestring.export.gguf.mixture import Mixture
from shoestring.export.job import export_gguf
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import read_config
from shoestring.models.folder import save_model
from shoestring.models.gguf import dequantize
from shoestring.models.gguf.convert import convert
from tests.export.folders import saved, saved_experts, tokenizer_of
from tests.models.gguf.gguf_files import gguf_name, permute, tiny_model, vocabulary

TOKENS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(TOKENS).logits


def stored(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def usual_start(config: ModelConfig) -> ModelConfig:
    """GGUF does not say how fresh weights would be drawn."""
    return config.model_copy(update={"initializer_range": 0.02})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_float32_file_reads_back_as_the_same_folder(arch: str, tied: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", arch, tie_word_embeddings=tied)
    done = export_gguf(folder, tmp_path / "m.gguf", "f32")
    back = convert(done.file, tmp_path / "back")
    wanted, found = weights(folder), weights(back)
    assert found.keys() == wanted.keys() and ("lm_head.weight" in found) is not tied
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert usual_start(read_config(back)) == usual_start(read_config(folder))
    torch.testing.assert_close(logits(back), logits(folder), rtol=0, atol=0)
    assert done.bytes == done.file.stat().st_size and set(done.formats) == {"F32"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "m.Modelfile", "m.gguf", "model"]


def test_q_and_k_are_interleaved_as_llama_cpps_converter_does_it_and_for_llama_alone(tmp_path: Path) -> None:
    for arch, head_dim in (("llama", 16), ("llama", 32), ("qwen3", 32)):
        folder = saved(tmp_path / f"{arch}{head_dim}", arch, head_dim=head_dim)
        file = export_gguf(folder, tmp_path / f"{arch}{head_dim}.gguf", "f32").file
        found, own = stored(file), weights(folder)
        for name, heads in (("q", 4), ("k", 2)):
            plain = own[f"model.layers.1.self_attn.{name}_proj.weight"]
            turned = permute(plain, heads)
            assert not np.array_equal(plain, turned)
            np.testing.assert_array_equal(found[f"blk.1.attn_{name}.weight"].data, turned if arch == "llama" else plain)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_matrices_are_rounded_as_ggufs_own_package_rounds_them(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "qwen2")  # of a width, 64, that no block of 256 divides; the head is untied
    file = export_gguf(folder, tmp_path / "m.gguf", kind).file
    found, of = stored(file), Kind[kind.upper()]
    for name, values in weights(folder).items():
        tensor = found.pop(gguf_name(name))
        head = Kind.Q8_0 if kind.startswith("q4") and tensor.name == "output.weight" else of
        assert tensor.tensor_type == (head if values.ndim > 1 else Kind.F32)
        np.testing.assert_array_equal(tensor.data, quants.quantize(values, tensor.tensor_type))
    assert not found


def test_rows_that_no_block_divides_are_float16(tmp_path: Path) -> None:
    done = export_gguf(saved(tmp_path / "model", intermediate_size=40), tmp_path / "m.gguf", "q4_k_m")
    found = stored(done.file)
    assert found["blk.0.ffn_down.weight"].tensor_type == Kind.F16  # rows of 40
    assert found["blk.0.ffn_up.weight"].tensor_type == Kind.Q5_0  # rows of 64
    assert done.formats == {"F32": 5, "Q5_0": 12, "Q8_0": 2, "F16": 2}


def test_the_vocabulary_is_no_multiple_of_a_block_and_rows_without_a_token_are_told(tmp_path: Path) -> None:
    assert len(vocabulary()[0]) % 32
    file = export_gguf(saved(tmp_path / "model"), tmp_path / "m.gguf", "q8_0").file
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.ggml.tokens"].contents() == vocabulary()[0]
    assert fields["tokenizer.ggml.token_type"].contents()[-1] == gguf.TokenType.UNUSED


def counts(mixture: Mixture, layers: int, width: int, inner: int, biases: bool, tied: bool) -> dict[str, int]:
    """Formats of the tensors of a dense model."""
    names = {"token_embd.weight": (99, width), "output_norm.weight": (width,)}
    if not tied:
        names["output.weight"] = (99, width)
    for layer in range(layers):
        sizes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), width)
        sizes |= {"ffn_gate": inner, "ffn_up": inner}
        names |= {f"blk.{layer}.{name}.weight": (many, width) for name, many in sizes.items()}
        names |= {f"blk.{layer}.ffn_down.weight": (width, inner), f"blk.{layer}.attn_norm.weight": (width,)}
        names |= {f"blk.{layer}.ffn_norm.weight": (width,)}
        names |= {f"blk.{layer}.attn_{name}.bias": (width,) for name in "qkv" if biases}
    found: dict[str, int] = {}
    for name, shape in names.items():
        kind = mixture.kind(name, shape).name
        found[kind] = found.get(kind, 0) + 1
    return found


def test_mixtures_are_those_that_llama_cpp_reports_of_published_files() -> None:
    """Llama-2-7B and Qwen2.5-0.5B as Q4_K_M."""
    llama = counts(Mixture("q4_k_m", 32, tied=False), 32, 4096, 11008, biases=False, tied=False)
    assert llama == {"Q4_K": 193, "Q6_K": 33, "F32": 65}
    qwen = counts(Mixture("q4_k_m", 24, tied=True), 24, 896, 4864, biases=True, tied=True)
    assert qwen == {"F32": 121, "Q5_0": 132, "Q8_0": 13, "Q4_K": 12, "Q6_K": 12}


@pytest.mark.parametrize("kind", ["q4_k_m", "q4_0"])
def test_blocks_of_256_are_written_and_read_back(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    done = export_gguf(folder, tmp_path / "m.gguf", kind)
    assert set(done.formats) == ({"F32", "Q4_K", "Q6_K"} if kind == "q4_k_m" else {"F32", "Q4_0", "Q6_K"})
    back = convert(done.file, tmp_path / "back")
    for name, values in weights(folder).items():
        lost = np.linalg.norm(weights(back)[name] - values) / np.linalg.norm(values)
        assert lost < 0.11, name


@pytest.mark.parametrize(
    ("arch", "rope"),
    [
        ("llama", LLAMA3),
        ("llama", {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
        ("qwen2", {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}),
    ],
)
def test_rotary_scalings_survive(arch: str, rope: dict, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", arch, rope_parameters=rope)
    file = export_gguf(folder, tmp_path / "m.gguf", "f32").file
    back = convert(file, tmp_path / "back")
    assert usual_start(read_config(back)) == usual_start(read_config(folder))
    assert ("rope_freqs.weight" in stored(file)) is (rope is LLAMA3)
    torch.testing.assert_close(logits(back), logits(folder), rtol=0, atol=0)


def test_a_bfloat16_model_is_exact_in_bf16_and_a_tensor_too_large_for_float16_is_told(tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 70000.0
    model.save_pretrained(tmp_path / "model")
    tokenizer_of().save(tmp_path / "model")
    wanted = load_torch(tmp_path / "model")
    back = load_torch(convert(export_gguf(tmp_path / "model", tmp_path / "m.gguf", "bf16").file, tmp_path / "back"))
    for name, values in wanted.items():
        assert torch.equal(back[name].float(), values.float()), name
    for kind in ("f16", "q8_0"):
        with pytest.raises(ModelFileError, match=r"blk.0.ffn_up.weight holds 70144, which is beyond float16"):
            export_gguf(tmp_path / "model", tmp_path / "half.gguf", kind)
    assert not list(tmp_path.glob("*half*"))


def load_torch(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file as load

    return load(folder / "model.safetensors")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_of_a_layer_become_one_tensor(family: str, tmp_path: Path) -> None:
    done = export_gguf(saved_experts(tmp_path / "model", family), tmp_path / "m.gguf", "f32")
    found, own = stored(done.file), weights(tmp_path / "model")
    inside = "block_sparse_moe.experts.{}.w2" if family == "mixtral" else "mlp.experts.{}.down_proj"
    matrices = [own[f"model.layers.1.{inside.format(expert)}.weight"] for expert in range(5)]
    np.testing.assert_array_equal(found["blk.1.ffn_down_exps.weight"].data, np.stack(matrices))
    fields = gguf.GGUFReader(done.file).fields
    name = "llama" if family == "mixtral" else "qwen3moe"
    assert fields["general.architecture"].contents() == name
    assert (fields[f"{name}.expert_count"].contents(), fields[f"{name}.expert_used_count"].contents()) == (5, 2)
    assert found["blk.0.ffn_gate_inp.weight"].tensor_type == Kind.F32
    assert done.checked[0] == "read back here: every tensor, token ids, chat template"


def test_shared_blocks_are_written_for_every_layer(tmp_path: Path) -> None:
    config = {
        "vocabulary": len(vocabulary()[0]), "width": 32, "layers": 4, "context": 64, "feed_forward": {"width": 48},
        "attention": {"heads": 2, "kv_heads": 1, "head_width": 16}, "sharing": {"unique_layers": 2},
    }  # fmt: skip
    decoder = build(ModelConfig.model_validate(config), seed=1)
    save_model(decoder, tmp_path / "model", tokenizer_of())
    back = convert(export_gguf(tmp_path / "model", tmp_path / "m.gguf", "f32").file, tmp_path / "back")
    found = weights(back)
    for layer in range(4):
        own = decoder.blocks[layer % 2].feed_forward.up.weight.detach().numpy()
        np.testing.assert_array_equal(found[f"model.layers.{layer}.mlp.up_proj.weight"], own)


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, calls = saved(tmp_path / "model"), []

    def full(values: np.ndarray, kind: Kind, name: str) -> np.ndarray:
        calls.append(name)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return values

    monkeypatch.setattr(tensors, "encode", full)
    with pytest.raises(RunError, match="the disk is full"):
        export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and len(calls) == 6


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_file_that_reads_back_differently_is_not_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model")
    monkeypatch.setattr(tensors, "interleaved", lambda values, head: values)
    with pytest.raises(ModelFileError, match=r"does not read back as the model: .*tensor blk.0.attn_q.weight differs"):
        export_gguf(folder, tmp_path / "m.gguf", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[1] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tokenizer_of().save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="tensor output_norm.weight holds numbers that are not finite"):
        export_gguf(tmp_path / "model", tmp_path / "m.gguf", "f32")


def test_memory_holds_slices_and_never_a_whole_large_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, dequantize):
        monkeypatch.setattr(module, "SLICE_BYTES", 50_000)
    monkeypatch.setattr(in_llama_cpp, "interpreter", lambda: None)  # which would take a second model
    sizes = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 64}
    folder = saved(tmp_path / "model", **sizes)
    largest = weights(folder)["model.layers.0.mlp.up_proj.weight"].nbytes
    export_gguf(folder, tmp_path / "warm.gguf", "f32")  # what is kept after a first use
    tracemalloc.start()
    try:
        export_gguf(folder, tmp_path / "m.gguf", "q8_0")
        assert tracemalloc.get_traced_memory()[1] < largest / 4
    finally:
        tracemalloc.stop()


def test_the_command_says_what_was_checked_and_refuses_a_file_that_is_there(tmp_path: Path, capsys) -> None:
    folder, file = saved(tmp_path / "model"), tmp_path / "m.gguf"
    assert main(["export", str(folder), "--out", str(file), "--type", "q8_0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(file) and said["formats"] == {"Q8_0": 16, "F32": 5}
    assert said["checked"][0] == "read back here: config, every tensor, token ids, chat template"
    assert len(said["checked"]) + len(said["unchecked"]) == 2
    assert main(["export", str(folder), "--out", str(file)]) == 2
    assert "this exists already" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no type 'q2_k' of gguf"):
        export_gguf(folder, tmp_path / "other.gguf", "q2_k")  # type: ignore[arg-type]


def test_the_rows_of_a_slice_are_those_of_whole_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model")
    whole = export_gguf(folder, tmp_path / "whole.gguf", "f16").file.read_bytes()
    monkeypatch.setattr(rows, "SLICE_BYTES", 64 * 4 * 20)  # one head of 16 rows and a part of another
    assert export_gguf(folder, tmp_path / "sliced.gguf", "f16").file.read_bytes() == whole


def test_interleaving_is_its_readers_inverse() -> None:
    plain = np.arange(4 * 8 * 3, dtype=np.float32).reshape(32, 3)
    found = architecture.interleaved(plain, 8)
    pairs = found.reshape(-1, 4, 2, 3).swapaxes(1, 2).reshape(32, 3)
    np.testing.assert_array_equal(pairs, plain)
