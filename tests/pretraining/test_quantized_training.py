"""Quantization-aware runs: the command that they end with writes the model that was trained and measured."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError
from shoestring.data.tokenizer import Tokenizer
from shoestring.finetuning.config import finetune_recipe
from shoestring.finetuning.job import finetune
from shoestring.models.decoder import Decoder
from shoestring.models.fake_quantization import fake_quantize_blocks
from shoestring.models.folder import load_model, save_model, stored_dtypes
from shoestring.models.packed_files import packed_linears
from shoestring.models.peft_folder import load_adapted
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.fake import FakeQuantized
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from tests.finetuning import tiny as examples_of
from tests.train import tiny

GRID = PackedConfig(bits=4, group=16)


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return decoder.head(decoder.eval()(torch.arange(40).view(2, 20))[0])


def codes(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Of each linear that is trained with rounding, as it is rounded now."""
    found = {}
    for name, module in decoder.named_modules():
        if isinstance(module, FakeQuantized):
            module(torch.zeros(1, module.in_features))
            assert module.kept.codes is not None
            found[name] = module.kept.codes.codes_OI
    return found


def is_what_was_trained(folder: Path, trained: Decoder) -> None:
    quantized = load_model(folder)
    linears, expected = packed_linears(quantized), codes(trained)
    assert len(linears) == len(expected) == 14
    for name, linear in linears.items():
        assert torch.equal(linear.codes(), expected[name]), name
    assert_close(logits(quantized), logits(trained), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.corpus(tmp_path_factory.mktemp("text") / "text")


def test_what_pretraining_measures_is_the_folder_that_its_last_line_writes(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.recipe_text(text, extra="quantize: {bits: 4, group: 16}"))
    result = pretrain(recipe, out=str(tmp_path / "run"), train__steps=3)
    assert "rounded to 4 bits in groups of 16" in capsys.readouterr().err
    assert result.quantize is not None and result.quantize in str(result)
    assert main(shlex.split(result.quantize)[1:]) == 0
    trained = load_model(result.model)
    plain = logits(trained)
    fake_quantize_blocks(trained, GRID)
    is_what_was_trained(tmp_path / "run" / "quantized", trained)
    assert not torch.allclose(plain, logits(trained), atol=1e-4)  # the checkpoint itself is not rounded


def test_a_run_that_goes_on_ends_with_the_same_weights(text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.recipe_text(text, steps=6, extra="quantize: {bits: 3, group: 16}"))
    whole = pretrain(recipe, out=str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "step-000006")  # as a kill would leave it
    resumed = pretrain(resume=tmp_path / "run")
    one, other = (load_file(each.checkpoint / "model.safetensors") for each in (whole, resumed))
    assert resumed.steps == 6 and all(torch.equal(one[name], other[name]) for name in one)
    assert resumed.quantize is not None and "--bits 3" in resumed.quantize


@pytest.mark.parametrize("method", ["full", "lora"])
def test_finetuning_ends_with_commands_that_write_what_was_trained(method: str, tmp_path: Path) -> None:
    base = examples_of.chat_model(tmp_path / "base")
    if method == "lora":
        save_model(load_model(base), base, Tokenizer.load(base), replace=True, dtypes=torch.bfloat16)
    data = examples_of.sums(tmp_path / "sums.jsonl")
    changed = {"quantize": {"bits": 4, "group": 16}, "adapter.method": method, "precision.compute": "float32"}
    result = finetune(base, data, overrides={**examples_of.SHORT, **changed, "out": str(tmp_path / "run")})
    assert result.loss_before is not None and result.loss_after is not None and result.loss_after < result.loss_before
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in str(result).splitlines() if line.strip()}
    if method == "lora":
        assert main(shlex.split(lines["merge"])[1:]) == 0
        assert set(stored_dtypes(tmp_path / "run" / "merged").values()) == {torch.float32}
        trained, _ = load_adapted(result.best)
    else:
        trained = load_model(result.best)
    assert ("--dtype bfloat16" in lines["quantize"]) == (method == "lora")
    assert main(shlex.split(lines["quantize"])[1:]) == 0
    fake_quantize_blocks(trained, GRID)
    quantized, expected = load_model(tmp_path / "run" / "quantized"), codes(trained)
    for name, linear in packed_linears(quantized).items():
        assert torch.equal(linear.codes(), expected[name]), name


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"quantize.bits": 5}, "one of: 3, 4, 8"),
        ({"quantize.activations": "int8"}, "bits 8, group 0"),
        ({"precision.saved": "bfloat16"}, "codes that were not trained"),
        ({"precision.compute": "int8"}, "rounds them otherwise"),
        ({"precision.fp8": True}, "use one of them"),
        ({"precision.compile": True}, "use one of them"),
        ({"budget.memory": "2GB"}, "codes are not counted"),
        ({"budget.engine": "streamed"}, "streamed layers"),
        ({"adapter.method": "qlora"}, "method lora"),
        ({"adapter.method": "dora"}, "lengths of rows"),
        ({"adapter.dropout": 0.1}, "adapter.dropout"),
        ({"budget.weights": "int4"}, "streamed layers"),
        ({"evaluate.suite": "core"}, "not rounded"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it_is_refused_by_name(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        finetune_recipe("smollm2-135m", "rows.jsonl", {"quantize.group": 16, **settings})


def test_growth_and_models_that_are_not_quantized_are_refused(text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    stages = "train.stages", [{"until": 0.5, "layers": 1}]
    recipe.write_text(tiny.recipe_text(text, extra="quantize: true"))
    with pytest.raises(ConfigError, match="quantize makes blocks that cannot be copied"):
        load_pretrain_recipe(recipe, dict([stages]))
    with pytest.raises(ConfigError, match="groups of 32 do not divide the 48 inputs"):
        pretrain(recipe, out=str(tmp_path / "run"))
    recipe.write_text(tiny.recipe_text(text, extra="quantize: {group: 16}").replace("kind: swiglu", "kind: gelu"))
    with pytest.raises(ConfigError, match="can be quantized afterwards"):
        pretrain(recipe, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
