"""What is wrong with a folder or a file is said by its cause, before anything large is fetched or read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tokenizers
import torch

from shoestring.core.errors import ModelFileError, ShoestringError
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate.language_model import LanguageModel
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.models.gguf.reader import GGUFFile
from shoestring.models.peft_folder import save_adapter
from shoestring.models.resolve import find_model
from shoestring.nn.config import LowRankConfig
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized import config as quantized
from shoestring.nn.replace import _KINDS
from tests.finetuning import tiny
from tests.generate.tiny import byte_tokenizer, tiny_decoder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 134217728\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny_decoder(), tmp_path / "model", byte_tokenizer())
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer_is_called_by_its_name(name: str, folder: Path) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(ShoestringError, match="(?s)a Git LFS pointer.*git lfs pull"):
        LanguageModel.load(folder)


def test_a_gguf_file_that_is_a_git_lfs_pointer_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    with pytest.raises(ModelFileError, match="a Git LFS pointer"):
        GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("value", "said"), [({"quant_method": "fp8", "bits": 8}, "'fp8'"), ({"bits": 8}, "quantization_config")]
)
def test_a_quantized_folder_is_refused_as_one(value: dict, said: str, folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": value}))
    with pytest.raises(ModelFileError, match=f"(?s)weights are quantized.*{said}.*unquantized") as caught:
        read_config(folder)
    assert "remove it" not in str(caught.value)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("tokenizer.model",), ("vocab.txt",)])
def test_a_tokenizer_in_an_older_form_is_named(names: tuple[str, ...], folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    for name in names:
        (folder / name).write_text("{}")
    with pytest.raises(ShoestringError, match=f"(?s)older form .{names[0]}.*AutoTokenizer"):
        LanguageModel.load(folder)


def with_added(count: int) -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.backend.add_special_tokens([tokenizers.AddedToken(f"<new{n}>") for n in range(count)])
    return Tokenizer(tokenizer.backend, tokenizer.config, tokenizer.chat_templates)


def test_added_tokens_that_the_embedding_has_no_rows_for_are_named() -> None:
    assert LanguageModel(tiny_decoder(vocabulary=260), with_added(2)).tokenizer.vocabulary_size == 260
    with pytest.raises(ModelFileError, match="(?s)tokens were added to the tokenizer .'<new2>', '<new3>'.*260 rows"):
        LanguageModel(tiny_decoder(vocabulary=260), with_added(4))


def test_fine_tuning_with_added_tokens_is_refused_before_it_begins(folder: Path, tmp_path: Path) -> None:
    import shoestring

    with_added(9).save(folder)
    settings = {**tiny.SHORT, "train.answers": 0, "train.sequence_length": 32}
    with pytest.raises(ModelFileError, match="tokens were added"):
        shoestring.finetune(folder, tiny.sums(tmp_path / "sums.jsonl"), overrides=settings, out=str(tmp_path / "run"))


def test_an_encoder_is_not_offered_nor_fetched_where_text_is_to_be_generated(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shoestring.models.resolve.get", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.setattr("shoestring.models.resolve.cached", lambda name: None)
    for name in ("minilm", "minillm", "qwen"):
        with pytest.raises(ModelFileError) as caught:
            find_model(name)
        assert "minilm," not in str(caught.value.hint) and "smollm2-135m" in str(caught.value.hint)
    with pytest.raises(ModelFileError, match="minilm is an encoder"):
        find_model("minilm")
    monkeypatch.setattr("shoestring.models.resolve.cached", lambda name: tmp_path)
    assert find_model("minilm", encoder=True) == tmp_path


def test_every_kind_of_linear_is_known_without_another_import() -> None:
    of_few_bits = {quantized.Int8Config, quantized.Int4Config, quantized.NF4Config, quantized.PackedConfig}
    assert {*of_few_bits, quantized.FakeQuantizedConfig, LowRankConfig, LoRAConfig} == set(_KINDS)


def test_weight_files_have_the_rights_of_their_neighbours(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(build(load_model(folder).config, seed=0), tmp_path / "other", byte_tokenizer())
        attach(decoder := load_model(folder), LoRAConfig(rank=2))
        save_adapter(decoder, tmp_path / "adapter", folder)
    finally:
        os.umask(before)
    rights = {file.stat().st_mode & 0o777 for made in ("other", "adapter") for file in (tmp_path / made).iterdir()}
    assert rights == {0o640}
    ordinary = {file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert ordinary == {0o666 & ~before}


def test_a_float16_file_holds_its_numbers(folder: Path, tmp_path: Path) -> None:
    save_model(load_model(folder), tmp_path / "half", dtypes=torch.float16)
    assert load_model(tmp_path / "half", dtype=torch.float16).embedding.weight.dtype == torch.float16
