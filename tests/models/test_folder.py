"""Model folders: what is written comes back bit by bit, and what is broken gives one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from shoestring.core.errors import ModelFileError, RunError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import (
    GenerationDefaults,
    load_model,
    read_config,
    read_generation_config,
    save_model,
)
from shoestring.models.weights import TensorFile


def tiny(tied: bool = True, **attention) -> ModelConfig:
    shape = {"heads": 4, "kv_heads": 2, "head_width": 8, **attention}
    return ModelConfig.model_validate({
        "vocabulary": 50, "width": 32, "layers": 2, "context": 64, "attention": shape,
        "feed_forward": {"width": 48}, "tied_head": tied,
    })  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(build(tiny(), seed=0), tmp_path / "model")
    return tmp_path / "model"


def assert_same_weights(one: Decoder, other: Decoder) -> None:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(folder: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        load_model(folder)
    assert "\n" not in caught.value.message
    assert caught.value.where and str(folder) in caught.value.where
    return caught.value


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("attention", [{}, {"qkv_bias": True}, {"qk_norm": True}])
@pytest.mark.parametrize("shard", [5e9, 4000])
def test_a_saved_model_comes_back_bit_by_bit(tied, attention, shard, tmp_path):
    model = build(tiny(tied, **attention), seed=0)
    save_model(model, tmp_path / "model", max_shard_bytes=shard)
    assert (tmp_path / "model" / "model.safetensors").exists() == (shard > 5000)
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    assert_same_weights(again, model)
    assert (again.head.weight is again.embedding.weight) == tied


def test_shards_stay_within_the_limit_and_cover_every_tensor_once(tmp_path):
    model = build(tiny(), seed=0)
    save_model(model, tmp_path / "model", max_shard_bytes=10_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    held: dict[str, str] = {}
    for file in sorted((tmp_path / "model").glob("*.safetensors")):
        tensors = safetensors.torch.load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 10_000
        assert not held.keys() & tensors.keys()
        held |= dict.fromkeys(tensors, file.name)
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == 4 * model.parameter_count()


def test_weights_are_float32_in_memory_unless_asked_otherwise(tmp_path):
    model = build(tiny(), seed=0).to(torch.bfloat16)
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same_weights(load_model(tmp_path / "model"), model.to(torch.float32))
    half = load_model(tmp_path / "model", dtype=torch.bfloat16)
    assert_same_weights(half, model.to(torch.bfloat16))


def test_large_tensors_are_converted_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("shoestring.models.weights._CHUNK", 100)
    model = build(tiny(), seed=0).to(torch.float16)
    save_model(model, tmp_path / "model")
    assert_same_weights(load_model(tmp_path / "model"), model.to(torch.float32))


def test_our_reader_agrees_with_the_reference(tmp_path):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5, generator=random),
        "b": torch.randn(7, generator=random).to(torch.bfloat16),
        "c": torch.arange(6).view(2, 3),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert set(file.infos) == set(tensors)
        for name, tensor in tensors.items():
            read = file.read(name)
            assert read.dtype == tensor.dtype and torch.equal(read, tensor), name


# A tied head


def test_a_tied_head_may_stand_in_the_file_too(folder):
    model = load_model(folder)
    rewrite(folder, {**tensors_of(folder), "lm_head.weight": model.embedding.weight.detach().clone()})
    again = load_model(folder)
    assert again.head.weight is again.embedding.weight
    assert_same_weights(again, model)


def test_a_tied_head_with_other_values_is_untied_as_transformers_does(folder):
    head = torch.full((50, 32), 0.5)
    rewrite(folder, {**tensors_of(folder), "lm_head.weight": head})
    model = load_model(folder)
    assert not model.config.tied_head
    assert torch.equal(model.head.weight, head)
    assert not torch.equal(model.embedding.weight, head)


def test_a_tied_matrix_may_stand_under_the_name_of_the_head(folder):
    model = load_model(folder)
    tensors = tensors_of(folder)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    rewrite(folder, tensors)
    assert_same_weights(load_model(folder), model)


# Broken folders


def test_missing_tensors_are_named(folder):
    tensors = tensors_of(folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    rewrite(folder, tensors)
    assert "model.layers.1.mlp.up_proj.weight" in refusal(folder).message


def test_an_untied_head_that_is_missing_is_named(folder):
    edit_config(folder, tie_word_embeddings=False)
    assert "lm_head.weight" in refusal(folder).message


def test_unexpected_tensors_are_named(folder):
    rewrite(folder, {**tensors_of(folder), "score.weight": torch.zeros(2, 32)})
    assert "score.weight" in refusal(folder).message


def test_computed_buffers_of_old_files_are_ignored(folder):
    model = load_model(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, {**tensors_of(folder), name: torch.zeros(4)})
    assert_same_weights(load_model(folder), model)


def test_misshapen_tensors_are_named_with_both_shapes(folder):
    edit_config(folder, vocab_size=40)
    message = refusal(folder).message
    assert "model.embed_tokens.weight" in message and "[50, 32]" in message and "[40, 32]" in message


def test_quantized_tensors_are_refused(folder):
    tensors = tensors_of(folder)
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    rewrite(folder, tensors)
    assert "model.norm.weight is int8" in refusal(folder).message


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**15}, {"hidden_size": 8 * 10**17}]
)
def test_an_absurd_config_allocates_nothing(change, folder):
    edit_config(folder, **change)
    assert "config.json" in refusal(folder).message


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickle" in refusal(folder).message


def test_a_folder_without_weights_says_so(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(folder).message


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.999])
def test_a_truncated_file_is_one_sentence(kept, folder):
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[: kept if isinstance(kept, int) else int(len(raw) * kept)])
    assert refusal(folder).where == str(file)


def test_bytes_behind_the_last_tensor_are_refused(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    assert "belong to no tensor" in refusal(folder).message


def header_bytes(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE = {
    "a huge header length": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "no JSON": header_bytes(b"\xff\xfe"),
    "a list": header_bytes([1]),
    "nested beyond reason": header_bytes(b"[" * 100_000),
    "a name twice": header_bytes(json.dumps({"a": FOUR, "b": FOUR}).replace("b", "a").encode(), b"1234"),
    "no offsets": header_bytes({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "an entry that is no object": header_bytes({"a": 3}, b"1234"),
    "negative sizes": header_bytes({"a": {**FOUR, "shape": [-1]}}, b"1234"),
    "sizes that are no integers": header_bytes({"a": {**FOUR, "shape": ["1"]}}, b"1234"),
    "an absurd shape": header_bytes({"a": {**FOUR, "shape": [2**62, 2**62]}}, b"1234"),
    "an unknown number format": header_bytes({"a": {**FOUR, "dtype": "Q4"}}, b"1234"),
    "a shape that does not fit": header_bytes({"a": {**FOUR, "shape": [2]}}, b"1234"),
    "reversed offsets": header_bytes({"a": {**FOUR, "shape": [0], "data_offsets": [4, 0]}}, b"1234"),
    "overlapping tensors": header_bytes({"a": FOUR, "b": FOUR}, b"12345678"),
    "a hole": header_bytes({"a": {**FOUR, "data_offsets": [4, 8]}}, b"12345678"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_one_sentence(case, folder):
    (folder / "model.safetensors").write_bytes(HOSTILE[case])
    assert refusal(folder).where == str(folder / "model.safetensors")


@pytest.mark.parametrize("seed", range(40))
def test_a_mutated_header_never_crashes(seed, folder):
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    random = torch.Generator().manual_seed(seed)
    length = struct.unpack("<Q", raw[:8])[0]
    for _ in range(3):
        place = int(torch.randint(8 + length, (1,), generator=random))
        raw[place] = int(torch.randint(256, (1,), generator=random))
    file.write_bytes(raw)
    try:
        load_model(folder)
    except ModelFileError as error:
        assert "\n" not in error.message


def sharded(folder: Path) -> dict:
    save_model(load_model(folder), folder, max_shard_bytes=10_000, replace=True)
    return json.loads((folder / "model.safetensors.index.json").read_text())


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "x.bin"]
)
def test_an_index_cannot_point_outside_its_folder(name, folder, tmp_path):
    (tmp_path / "x.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = sharded(folder)
    index["weight_map"]["model.norm.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not the name of a safetensors file" in refusal(folder).message


def test_a_missing_shard_is_named(folder):
    shard = sharded(folder)["weight_map"]["model.norm.weight"]
    (folder / shard).unlink()
    assert shard in refusal(folder).message


def test_a_tensor_that_is_not_in_its_shard_is_named(folder):
    index = sharded(folder)
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.norm.weight" in refusal(folder).message


@pytest.mark.parametrize("weight_map", [None, [], {"model.norm.weight": 3}])
def test_an_index_of_the_wrong_form_is_one_sentence(weight_map, folder):
    index = {**sharded(folder), "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map" in refusal(folder).message


# Saving


def test_an_existing_folder_is_replaced_only_when_asked(folder):
    model = build(tiny(), seed=1)
    with pytest.raises(RunError):
        save_model(model, folder)
    save_model(model, folder, replace=True)
    assert_same_weights(load_model(folder), model)


def test_a_failed_save_leaves_the_old_folder_whole(folder, monkeypatch):
    old = load_model(folder)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoestring.models.folder.save_file", full)
    with pytest.raises(RunError, match="full"):
        save_model(build(tiny(), seed=1), folder, replace=True)
    assert_same_weights(load_model(folder), old)
    assert [child.name for child in folder.parent.iterdir()] == [folder.name]


def test_a_model_that_transformers_has_no_kind_for_is_saved_under_our_own_name_and_refused_by_theirs(tmp_path):
    from transformers import AutoConfig

    model = build(tiny(output_bias=True), seed=0)
    save_model(model, tmp_path / "model")
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    assert content["model_type"] == "shoestring" and "shoestring.load" in content["note"]
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert_same_weights(loaded, model)
    with pytest.raises(ValueError, match="shoestring"):
        AutoConfig.from_pretrained(tmp_path / "model")


def test_saving_copies_no_weights(tmp_path, monkeypatch):
    model = build(tiny(), seed=0)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    seen = []
    monkeypatch.setattr(
        "shoestring.models.folder.save_file",
        lambda tensors, *_, **__: seen.extend(tensor.data_ptr() for tensor in tensors.values()),
    )
    save_model(model, tmp_path / "model")
    assert set(seen) == own


# Generation defaults


def test_generation_defaults_survive_writing_and_reading(tmp_path):
    defaults = GenerationDefaults(1, (2, 5), 2, {"temperature": 0.6, "do_sample": True})
    save_model(build(tiny(), seed=0), tmp_path / "model", generation=defaults)
    assert read_generation_config(tmp_path / "model") == defaults


def test_generation_ids_are_taken_from_config_json_when_there_is_no_other_file(folder):
    (folder / "generation_config.json").unlink()
    edit_config(folder, eos_token_id=[7, 8], bos_token_id=3)
    assert read_generation_config(folder) == GenerationDefaults(3, (7, 8), None)


@pytest.mark.parametrize("value", ["2", 2.5, True, ["a"], {"id": 2}])
def test_generation_ids_of_the_wrong_type_are_refused(value, folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ModelFileError, match="eos_token_id"):
        read_generation_config(folder)


def test_the_tokenizer_is_saved_with_the_model_and_gives_its_ids(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    from shoestring.data.tokenizer import Tokenizer

    backend = Backend(BPE({"a": 0, "b": 1, "<end>": 2}, []))
    backend.add_special_tokens(["<end>"])
    tokenizer = Tokenizer.from_backend(backend, bos="<end>", eos="<end>")
    save_model(build(tiny(), seed=0), tmp_path / "model", tokenizer=tokenizer)
    assert Tokenizer.load(tmp_path / "model").fingerprint() == tokenizer.fingerprint()
    assert read_generation_config(tmp_path / "model") == GenerationDefaults(2, (2,), None)
    assert read_config(tmp_path / "model") == tiny()


def test_quantizing_while_reading_gives_what_quantizing_afterwards_gives(tmp_path):
    from shoestring.models.adapters import quantize_blocks
    from shoestring.nn.quantized.config import Int4Config
    from tests.models import tiny_families

    folder = tiny_families.save("qwen2", tmp_path / "model", torch.float32)
    afterwards = load_model(folder)
    quantize_blocks(afterwards, Int4Config())
    found = load_model(folder, quantized=Int4Config())
    expected = {**dict(afterwards.named_parameters()), **dict(afterwards.named_buffers())}
    tensors = {**dict(found.named_parameters()), **dict(found.named_buffers())}
    assert tensors.keys() == expected.keys() and found.head.weight is found.embedding.weight
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
