"""Pruned folders: smaller dense models of the same family, which are read, trained and told of; mistakes leave none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import shoestring
from shoestring.cli.main import main
from shoestring.compression.prune.job import prune
from shoestring.compression.prune.workplace import place_of
from shoestring.core.errors import ConfigError, DataError, ModelFileError, RunError, ShoestringError
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss
from tests.compression.prune.prunable import FEW, logits, prunable, text_of
from tests.finetuning import tiny

PARTS = {"layers": 2, "feed_forward": 32, "heads": 4, "width": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunable(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="module")
def made(model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory):
    return prune(model, tmp_path_factory.mktemp("made") / "p", sums, **PARTS, **FEW)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True), ("qwen3", True)])
def test_transformers_reads_a_smaller_model_of_the_same_family_to_the_same_logits(
    sums: Path, tmp_path: Path, family: str, tied: bool
) -> None:
    model = prunable(tmp_path / "model", family, tied)
    result = prune(model, tmp_path / "p", sums, **PARTS, **FEW)
    fields = json.loads((tmp_path / "p" / "config.json").read_text())
    assert fields["model_type"] == family == json.loads((model / "config.json").read_text())["model_type"]
    assert [fields[key] for key in ("num_hidden_layers", "intermediate_size", "num_attention_heads")] == [2, 32, 4]
    assert (fields["num_key_value_heads"], fields["head_dim"], fields["hidden_size"]) == (2, 8, 24)
    judge = AutoModelForCausalLM.from_pretrained(tmp_path / "p", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = judge(torch.arange(40).unsqueeze(0)).logits
    torch.testing.assert_close(logits(tmp_path / "p"), theirs, rtol=0, atol=1e-4)
    assert result.parameters == result.parameters_predicted == sum(p.numel() for p in judge.parameters())


def test_a_pruned_model_is_saved_and_read_again_to_the_same_logits(made, tmp_path: Path) -> None:
    decoder = load_model(made.folder)
    save_model(decoder, tmp_path / "again", Tokenizer.load(made.folder))
    assert torch.equal(logits(made.folder), logits(tmp_path / "again"))


def test_parameters_are_predicted_and_found(model: Path, made) -> None:
    tensors = load_file(made.folder / "model.safetensors")
    found = sum(tensor.numel() for tensor in tensors.values())
    vocabulary = Tokenizer.load(model).vocabulary_size
    each = 24 * (32 + 16 + 16) + 32 * 24 + 3 * 24 * 32 + 2 * 24
    assert made.parameters == made.parameters_predicted == found == vocabulary * 24 + 2 * each + 24
    assert made.after.weight_bytes == 4 * found < made.before.weight_bytes


def test_what_is_measured_is_what_the_folders_give(model: Path, sums: Path, made) -> None:
    text = text_of(model, sums)
    assert text.labels == made.labels and text.tokens == made.tokens
    for folder, measured in ((model, made.before), (made.folder, made.after)):
        decoder = load_model(folder)
        with torch.no_grad():
            nats = sum(float(forward_loss(decoder, next_token, batch)[0].sum) for batch in text.measured)
        assert measured.loss == pytest.approx(nats / text.labels, rel=1e-5)
        assert measured.bits_per_byte == pytest.approx(nats / 0.6931471805599453 / text.label_bytes, rel=1e-5)


def test_the_report_stands_in_the_folder(made) -> None:
    report = json.loads((made.folder / "compression.json").read_text())
    assert report == json.loads(json.dumps(made.report()))
    assert report["verb"] == "prune" and report["parameters"]["found"] == report["parameters"]["predicted"]
    assert report["how"] == "prune layers 3 -> 2, feed-forward 48 -> 32, heads 6 -> 4, width 32 -> 24"
    shown = str(made)
    assert "parameters (-" in shown and "bits per byte" in shown and "tokens/s" in shown
    assert {path.name for path in made.folder.iterdir()} >= {"tokenizer.json", "config.json", "generation_config.json"}
    assert [path.name for path in made.folder.parent.iterdir()] == ["p"]


def test_lora_on_a_pruned_model_trains(made, sums: Path, tmp_path: Path) -> None:
    result = shoestring.finetune(made.folder, sums, overrides={**tiny.SHORT, "out": str(tmp_path / "run")})
    assert result.loss_before is not None and result.loss_after is not None
    assert result.loss_after < result.loss_before
    assert (result.out / "latest" / "adapter_model.safetensors").is_file()


def test_a_number_of_parameters_is_reached(model: Path, sums: Path, tmp_path: Path) -> None:
    result = prune(model, tmp_path / "p", sums, parameters="0.75x", dtype="bfloat16", **FEW)
    assert 0.65 * result.parameters_before < result.parameters <= 0.75 * result.parameters_before
    assert result.after.weight_bytes == 2 * result.parameters


def test_the_same_again_gives_the_same_bytes(model: Path, sums: Path, made, tmp_path: Path) -> None:
    prune(model, tmp_path / "p", sums, **PARTS, **FEW)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "p" / name).read_bytes() == (made.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"calibrate": "empty.txt"}, DataError, "empty.txt"),
        ({"calibrate": "short.txt"}, DataError, "too few to calibrate with"),
        ({"calibrate": "nowhere.txt"}, DataError, "nowhere.txt"),
        ({"calibrate": "sums", "layers": 9}, ConfigError, "layers 9: the model has 3"),
        ({"calibrate": "sums", "layers": None, "parameters": "0.1x"}, ConfigError, "too few for what is chosen"),
        ({"calibrate": "sums", "columns": {"prompt": "nothing"}}, DataError, "no column 'nothing'"),
        ({}, ConfigError, "needs text to calibrate with"),
    ],
)
def test_targets_and_text_that_cannot_do_are_told_and_nothing_is_left(
    model: Path, sums: Path, tmp_path: Path, monkeypatch, settings: dict, error: type[ShoestringError], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a few words")
    settings = {"layers": 2, **settings}
    if settings.get("calibrate") == "sums":
        settings["calibrate"] = sums
    with pytest.raises(error, match=f"(?s){said}"):
        prune(model, tmp_path / "out" / "p", **settings)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["embedding.weight", "blocks.1.feed_forward.down.weight", "norm.weight"])
@pytest.mark.parametrize("settings", [{"pattern": "2:4"}, {"width": 24}])
def test_nan_in_the_weights_is_told_by_the_tensors_name(
    model: Path, sums: Path, tmp_path: Path, name: str, settings: dict
) -> None:
    decoder = load_model(model)
    with torch.no_grad():
        decoder.get_parameter(name).view(-1)[3] = float("nan")
    save_model(decoder, tmp_path / "broken", Tokenizer.load(model))
    tensor = {"embedding": "embed_tokens", "blocks.1": "layers.1.mlp.down_proj", "norm": "model.norm"}
    with pytest.raises(ModelFileError, match=next(tensor[key] for key in tensor if name.startswith(key))) as caught:
        prune(tmp_path / "broken", tmp_path / "out" / "p", sums, **settings, **FEW)
    assert "NaN or infinity" in str(caught.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_pruned_is_refused(model: Path, made, sums: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists and is not empty"):
        prune(model, made.folder, sparsity=0.5, method="magnitude")
    decoder = load_model(model)
    attach(decoder, LoRAConfig(rank=2))
    save_adapter(decoder, tmp_path / "adapter", model)
    with pytest.raises(ConfigError, match="(?s)is an adapter.*shoestring merge"):
        prune(tmp_path / "adapter", tmp_path / "p", sparsity=0.5, method="magnitude")
    other = {**tiny.SHAPE, "vocabulary": 64, "feed_forward": {"kind": "gelu", "width": 48}}
    save_model(build(ModelConfig.model_validate(other), seed=0), tmp_path / "gelu")
    with pytest.raises(ModelFileError, match="SwiGLU"):
        prune(tmp_path / "gelu", tmp_path / "p", sparsity=0.5, method="magnitude")
    odd = {**tiny.SHAPE, "vocabulary": 64, "feed_forward": {"width": 46}}
    save_model(build(ModelConfig.model_validate(odd), seed=0), tmp_path / "odd")
    with pytest.raises(ConfigError, match="a matrix has 46 inputs, which 4 do not divide"):
        prune(tmp_path / "odd", tmp_path / "p", pattern="2:4", method="magnitude")
    assert not (tmp_path / "p").exists() and not place_of(tmp_path / "p").exists()


def test_the_verb_makes_a_folder_that_generates_and_shows_what_was_done(
    model: Path, sums: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--rows", "2", "--context", "64", "--out", "p"]
    assert main(["prune", str(model), "--heads", "4", "--calibrate", str(sums), *flags, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["folder"] == "p" and shown["after"]["perplexity"] > 1
    assert main(["generate", "p", "--prompt", "1+1", "--max-tokens", "3"]) == 0
    capsys.readouterr()
    assert main(["model", "show", "p"]) == 0
    assert "prune heads 6 -> 4: " in capsys.readouterr().out
    assert main(["prune", str(model), "--heads", "4", "--calibrate", str(sums), *flags]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["prune", str(model), "--sparsity", "0.5", "--out", "other"]) == 2
    assert "wanda needs text" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert main(["prune", str(model), "--unfitted", "--heads", "3", "--calibrate", str(sums), "--out", "q"]) == 2
    assert "possible: 2, 4" in capsys.readouterr().err
