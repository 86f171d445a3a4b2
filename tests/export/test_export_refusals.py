"""What llama.cpp does not have is refused by name, before anything is written; exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.cli.main import main
from shoestring.core.errors import ModelFileError
from shoestring.export.gguf.architecture import architecture_of
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import save_model
from tests.export.folders import tokenizer_of
from tests.models.gguf.gguf_files import vocabulary

GQA = {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_width": 16}
LATENT = {"heads": 2, "latent_rank": 8, "content_width": 8, "rotary_width": 4, "value_width": 8}
MTLA = {"kind": "mtla", **LATENT, "stride": 2}
MEMORY = {"layers": [1], "capacity": 8, "block": 4, "top_k": 2}
NORMED = {**GQA, "qk_norm": True}
YARN = {"kind": "yarn", "factor": 4, "original_context": 32}
MOE = {"kind": "moe", "width": 16, "experts": 4, "active": 2}


def config(**changes: Any) -> ModelConfig:
    values = {"vocabulary": len(vocabulary()[0]), "width": 32, "layers": 2, "context": 64, "attention": GQA}
    return ModelConfig.model_validate({**values, "feed_forward": {"width": 48}, **changes})


REFUSED = [
    ({"attention": MTLA}, "this model has temporal latent attention (mtla), and llama.cpp has no such thing"),
    ({"attention": {"kind": "mla", **LATENT}}, "latent attention (mla)"),
    ({"attention": {**GQA, "window": 16}}, "a sliding window"),
    ({"block": "reversible"}, "reversible blocks"),
    ({"memory": MEMORY}, "a memory bank"),
    ({"input_adapter": {"external_width": 6, "width": 4}}, "external vectors (input_adapter)"),
    ({"bottleneck": {"width": 4}}, "bottlenecks in its blocks"),
    ({"embedding_convolution": 2}, "a convolution over embeddings"),
    ({"value_residual": True}, "a value residual"),
    ({"logit_softcap": 5.0}, "a soft cap on logits"),
    ({"linear": {"kind": "low_rank", "rank": 2}}, "low-rank matrices"),
    ({"position": {"kind": "learned"}}, "positions of kind learned"),
    ({"position": {"kind": "rope_learned"}}, "positions of kind rope_learned"),
    ({"position": {"kind": "none"}}, "positions of kind none"),
    ({"feed_forward": {"kind": "relu2", "width": 48}}, "feed-forwards of kind relu2"),
    ({"feed_forward": {**MOE, "shared_width": 8}}, "an expert that all tokens pass through"),
    ({"feed_forward": {**MOE, "balance": "bias"}}, "experts chosen with a bias"),
    ({"block": "reversible", "memory": MEMORY, "linear": {"kind": "low_rank", "rank": 2}}, "reversible blocks, a memory"
     " bank and low-rank matrices"),
    ({"attention": {**GQA, "output_bias": True}}, "this one's biases, norms and experts together"),
    ({"attention": {**GQA, "qkv_bias": True, "output_bias": True}}, "biases on the matrices of a llama model"),
    ({"attention": {**NORMED, "qkv_bias": True, "output_bias": True}}, "biases on the matrices of a qwen3 model"),
    ({"feed_forward": {"width": 48, "bias": True}}, "biases on the matrices of a llama model"),
    ({"attention": {**GQA, "head_width": 32, "qkv_bias": True}}, "2 heads of 32 are not the width 32"),
    ({"feed_forward": {**MOE, "normalize": False}, "attention": NORMED}, "to add up to 1"),
    ({"attention": NORMED, "position": {"scaling": {"kind": "llama3", "factor": 8}}}, "alone, and this is a qwen3 one"),
    ({"position": {"scaling": {"kind": "llama3", "factor": 8, "low_frequency_factor": 2}}}, "only low_freq_factor 1"),
    ({"position": {"scaling": {**YARN, "beta_fast": 16}}}, "of YaRN's rotary scaling only factor and original context"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_no_model_of_llama_cpp_has_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelFileError) as error:
        architecture_of(config(**changes), "FOLDER")
    assert sentence in error.value.message and error.value.where == "FOLDER" and "\n" not in error.value.message


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "llama"),
        ({"attention": {**GQA, "qkv_bias": True}}, "qwen2"),
        ({"attention": NORMED}, "qwen3"),
        ({"position": {"scaling": YARN}}, "llama"),
        ({"attention": NORMED, "feed_forward": MOE}, "qwen3moe"),
        ({"feed_forward": MOE}, "llama"),
        ({"sharing": {"unique_layers": 1}}, "llama"),
    ],
)
def test_others_have_an_architecture(changes: dict[str, Any], name: str) -> None:
    assert architecture_of(config(**changes)).name == name


@pytest.mark.parametrize("changes", [{"attention": MTLA}, {"block": "reversible"}, {"memory": MEMORY}])
def test_the_command_refuses_them_in_one_sentence_and_leaves_nothing(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(build(config(**changes), seed=1), tmp_path / "model", tokenizer_of())
    assert main(["export", str(tmp_path / "model"), "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "llama.cpp has no such thing" in shown.err and shown.err.count("error:") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
