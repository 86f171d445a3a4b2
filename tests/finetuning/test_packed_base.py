"""Fine-tuning on a folder whose weights are in few bits: whole runs, in memory and streamed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shoestring.cli.main import main
from shoestring.compression.quantize.job import quantize
from shoestring.core.errors import ConfigError
from shoestring.finetuning.job import finetune
from shoestring.generate.language_model import LanguageModel
from shoestring.models.folder import load_model, save_model
from shoestring.models.packed_files import packed_linears
from shoestring.models.peft_config import read_adapter_config
from shoestring.models.peft_folder import load_adapted
from tests.finetuning.tiny import SHORT, flags
from tests.offload.packed_folders import dense_of

FORMS = {
    "four bits": {"bits": 4, "group": 8},
    "zero points": {"bits": 4, "group": 16, "symmetric": False},
    "some in 8 bits": {"bits": 4, "group": 8, "wide": ("value", "down")},
    "activations": {"bits": 8, "group": 0, "activations": "int8"},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def quantized(base: Path, folder: Path, form: str) -> Path:
    quantize(base, folder, method="rtn", **FORMS[form])
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "latest" / "adapter_model.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_it_learns_in_memory_and_streamed_to_the_same_adapter(
    form: str, base: Path, examples: Path, tmp_path: Path
) -> None:
    folder = quantized(base, tmp_path / "q", form)
    before = (folder / "model.safetensors").read_bytes()
    runs = []
    for name, more in (("resident", {}), ("streamed", {"budget.engine": "streamed"})):
        result = finetune(folder, examples, overrides={**SHORT, "out": str(tmp_path / name), **more})
        assert result.steps == 6 and result.loss_after < result.loss_before
        assert all(answer.after is not None for answer in result.answers)
        runs.append(weights(tmp_path / name))
    assert runs[0].keys() == runs[1].keys()
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=1e-3, atol=1e-5)
    assert (folder / "model.safetensors").read_bytes() == before
    assert read_adapter_config(tmp_path / "resident" / "latest").base == str(folder)
    assert isinstance(LanguageModel.load(tmp_path / "streamed").chat("1+1?", max_tokens=4), str)


def test_peft_computes_the_same_beside_the_dense_weights(base: Path, examples: Path, tmp_path: Path) -> None:
    folder = quantized(base, tmp_path / "q", "four bits")
    finetune(folder, examples, overrides={**SHORT, "out": str(tmp_path / "run")})
    save_model(dense_of(folder, torch.float32), tmp_path / "dense")
    tokens = torch.arange(20).view(2, 10)
    judge = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), tmp_path / "run" / "latest"
    )
    with torch.no_grad():
        expected = judge(tokens).logits
        decoder, _ = load_adapted(tmp_path / "run" / "latest")
        assert packed_linears(decoder)
        asked = LanguageModel.load(tmp_path / "run").decoder
        for ours in (decoder, asked):
            torch.testing.assert_close(ours.head(ours(tokens)[0]), expected, rtol=1e-4, atol=1e-5)
        plain = load_model(folder)
        assert (plain.head(plain(tokens)[0]) - expected).abs().max() > 1e-3


def test_with_rounded_inputs_the_adapter_is_asked_as_it_was_trained(
    base: Path, examples: Path, tmp_path: Path
) -> None:
    folder = quantized(base, tmp_path / "q", "activations")
    finetune(folder, examples, overrides={**SHORT, "out": str(tmp_path / "run")})
    trained, _ = load_adapted(tmp_path / "run" / "latest")
    asked, tokens = LanguageModel.load(tmp_path / "run").decoder, torch.arange(20).view(2, 10)
    with torch.no_grad():
        ours, theirs = (one.head(one(tokens)[0]) for one in (asked, trained))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_budget_is_kept_and_told(
    base: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = quantized(base, tmp_path / "q", "four bits")
    settings = {**SHORT, "out": tmp_path / "run", "budget.engine": "streamed", "budget.memory": "4GB"}
    main(["finetune", str(folder), "--data", str(examples), *flags(settings), "--json"])
    out, told = capsys.readouterr()
    assert json.loads(out)["steps"] == 6 and "2 layers of 2 in few bits" in told


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapter.method": "full"}, "such are not trained: an adapter beside them is"),
        ({"adapter.method": "qlora"}, "adapter.method qlora would round them again"),
        ({"precision.compute": "int8"}, "precision.compute int8 would round them again"),
        ({"budget.weights": "nf4"}, "budget.weights nf4 would round them again"),
    ],
)
def test_what_would_change_the_weights_is_refused(
    settings: dict, said: str, base: Path, examples: Path, tmp_path: Path
) -> None:
    folder = quantized(base, tmp_path / "q", "four bits")
    with pytest.raises(ConfigError, match=f"in few bits already.*{said}"):
        finetune(folder, examples, overrides={**SHORT, "out": str(tmp_path / "run"), **settings})
    assert not (tmp_path / "run").exists()
