"""Adapters folded into bases in few bits and of factors: what is written, and what it is said to lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shoestring.cli.main import main
from shoestring.compression.calibration import read_calibration
from shoestring.compression.factorize.job import factorize
from shoestring.compression.merge.config import merge_config
from shoestring.compression.merge.fold import round_again
from shoestring.compression.merge.job import merge
from shoestring.compression.quantize.job import quantize
from shoestring.core.errors import ConfigError, DataError, ModelFileError, RunError
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.adapters import adapted_linears, attach
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.models.packed_files import packed_linears
from shoestring.models.peft_folder import load_adapted, merge_folder, save_adapter
from shoestring.nn.config import DenseConfig, FactorizedConfig
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.low_rank import LowRankLinear
from shoestring.nn.quantized.grid import fit
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss
from tests.finetuning import tiny
from tests.models.gptq_folders import make_folder

FORMS = {
    "four bits": {"bits": 4, "group": 8},
    "zero points": {"bits": 4, "group": 16, "symmetric": False},
    "activations": {"bits": 8, "group": 0, "activations": "int8"},
}
FEW: dict[str, Any] = {"rows": 4, "context": 64, "held_out": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def adapter_of(base: Path, folder: Path, modules: list[str] | None = None, **settings: Any) -> Path:
    """One that changes much."""
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=3, **settings), modules=modules)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.1, generator=random)
    save_adapter(decoder, folder, base)
    return folder


def logits(decoder: Decoder) -> torch.Tensor:
    tokens_BT = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        return decoder.head(decoder(tokens_BT)[0])


def exact_weights(adapter: Path) -> dict[str, torch.Tensor]:
    """W + s·B·A of every adapted linear, written out."""
    decoder, found = load_adapted(adapter)[0], {}
    for name, linear in adapted_linears(decoder).items():
        lora = linear.adapters["default"]
        base = linear.base.to_linear().weight if hasattr(linear.base, "to_linear") else linear.base.weight
        found[name] = (base + lora.scale * lora.lora_B @ lora.lora_A).detach()
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_base_in_few_bits_stays_of_its_grid_and_the_loss_is_what_is_said(
    model: Path, sums: Path, tmp_path: Path, form: str
) -> None:
    quantize(model, tmp_path / "q", method="rtn", **FORMS[form])
    adapter = adapter_of(tmp_path / "q", tmp_path / "adapter")
    result = merge(adapter, calibrate=sums, **FEW)
    assert result.folder == tmp_path / "adapter-merged"
    merged, exact = load_model(result.folder), exact_weights(adapter)
    linears, before = packed_linears(merged), packed_linears(load_model(tmp_path / "q"))
    assert {name: one.config for name, one in linears.items()} == {name: one.config for name, one in before.items()}
    assert {matrix.name for matrix in result.matrices} == set(exact) == set(linears)
    for matrix in result.matrices:
        weight, base = exact[matrix.name].double(), before[matrix.name].weights().double()
        off = float((linears[matrix.name].weights().double() - weight).square().sum())
        assert matrix.error == pytest.approx(off / float(weight.square().sum()), rel=1e-3)
        assert matrix.of_update == pytest.approx(off / float((weight - base).square().sum()), rel=1e-3)
        plain = fit(exact[matrix.name], linears[matrix.name].config)
        nearest = plain.values(plain.codes(exact[matrix.name])).double() - weight
        assert off <= float(nearest.square().sum()) * (1 + 1e-6)
    settings = merge_config({"calibrate": str(sums), **FEW})
    text = read_calibration(settings, Tokenizer.load(model), 512, None)
    for decoder, measured in ((load_adapted(adapter)[0], result.before), (merged, result.after)):
        with torch.no_grad():
            nats = sum(float(forward_loss(decoder, next_token, batch)[0].sum) for batch in text.measured)
        assert measured.loss == pytest.approx(nats / text.labels, rel=1e-5)
    assert result.before.loss != result.after.loss
    assert json.loads((result.folder / "compression.json").read_text())["verb"] == "merge"


@pytest.mark.parametrize("config", [{"group": 8}, {"group": 8, "symmetric": False}, {"bits": 3, "group": None}])
def test_each_group_is_on_the_nearer_of_its_old_grid_and_a_new_one(model: Path, tmp_path: Path, config: dict) -> None:
    from shoestring.nn.quantized.config import PackedConfig
    from shoestring.nn.replace import replace_linears

    decoder = load_model(model)
    replace_linears(decoder, PackedConfig(**config), lambda name, _: name.startswith("blocks."))
    attach(decoder, LoRAConfig(rank=3))
    name, linear = next(iter(adapted_linears(decoder).items()))
    base = linear.base.weights()
    same, said = round_again(linear, name)  # the update is zero: nothing may move
    assert torch.equal(same.weights(), base) and said.error == 0 == said.of_update
    with torch.no_grad():
        linear.adapters["default"].lora_B.normal_(0, 0.1)
    exact = linear.to_linear().weight
    found = round_again(linear, name)[0]
    groups = (-1, found.config.group or found.in_features)

    def errors(grid) -> torch.Tensor:
        return (grid.values(grid.codes(exact)) - exact).view(found.out_features, *groups).square().sum(-1)

    mine = (found.weights() - exact).view(found.out_features, *groups).square().sum(-1)
    old, new = errors(linear.base.grid), errors(fit(exact, found.config, torch.ones(found.in_features)))
    assert torch.equal(mine, torch.minimum(old, new)) and bool((old < new).any()) and bool((new < old).any())


def test_linears_without_an_adapter_keep_their_codes(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "q", method="rtn", group=8)
    adapter = adapter_of(tmp_path / "q", tmp_path / "adapter", ["q_proj", "down_proj"])
    result = merge(adapter, tmp_path / "m")
    assert len(result.matrices) == 4 and result.before.loss is None
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("q", "m"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        adapted = ("q_proj" in name or "down_proj" in name) and not name.endswith("shape")
        assert torch.equal(after[name], tensor) != (adapted and "packed" in name) or "scale" in name, name


def test_dense_keeps_everything_and_transformers_reads_it(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "q", method="rtn", group=8)
    adapter = adapter_of(tmp_path / "q", tmp_path / "adapter", dora=True)
    result = merge(adapter, tmp_path / "m", dense=True)
    assert not result.matrices and "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    expected = logits(load_adapted(adapter)[0])
    torch.testing.assert_close(logits(load_model(tmp_path / "m")), expected, rtol=1e-4, atol=1e-4)
    judge = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        theirs = judge(torch.arange(40).unsqueeze(0)).logits
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_base_of_other_libraries_is_rounded_again(model: Path, tmp_path: Path, method: str) -> None:
    make_folder(model, tmp_path / "q", method, group=8)
    Tokenizer.load(model).save(tmp_path / "q")
    adapter = adapter_of(tmp_path / "q", tmp_path / "adapter")
    result = merge(adapter, tmp_path / "m")
    merged, exact = packed_linears(load_model(tmp_path / "m")), exact_weights(adapter)
    assert all(matrix.error < 0.02 for matrix in result.matrices) and len(merged) == len(exact)
    for name, weight in exact.items():
        assert (merged[name].weights() - weight).norm() < 0.15 * weight.norm()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("size", [{"parameters": "0.8x"}, {"rank": 6}])
def test_factors_take_an_adapter_in_without_loss(
    model: Path, sums: Path, tmp_path: Path, size: dict[str, Any], dora: bool
) -> None:
    factorize(model, tmp_path / "thin", **size)
    adapter = adapter_of(tmp_path / "thin", tmp_path / "adapter", dora=dora)
    with pytest.raises(ModelFileError, match="factors for matrices"):
        merge_folder(adapter, tmp_path / "m")
    result = merge(adapter, tmp_path / "m", calibrate=sums, **FEW)
    decoder, before = load_model(tmp_path / "m"), load_model(tmp_path / "thin")
    torch.testing.assert_close(logits(decoder), logits(load_adapted(adapter)[0]), rtol=1e-4, atol=1e-4)
    assert result.after.loss == pytest.approx(result.before.loss, rel=1e-5) and not result.matrices
    assert isinstance(decoder.config.linear, FactorizedConfig)
    assert sum(p.numel() for p in decoder.parameters()) == decoder.config.parameter_count()
    ranks = {name: one.rank for name, one in before.named_modules() if isinstance(one, LowRankLinear)}
    for name, one in decoder.named_modules():
        if isinstance(one, LowRankLinear):
            assert one.rank == ranks[name] + 3
    merge(adapter, tmp_path / "dense", dense=True)
    assert isinstance(read_config(tmp_path / "dense").linear, DenseConfig)
    torch.testing.assert_close(logits(load_model(tmp_path / "dense")), logits(decoder), rtol=1e-4, atol=1e-4)


def test_a_factorized_model_alone_is_multiplied_out(model: Path, tmp_path: Path) -> None:
    factorize(model, tmp_path / "thin", "0.8x")
    result = merge(tmp_path / "thin")
    assert result.folder == tmp_path / "thin-merged"
    assert json.loads((result.folder / "config.json").read_text())["model_type"] == "llama"
    assert read_config(result.folder) == read_config(model)
    torch.testing.assert_close(
        logits(load_model(result.folder)), logits(load_model(tmp_path / "thin")), rtol=1e-4, atol=1e-4
    )


def test_a_dense_base_is_merged_as_before(model: Path, sums: Path, tmp_path: Path) -> None:
    adapter = adapter_of(model, tmp_path / "adapter")
    merge(adapter, tmp_path / "m")
    merge_folder(adapter, tmp_path / "plain")
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("m", "plain")]
    assert files[0] == files[1]
    measured = merge(adapter, tmp_path / "measured", calibrate=sums, **FEW)
    assert measured.after.loss == pytest.approx(measured.before.loss, rel=1e-5)


def test_the_command_says_what_is_lost(
    model: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(model, tmp_path / "q", method="rtn", group=8)
    adapter = adapter_of(tmp_path / "q", tmp_path / "adapter")
    line = ["merge", str(adapter), "--calibrate", str(sums), "--rows", "4", "--context", "64"]
    assert main([*line, "--out", str(tmp_path / "m")]) == 0
    shown = capsys.readouterr().out
    for word in ("4 bits in groups of 8", "held out  bits per byte", "of a merged matrix, squared", "--dense keeps"):
        assert word in shown
    assert main([*line, "--out", str(tmp_path / "n"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["model"] == str(tmp_path / "n") and content["before"]["bits_per_byte"] > 0
    assert main(["merge", str(adapter), "--out", str(tmp_path / "o")]) == 0
    assert "--calibrate SOURCE says what that costs" in capsys.readouterr().out


def test_what_cannot_be_is_a_sentence_and_nothing_is_left(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "here"
    place.mkdir()
    quantize(model, place / "q", method="rtn", group=8)
    adapter = adapter_of(place / "q", place / "adapter")
    (place / "short.txt").write_text("short")
    before = sorted(path.name for path in place.iterdir())
    for given, kind, said in (
        ({"rows": 4}, ConfigError, "rows is of the text to measure on"),
        ({"dtype": "int4"}, ConfigError, "dtype"),
        ({"calibrate": place / "short.txt"}, DataError, "too few to calibrate"),
        ({"out": place / "q"}, RunError, "exists already"),
    ):
        with pytest.raises(kind, match=said):
            merge(adapter, **given)
        assert sorted(path.name for path in place.iterdir()) == before
    broken = load_file(adapter / "adapter_model.safetensors")
    next(iter(broken.values()))[0, 0] = torch.nan
    save_file(broken, adapter / "adapter_model.safetensors")
    for dense in (False, True):
        with pytest.raises(ModelFileError, match="holds NaN or infinity once it is merged"):
            merge(adapter, place / "m", dense=dense)
        assert sorted(path.name for path in place.iterdir()) == before
    for whole in (model, place / "q"):
        with pytest.raises(ModelFileError, match="nothing to merge"):
            merge(whole, place / "m")
