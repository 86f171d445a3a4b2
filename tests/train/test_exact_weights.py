"""Whole models leave in the number format in which they came, and their runs go on from the exact weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import shoestring
from shoestring.core.errors import ConfigError
from shoestring.data.tokenizer import Tokenizer
from shoestring.finetuning.config import finetune_recipe
from shoestring.models.builder import build
from shoestring.models.folder import load_model, save_model
from shoestring.pretraining.job import pretrain
from shoestring.train.exact_weights import EXACT, load_trained, saved_dtypes, write_trained
from shoestring.train.precision_config import PrecisionConfig
from tests.finetuning.tiny import SHORT, chat_model, sums
from tests.train import tiny


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bfloat16 that chats."""
    folder = tmp_path_factory.mktemp("half")
    made = chat_model(folder / "float")
    save_model(load_model(made).bfloat16(), folder / "model", Tokenizer.load(made))
    return folder / "model"


def dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


def test_what_is_rounded_when_it_is_saved_is_read_back_exactly(half: Path, tmp_path: Path) -> None:
    decoder = build(load_model(half).config, seed=5)
    assert saved_dtypes(PrecisionConfig(), None) is None
    assert saved_dtypes(PrecisionConfig(saved="float16"), half) == torch.float16
    write_trained(decoder, tmp_path, None, None, saved_dtypes(PrecisionConfig(), half))
    assert dtypes(tmp_path) == {torch.bfloat16}
    rounded, exact = load_model(tmp_path), load_trained(tmp_path, "cpu")
    for name, parameter in decoder.named_parameters():
        assert torch.equal(rounded.get_parameter(name), parameter.bfloat16().float())
        assert torch.equal(exact.get_parameter(name), parameter)


def test_a_model_that_is_not_rounded_has_nothing_beside_it(half: Path, tmp_path: Path) -> None:
    decoder = load_model(half)
    (tmp_path / "a").mkdir()
    write_trained(decoder, tmp_path / "a", None, None, None)
    assert dtypes(tmp_path / "a") == {torch.float32} and not (tmp_path / "a" / EXACT).exists()


def test_full_fine_tuning_leaves_bfloat16_and_goes_on_with_the_same_bits(half: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "adapter.method": "full", "train.steps": 4, "train.answers": 0}
    examples = sums(tmp_path / "sums.jsonl")
    whole = shoestring.finetune(half, examples, overrides={**settings, "out": str(tmp_path / "whole"), "train.keep": 9})
    assert dtypes(whole.checkpoint) == {torch.bfloat16}
    assert json.loads((whole.checkpoint / "config.json").read_text())["dtype"] == "bfloat16"
    for folder in ("step-000004", "best", "latest"):  # as if it had been killed after its second step
        path = tmp_path / "whole" / folder
        path.rename(tmp_path / folder) if not path.is_symlink() else path.unlink()
    shoestring.finetune(resume=tmp_path / "whole")
    for file in ("model.safetensors", str(EXACT)):
        expected, found = (load_file(place / "step-000004" / file) for place in (tmp_path, tmp_path / "whole"))
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    exact = load_file(tmp_path / "step-000004" / EXACT)
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in exact.values())


def test_pretraining_that_begins_from_a_model_keeps_its_number_format(half: Path, tmp_path: Path) -> None:
    text = tiny.recipe_text(tiny.corpus(tmp_path / "text"))
    (tmp_path / "recipe.yaml").write_text(text)
    asked = pretrain(tmp_path / "recipe.yaml", out=str(tmp_path / "asked"), train__steps=1, precision__saved="bfloat16")
    assert dtypes(asked.checkpoint) == {torch.bfloat16}
    (tmp_path / "on.yaml").write_text(_with_model(text, f"init: {asked.checkpoint}"))
    on = pretrain(tmp_path / "on.yaml", out=str(tmp_path / "on"), train__steps=1)
    assert dtypes(on.checkpoint) == {torch.bfloat16}


def _with_model(text: str, section: str) -> str:
    """The recipe with another section `model`."""
    lines, found, inside = text.splitlines(), [], False
    for line in lines:
        inside = line.startswith("model:") or (inside and line.startswith(" "))
        if line.startswith("model:"):
            found += ["model:", f"  {section}"]
        elif not inside:
            found.append(line)
    return "\n".join(found) + "\n"


def test_an_adapter_has_no_number_format_to_choose() -> None:
    with pytest.raises(ConfigError, match="precision.saved is for whole models"):
        finetune_recipe("m", "d", {"precision.saved": "bfloat16"})
