"""Factorized folders: they hold what was computed, come back as they were, train, and say what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shoestring.cli.main import main
from shoestring.compression.calibration import read_calibration
from shoestring.compression.factorize import blocks, job
from shoestring.compression.factorize.config import factorize_config
from shoestring.compression.factorize.job import factorize
from shoestring.compression.factorize.result import Factorized
from shoestring.compression.unfinished import place_of
from shoestring.core.errors import ConfigError, DataError, ModelFileError, RunError, ShoestringError
from shoestring.data.tokenizer import Tokenizer
from shoestring.finetuning.job import finetune
from shoestring.generate.language_model import LanguageModel
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.config import FactorizedConfig, LowRankConfig
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.low_rank import LowRankLinear
from shoestring.offload.model import open_streamed
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss
from tests.finetuning import tiny

FEW: dict[str, Any] = {"rows": 4, "context": 64, "held_out": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three blocks whose every matrix counts, with biases on query, key and value."""
    folder = tiny.chat_model(tmp_path_factory.mktemp("model") / "model")
    tokenizer, config = Tokenizer.load(folder), load_model(folder).config
    attention = config.attention.model_copy(update={"qkv_bias": True})
    config = config.model_copy(update={"layers": 3, "initializer_range": 0.2, "attention": attention})
    decoder, random = build(config, seed=1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2, generator=random)
    save_model(decoder, folder, tokenizer, replace=True)
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="module")
def made(model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Factorized:
    return factorize(model, tmp_path_factory.mktemp("made") / "thin", "0.75x", calibrate=sums, **FEW)


def logits(decoder: Decoder) -> torch.Tensor:
    tokens_BT = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        return decoder.head(decoder(tokens_BT)[0])


def factors(decoder: Decoder) -> dict[str, LowRankLinear]:
    return {name: module for name, module in decoder.named_modules() if isinstance(module, LowRankLinear)}


def test_the_folder_has_the_ranks_that_it_says_and_the_size_that_was_asked_for(model: Path, made: Factorized) -> None:
    config, decoder, whole = read_config(made.folder), load_model(made.folder), load_model(model)
    assert isinstance(config.linear, FactorizedConfig)
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert count == config.parameter_count() == made.parameters[1] <= 0.75 * made.parameters[0]
    assert count > 0.73 * made.parameters[0] == 0.73 * sum(p.numel() for p in whole.parameters())
    found = factors(decoder)
    assert {matrix.name: matrix.rank for matrix in made.matrices} == {name: one.rank for name, one in found.items()}
    assert len({one.rank for one in found.values()}) > 3  # each has its own
    for name, parameter in decoder.named_parameters():
        if ".first." not in name and ".second." not in name:
            assert torch.equal(parameter, whole.get_parameter(name)), name
    for name, one in found.items():
        if one.bias is not None:
            assert torch.equal(one.bias, whole.get_parameter(f"{name}.bias"))
    assert (logits(decoder) - logits(whole)).abs().max() > 1e-3


def test_it_is_saved_and_comes_back_with_the_same_logits(made: Factorized, tmp_path: Path) -> None:
    decoder = load_model(made.folder)
    save_model(decoder, tmp_path / "again")
    assert torch.equal(logits(load_model(tmp_path / "again")), logits(decoder))
    assert isinstance(LanguageModel.load(made.folder).chat("1+1?", max_tokens=4), str)
    for weights in ("int8", "bf16"):
        kept = LanguageModel.load(made.folder, weights=weights).decoder
        assert 0 < (logits(kept) - logits(decoder)).norm() < 0.1 * logits(decoder).norm()


def test_what_is_measured_is_what_the_folders_give(model: Path, sums: Path, made: Factorized) -> None:
    settings = factorize_config({"parameters": "0.75x", "calibrate": str(sums), **FEW})
    text = read_calibration(settings, Tokenizer.load(model), 512, None)
    assert text.labels == made.labels and text.tokens == made.tokens
    for folder, measured in ((model, made.before), (made.folder, made.after)):
        decoder = load_model(folder)
        with torch.no_grad():
            nats = sum(float(forward_loss(decoder, next_token, batch)[0].sum) for batch in text.measured)
        assert measured.loss == pytest.approx(nats / text.labels, rel=1e-5)
        stored = load_file(folder / "model.safetensors").values()
        assert measured.weight_bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored)


def test_errors_are_the_least_on_inputs_that_the_factors_before_give(
    model: Path, sums: Path, made: Factorized
) -> None:
    """By singular values of what a linear gives on them, and by what its factors give."""
    settings = factorize_config({"parameters": "0.75x", "calibrate": str(sums), **FEW})
    text = read_calibration(settings, Tokenizer.load(model), 512, None)
    whole, thin = load_model(model), load_model(made.folder)
    found = {matrix.name: matrix for matrix in made.matrices}
    for name in list(factors(thin))[::4]:
        linear, caught = thin.get_submodule(name), []
        handle = linear.register_forward_pre_hook(lambda _, inputs, caught=caught: caught.append(inputs[0]))
        for batch in text.calibrating:
            with torch.no_grad():
                thin(batch.tokens_BT, batch.positions_BT, batch.segments_BT)
        handle.remove()
        there = [x[batch.segments_BT >= 0] for x, batch in zip(caught, text.calibrating, strict=True)]
        x_NI, weight = torch.cat(there).double(), whole.get_parameter(f"{name}.weight").double()
        outputs = x_NI @ weight.t()
        values = torch.linalg.svdvals(outputs).square()
        best = float(values[linear.rank :].sum() / values.sum())
        off = outputs - x_NI @ linear.to_linear().weight.double().t()
        got = float(off.square().sum() / outputs.square().sum())
        assert got == pytest.approx(best, rel=1e-3, abs=1e-7) and found[name].error == pytest.approx(got, rel=1e-3)
        assert found[name].plain >= found[name].error * (1 - 1e-6)


def test_text_makes_them_nearer_than_weights_alone(made: Factorized) -> None:
    error, plain = (sum(getattr(matrix, name) for matrix in made.matrices) for name in ("error", "plain"))
    assert error < 0.9 * plain


def test_one_rank_is_the_kind_that_layers_are_streamed_of(model: Path, tmp_path: Path) -> None:
    result = factorize(model, tmp_path / "eight", rank=8)
    config = read_config(tmp_path / "eight")
    assert config.linear == LowRankConfig(rank=8) and config.parameter_count() == result.parameters[1]
    assert result.before.loss is None and {matrix.rank for matrix in result.matrices} == {8}
    decoder, streamed = load_model(tmp_path / "eight"), open_streamed(tmp_path / "eight")
    torch.testing.assert_close(logits(streamed), logits(decoder))
    streamed.close()


def test_ranks_of_their_own_are_not_streamed(made: Factorized) -> None:
    with pytest.raises(ModelFileError, match="matrices of a rank of their own in each layer cannot be streamed"):
        open_streamed(made.folder)


def test_multiplied_out_transformers_reads_it(model: Path, sums: Path, made: Factorized, tmp_path: Path) -> None:
    result = factorize(model, tmp_path / "dense", "0.75x", calibrate=sums, dense=True, **FEW)
    assert result.parameters == made.parameters and result.after.weight_bytes == result.before.weight_bytes
    assert result.after.loss == pytest.approx(made.after.loss, rel=1e-4)
    judge = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    with torch.no_grad():
        theirs = judge(torch.arange(40).unsqueeze(0)).logits
    torch.testing.assert_close(theirs, logits(load_model(tmp_path / "dense")), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs, logits(load_model(made.folder)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"adapter.method": "dora"}, {"adapter.method": "full"}])
def test_it_is_fine_tuned(made: Factorized, sums: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    out = tmp_path / "run"
    result = finetune(made.folder, sums, overrides={**tiny.SHORT, "out": str(out), **settings})
    assert result.loss_after < result.loss_before
    asked = LanguageModel.load(out).decoder
    assert (logits(asked) - logits(load_model(made.folder))).abs().max() > 1e-4


def test_half_precision_is_kept(model: Path, tmp_path: Path) -> None:
    decoder = load_model(model)
    save_model(decoder, tmp_path / "half", Tokenizer.load(model), dtypes=torch.bfloat16)
    factorize(tmp_path / "half", tmp_path / "thin", "0.8x")
    assert {tensor.dtype for tensor in load_file(tmp_path / "thin" / "model.safetensors").values()} == {torch.bfloat16}
    factorize(model, tmp_path / "asked", "0.8x", dtype="float16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "asked" / "model.safetensors").values()} == {torch.float16}


def test_stopped_it_goes_on_to_the_same_bytes(
    model: Path, sums: Path, made: Factorized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, looked, fit = [], [], blocks._factors
    for matrices in (1, len(made.matrices)):  # at once, and in the last block

        def stopping(*given: Any, matrices: int = matrices) -> Any:
            done.append(1)
            if len(done) == matrices:
                raise KeyboardInterrupt
            return fit(*given)

        done.clear()
        monkeypatch.setattr(blocks, "_factors", stopping)
        with pytest.raises(KeyboardInterrupt):
            factorize(model, tmp_path / "thin", "0.75x", calibrate=sums, **FEW)
        assert not (tmp_path / "thin").exists() and place_of(tmp_path / "thin").is_dir()
        monkeypatch.setattr(job, "look", lambda *given: looked.append(1))  # ranks are chosen: nobody looks again
    monkeypatch.setattr(blocks, "_factors", fit)
    again = factorize(model, tmp_path / "thin", "0.75x", calibrate=sums, **FEW)
    assert not looked and not place_of(tmp_path / "thin").exists()
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "thin" / file).read_bytes() == (made.folder / file).read_bytes()
    assert again.matrices == made.matrices and again.after.loss == made.after.loss


def test_the_command_says_what_it_cost(
    model: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["factorize", str(model), "--parameters", "0.8x", "--calibrate", str(sums), "--rows", "4", "--context", "64"]
    assert main([*line, "--out", str(tmp_path / "a")]) == 0
    shown, told = capsys.readouterr()
    for word in ("weights   ", "size      ", "ranks     ", "held out  bits per byte", "error     ", "shoestring merge"):
        assert word in shown
    assert "factorize 21 matrices" in told
    assert main([*line, "--out", str(tmp_path / "b"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "b" / "compression.json").read_text())
    assert content == {"folder": str(tmp_path / "b"), **kept} and kept["verb"] == "factorize"
    assert main(["model", "show", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "factorize to 0.8x parameters" in shown and "factorized linears" in shown


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give one of parameters"),
        ({"parameters": "0.5x", "rank": 4}, "give one of parameters"),
        ({"parameters": "half"}, "'half' is neither a part of the model"),
        ({"parameters": "1.2x"}, "1.2x is no part of a model"),
        ({"parameters": "0x"}, "0x is no part of a model"),
        ({"parameters": "0.05x"}, "cannot be reached: embedding, head and norms have"),
        ({"parameters": "90M"}, "no more than the 90M"),
        ({"rank": 30}, "factors of rank 30 make no matrix of this model smaller"),
        ({"parameters": "0.8x", "rows": 4}, "rows is of the text to calibrate with"),
        ({"parameters": "0.8x", "dtype": "int4"}, "dtype"),
    ],
)
def test_what_cannot_be_is_a_sentence(model: Path, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        factorize(model, tmp_path / "thin", **settings)
    assert list(tmp_path.iterdir()) == []


def test_bad_text_and_bad_models_are_a_sentence_and_nothing_is_left(
    model: Path, sums: Path, made: Factorized, tmp_path: Path
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    (place / "empty.txt").write_text("")
    (place / "short.txt").write_text("too short")
    decoder, tokenizer = load_model(model), Tokenizer.load(model)
    with torch.no_grad():
        decoder.get_parameter("blocks.1.attention.key.weight")[0, 0] = torch.nan
    save_model(decoder, place / "nan", tokenizer)
    adapted = load_model(model)
    attach(adapted, LoRAConfig(rank=2))
    save_adapter(adapted, place / "adapter", model)
    before = sorted(path.name for path in place.iterdir())
    for given, kind, said in (
        ((model, {"calibrate": place / "empty.txt"}), DataError, "empty.txt"),
        ((model, {"calibrate": place / "short.txt"}), DataError, "too few to calibrate"),
        ((model, {"calibrate": place / "none.txt"}), ShoestringError, "none.txt"),
        ((place / "nan", {}), ModelFileError, "k_proj.weight holds NaN"),
        ((place / "nan", {"calibrate": sums}), ModelFileError, "k_proj.weight holds NaN"),
        ((place / "adapter", {}), ConfigError, "is an adapter"),
        ((made.folder, {}), ModelFileError, "are factors already"),
    ):
        with pytest.raises(kind, match=said):
            factorize(given[0], place / "thin", "0.8x", **given[1])
        assert sorted(path.name for path in place.iterdir()) == before
    with pytest.raises(RunError, match="exists"):
        factorize(model, model, "0.8x")
