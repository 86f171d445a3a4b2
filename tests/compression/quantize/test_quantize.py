"""Quantized folders: they hold what was computed, come back as they were, and say what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoestring.cli.main import main
from shoestring.compression.calibration import read_calibration
from shoestring.compression.quantize import job
from shoestring.compression.quantize.config import LINEARS, quantize_config
from shoestring.compression.quantize.follow import DAMPING
from shoestring.compression.quantize.gptq import Hessian, row_errors
from shoestring.compression.quantize.job import quantize
from shoestring.compression.quantize.result import Quantized
from shoestring.compression.tensor_stream import join
from shoestring.core.errors import BudgetError, ConfigError, DataError, ModelFileError, RunError, ShoestringError
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import Int4Config
from shoestring.offload.load import load
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss
from tests.finetuning import tiny

FEW = {"group": 16, "rows": 4, "context": 64, "held_out": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that chats, whose every matrix counts."""
    folder = tiny.chat_model(tmp_path_factory.mktemp("model") / "model")
    decoder, tokenizer = load_model(folder), Tokenizer.load(folder)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2, generator=random)
    save_model(decoder, folder, tokenizer, replace=True)
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="module")
def made(model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """By GPTQ, on conversations."""
    return quantize(model, tmp_path_factory.mktemp("made") / "q", calibrate=sums, **FEW)


def logits(decoder: Decoder) -> torch.Tensor:
    tokens_BT = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        return decoder.head(decoder(tokens_BT)[0])


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_the_folder_has_packed_matrices_and_all_else_as_it_was(model: Path, made: Quantized) -> None:
    dense, packed = load_model(model), load_model(made.folder)
    linears = packed_linears(packed)
    assert set(linears) == {f"blocks.{index}.{name}" for index in range(2) for name in LINEARS}
    for name, parameter in packed.named_parameters():
        assert torch.equal(parameter, dense.get_parameter(name)), name
    for name, linear in linears.items():
        assert not torch.equal(linear.weights(), dense.get_parameter(f"{name}.weight"))
    assert (logits(packed) - logits(dense)).abs().max() > 1e-3


def test_what_is_measured_is_what_the_folders_give(model: Path, sums: Path, made: Quantized) -> None:
    settings = quantize_config({"calibrate": str(sums), **FEW})
    text = read_calibration(settings, Tokenizer.load(model), 512, None)
    assert text.labels == made.labels and text.tokens == made.tokens
    for folder, measured in ((model, made.before), (made.folder, made.after)):
        decoder = load_model(folder)
        with torch.no_grad():
            nats = sum(float(forward_loss(decoder, next_token, batch)[0].sum) for batch in text.measured)
        assert measured.loss == pytest.approx(nats / text.labels, rel=1e-5)
        assert measured.bits_per_byte == pytest.approx(nats / 0.6931471805599453 / text.label_bytes, rel=1e-5)


def test_errors_are_of_following_weights_on_inputs_that_the_quantized_layers_before_give(
    model: Path, sums: Path, made: Quantized
) -> None:
    text = read_calibration(quantize_config({"calibrate": str(sums), **FEW}), Tokenizer.load(model), 512, None)
    dense, packed = load_model(model), load_model(made.folder)
    errors = {matrix.name: matrix for matrix in made.matrices}
    caught: list[torch.Tensor] = []
    for name in ("blocks.0.attention.output", "blocks.1.attention.query", "blocks.1.feed_forward.down"):
        hessian = Hessian(dense.get_submodule(name).in_features)
        crossed_II = torch.zeros_like(hessian.sum_II)
        handles = [
            each.get_submodule(name).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
            for each in (packed, dense)
        ]
        for batch in text.calibrating:
            with torch.no_grad():
                for each in (packed, dense):
                    each(batch.tokens_BT, batch.positions_BT, batch.segments_BT)
            y_NI, x_NI = (caught.pop()[batch.segments_BT >= 0] for _ in range(2))
            hessian.add(x_NI)
            crossed_II += x_NI.double().t() @ y_NI.double()
        for handle in handles:
            handle.remove()
        weight = dense.get_parameter(f"{name}.weight").detach().double()
        near = DAMPING * hessian.sum_II.diagonal().mean() * torch.eye(len(crossed_II), dtype=torch.float64)
        weight = torch.linalg.solve(hessian.sum_II + near, (crossed_II + near) @ weight.t()).t()
        off = packed_linears(packed)[name].weights(torch.float64) - weight
        share = row_errors(off, hessian.sum_II).sum() / row_errors(weight, hessian.sum_II).sum()
        assert errors[name].error == pytest.approx(float(share), rel=1e-3)
        assert errors[name].error <= errors[name].nearest


def test_a_quantized_model_is_saved_and_read_again_to_the_same_logits(made: Quantized, tmp_path: Path) -> None:
    first = load_model(made.folder)
    save_model(first, tmp_path / "again", Tokenizer.load(made.folder))
    again = load_model(tmp_path / "again")
    assert torch.equal(logits(first), logits(again))
    assert set(packed_linears(again)) == set(packed_linears(first))


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 3, "group": 16}, {"bits": 4, "group": 8, "symmetric": False}, {"bits": 8, "group": 0},
        {"bits": 8, "group": 0, "activations": "int8"}, {"bits": 4, "group": 16, "dtype": "float16"},
    ],
)  # fmt: skip
def test_every_form_is_read_back_to_the_weights_that_were_rounded(model: Path, tmp_path: Path, settings: dict) -> None:
    result = quantize(model, tmp_path / "q", method="rtn", **settings)
    packed, dense = load_model(tmp_path / "q"), load_model(model)
    for name, linear in packed_linears(packed).items():
        weight = dense.get_parameter(f"{name}.weight")
        step = linear.scale.float().repeat_interleave(weight.shape[1] // linear.scale.shape[1], 1)
        assert ((linear.weights() - weight).abs() <= 0.5001 * step).all()
        assert linear.scale.dtype == (torch.float16 if settings.get("dtype") else torch.bfloat16)
    assert result.before.loss is None and result.after.weight_bytes < result.before.weight_bytes
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert result.after.weight_bytes == sum(tensor.numel() * tensor.dtype.itemsize for tensor in stored.values())


def test_several_shards_are_one_model(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(job, "join", lambda parts, folder: join(parts, folder, 4_000))
    quantize(model, tmp_path / "shards", method="rtn", group=16)
    monkeypatch.undo()
    quantize(model, tmp_path / "whole", method="rtn", group=16)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load_model(tmp_path / "shards")), logits(load_model(tmp_path / "whole")))


def test_the_same_again_gives_the_same_bytes(model: Path, sums: Path, made: Quantized, tmp_path: Path) -> None:
    quantize(model, tmp_path / "q", calibrate=sums, **FEW)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "q" / name).read_bytes() == (made.folder / name).read_bytes()


def test_texts_calibrate_as_well_and_are_never_those_measured(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"line {n} of some text\n" for n in range(400)))
    settings = quantize_config({"calibrate": str(tmp_path / "text.txt"), **FEW})
    text = read_calibration(settings, Tokenizer.load(model), 512, None)
    assert text.form == "text" and text.tokens >= 4 * 64
    rows = [{tuple(row.tolist()) for b in part for row in b.tokens_BT} for part in (text.calibrating, text.measured)]
    assert rows[0] and rows[1] and not rows[0] & rows[1]
    result = quantize(model, tmp_path / "q", calibrate=tmp_path / "text.txt", **FEW)
    assert result.after.bits_per_byte is not None and result.labels == text.labels


def test_the_report_stands_in_the_folder(made: Quantized) -> None:
    report = json.loads((made.folder / "compression.json").read_text())
    assert report == json.loads(json.dumps(made.report()))
    assert report["after"]["weight_bytes"] < 0.7 * report["before"]["weight_bytes"]
    assert report["settings"]["bits"] == 4 and len(report["matrices"]) == 14
    assert report["before"]["bits_per_byte"] > 0 and report["after"]["bits_per_byte"] > 0
    shown = str(made)
    for side in ("before", "after"):
        assert report[side]["decoding"]["tokens_per_second"] > 0
    assert "tokens/s" in shown and "bits per byte" in shown and "rounded to nearest" in shown
    assert f"shoestring chat {made.folder}" in shown


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({}, ConfigError, "gptq needs text to calibrate with"),
        ({"calibrate": "sums", "group": 32}, ConfigError, "groups of 32 do not divide the 48 inputs.*16, 8 would"),
        ({"calibrate": "sums", "bits": 5}, ConfigError, "bits: expected"),
        ({"method": "rtn", "activations": "int8"}, ConfigError, "activations int8 goes with bits 8"),
        ({"calibrate": "empty.txt", "group": 16}, DataError, "empty.txt"),
        ({"calibrate": "short.txt", "group": 16}, DataError, "too few to calibrate with"),
        ({"calibrate": "nowhere.txt", "group": 16}, DataError, "nowhere.txt"),
        ({"calibrate": "sums", "group": 16, "damping": 0.0}, ConfigError, "damping"),
        ({"method": "awq"}, ConfigError, "awq needs text to calibrate with"),
        ({"method": "rtn", "steps": 5}, ConfigError, "steps are of method learned"),
        ({"calibrate": "sums", "group": 16, "memory": "20MB"}, BudgetError, "too little to quantize.*MB would do"),
        ({"calibrate": "sums", "group": 16, "memory": "much"}, ConfigError, "not a size in bytes"),
    ],
)
def test_settings_and_text_that_cannot_do_are_told_and_nothing_is_left(
    model: Path, sums: Path, tmp_path: Path, monkeypatch, settings: dict, error: type[ShoestringError], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a few words")
    if settings.get("calibrate") == "sums":
        settings = {**settings, "calibrate": str(sums)}
    with pytest.raises(error, match=f"(?s){said}"):
        quantize(model, tmp_path / "out" / "q", **settings)
    assert not (tmp_path / "out").exists() or kept(tmp_path / "out" / "q") == []


@pytest.mark.parametrize(
    "name", ["embedding.weight", "blocks.1.feed_forward.down.weight", "blocks.0.attention_norm.weight"]
)
def test_nan_in_the_weights_is_told_by_the_tensors_name(model: Path, sums: Path, tmp_path: Path, name: str) -> None:
    decoder = load_model(model)
    with torch.no_grad():
        decoder.get_parameter(name).view(-1)[3] = float("nan")
    save_model(decoder, tmp_path / "broken", Tokenizer.load(model))
    tensor = {"embedding": "embed_tokens", "blocks.1": "layers.1.mlp.down_proj", "blocks.0": "layers.0.input_layernorm"}
    with pytest.raises(ModelFileError, match=next(tensor[key] for key in tensor if name.startswith(key))) as caught:
        quantize(tmp_path / "broken", tmp_path / "q", calibrate=sums, **FEW)
    assert "NaN or infinity" in str(caught.value) and not (tmp_path / "q").exists()


def test_what_cannot_be_quantized_is_refused(model: Path, made: Quantized, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists and is not empty"):
        quantize(model, made.folder, method="rtn", group=16)
    with pytest.raises(ModelFileError, match="the weights are quantized"):
        quantize(made.folder, tmp_path / "q", method="rtn", group=16)
    decoder = load_model(model)
    attach(decoder, LoRAConfig(rank=2))
    save_adapter(decoder, tmp_path / "adapter", model)
    with pytest.raises(ConfigError, match="(?s)is an adapter.*shoestring merge"):
        quantize(tmp_path / "adapter", tmp_path / "q", method="rtn", group=16)
    other = {**tiny.SHAPE, "vocabulary": 64, "feed_forward": {"kind": "gelu", "width": 48}}
    save_model(build(ModelConfig.model_validate(other), seed=0), tmp_path / "gelu")
    with pytest.raises(ModelFileError, match="SwiGLU"):
        quantize(tmp_path / "gelu", tmp_path / "q", method="rtn", group=16)
    assert not (tmp_path / "q").exists()


def test_a_quantized_folder_is_read_within_a_memory_and_not_quantized_on_the_way(made: Quantized) -> None:
    within = load(made.folder, memory="8GB").decoder
    torch.testing.assert_close(logits(within), logits(load_model(made.folder)), rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelFileError, match="(?s)the weights are quantized.*dense model"):
        quantize(made.folder, made.folder.parent / "again", method="rtn", group=16)
    with pytest.raises(ConfigError, match="quantized already"):
        load_model(made.folder, quantized=Int4Config())


def test_the_verb_makes_a_folder_that_generates_and_does_not_write_it_twice(
    model: Path, sums: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--group", "16", "--rows", "2", "--context", "64", "--out", "q"]
    assert main(["quantize", str(model), "--calibrate", str(sums), *flags, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["folder"] == "q" and shown["after"]["perplexity"] > 1
    assert main(["generate", "q", "--prompt", "1+1", "--max-tokens", "3"]) == 0
    assert main(["perplexity", "q", "--data", str(sums), "--examples", "4", "--context", "128"]) == 0
    capsys.readouterr()
    assert main(["model", "show", "q"]) == 0
    assert "quantize to 4 bits in groups of 16, gptq: " in capsys.readouterr().out
    assert main(["model", "show", "q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compression"]["after"] == shown["after"]
    (tmp_path / "q" / "compression.json").write_text("{}")
    assert main(["model", "show", "q"]) == 2 and "compression.json" in capsys.readouterr().err
    assert main(["quantize", str(model), "--method", "rtn", *flags]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["quantize", str(model), "--out", "other"]) == 2
    assert "gptq needs text" in capsys.readouterr().err and not (tmp_path / "other").exists()
