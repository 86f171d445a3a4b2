"""llama.cpp itself is the judge, where a Python has llama-cpp-python: this one, or what SHOESTRING_LLAMA_CPP names."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType

from shoestring.data.tokenizer import Tokenizer
from shoestring.export.gguf import in_llama_cpp
from shoestring.export.gguf.k_blocks import quantize_k
from shoestring.export.job import export_gguf
from shoestring.generate.language_model import LanguageModel
from shoestring.models.adapters import attach
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model
from shoestring.models.get import get
from shoestring.models.gguf.convert import convert
from shoestring.models.peft_folder import merge_folder, save_adapter
from shoestring.nn.lora_config import LoRAConfig
from tests.export.folders import CUTS, saved, saved_experts, tokenizer_of
from tests.export.test_export_adapter import shaken
from tests.models.gguf.test_gguf_tokenizer import NASTY

PYTHON = in_llama_cpp.interpreter() or ""
PROMPTS = [[*range(first, first + 12)] for first in range(10, 90, 10)]
TOKENS = 32
GENTLE = {"initializer_range": 0.1}  # larger random weights make a chaos of what llama.cpp rounds on its way

_QUANTIZE_FILE = """
import ctypes, json, sys
import llama_cpp
asked = json.load(sys.stdin)
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype, settings.nthread = asked["type"], 1
assert llama_cpp.llama_model_quantize(asked["file"].encode(), asked["out"].encode(), ctypes.byref(settings)) == 0
"""
_QUANTIZE_ROWS = """
import ctypes, json, sys
import numpy as np
from llama_cpp import _ggml
asked = json.load(sys.stdin)
rows = np.load(asked["rows"])
out = np.zeros((rows.shape[0], asked["bytes"]), np.uint8)
quantize = _ggml.libggml.ggml_quantize_chunk
quantize.restype = ctypes.c_size_t
quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
assert quantize(asked["type"], rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None) == out.size
np.save(asked["out"], out)
"""


def run(script: str, **asked: object) -> None:
    done = subprocess.run([PYTHON, "-c", script], input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def greedy(file: Path, prompts: list[list[int]] = PROMPTS, **more: object) -> list[list[int]]:
    asked = {"context": 128, "texts": [], "prompts": prompts, "tokens": TOKENS, **more}
    return in_llama_cpp.ask(PYTHON, file=str(file), **asked)["greedy"]


def ours(folder: Path, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    model = LanguageModel.load(folder)
    model.stop_tokens = frozenset()
    return [done.tokens for done in model.complete_ids(prompts, temperature=0, max_tokens=TOKENS)]


def agreement(decoder: Decoder, prompts: list[list[int]], written: list[list[int]]) -> list[bool]:
    """Of every token that was written after a prompt, whether ours is the same after the same tokens."""
    return [behind == 0 for behind in shortfalls(decoder, prompts, written)]


def shortfalls(decoder: Decoder, prompts: list[list[int]], written: list[list[int]]) -> list[float]:
    """How far each token that was written after a prompt stands behind our likeliest one after the same tokens, in
    standard deviations of the logits there."""
    found: list[float] = []
    for prompt, tokens in zip(prompts, written, strict=True):
        with torch.no_grad():
            logits_TV = decoder.head(decoder(torch.tensor([prompt + tokens[:-1]]))[0])[0, len(prompt) - 1 :]
        theirs_T = logits_TV.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        found += ((logits_TV.amax(1) - theirs_T) / logits_TV.std(1)).tolist()
    return found


@pytest.mark.parametrize(("kind", "least"), [("f32", 1.0), ("f16", 0.97), ("q8_0", 0.9)])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_greedy_tokens_are_ours(arch: str, kind: str, least: float, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", arch, **GENTLE)
    done = export_gguf(folder, tmp_path / "m.gguf", kind)
    assert any(sentence.startswith("in llama.cpp") for sentence in done.checked) and not done.unchecked
    same = agreement(load_model(convert(done.file, tmp_path / "back")), PROMPTS, greedy(done.file))
    assert len(same) == len(PROMPTS) * TOKENS and sum(same) >= least * len(same)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_chosen_and_mixed_as_here(family: str, tmp_path: Path) -> None:
    folder = saved_experts(tmp_path / "model", family)
    done = export_gguf(folder, tmp_path / "m.gguf", "f32")
    assert any(sentence.startswith("in llama.cpp") for sentence in done.checked) and not done.unchecked
    assert greedy(done.file) == ours(folder)


def test_the_judge_would_see_rows_that_are_not_interleaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.export.gguf import model, tensors

    folder = saved(tmp_path / "model")
    monkeypatch.setattr(tensors, "interleaved", lambda values, head: values)
    monkeypatch.setattr(model, "check_model", lambda *_: None)
    file = export_gguf(folder, tmp_path / "m.gguf", "f32").file
    assert greedy(file) != ours(folder)


@pytest.mark.parametrize("pre", list(CUTS))
def test_token_ids_are_ours_on_nasty_texts(pre: str, tmp_path: Path) -> None:
    file = export_gguf(saved(tmp_path / "model", pre=pre), tmp_path / "m.gguf", "f32").file
    texts = [text for text in NASTY if "\0" not in text and (pre != "qwen2" or text.isascii())]
    found = in_llama_cpp.ask(PYTHON, file=str(file), context=128, texts=texts, prompts=[], tokens=0)["ids"]
    tokenizer = tokenizer_of(pre)
    for number, text in enumerate(texts):
        assert found[2 * number : 2 * number + 2] == [tokenizer.encode(text), tokenizer.encode(text, True)], repr(text)


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_blocks_of_256_are_llama_cpps_own_to_the_byte(kind: Kind, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((40, 1024)).astype(np.float32)
    rows[:8] *= np.geomspace(1e-6, 1e3, 8, dtype=np.float32)[:, None]
    rows[8:12] **= 3
    rows[12], rows[13], rows[14] = 0, -0.3, np.abs(rows[14]) + 4
    rows[15, ::97] = 50
    np.save(tmp_path / "rows.npy", rows)
    wanted = quantize_k(rows, kind)
    run(
        _QUANTIZE_ROWS, rows=str(tmp_path / "rows.npy"), out=str(tmp_path / "out.npy"), type=int(kind),
        bytes=wanted.shape[1],
    )  # fmt: skip
    np.testing.assert_array_equal(wanted, np.load(tmp_path / "out.npy"))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "q4_k_m"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_is_the_one_that_llama_cpps_quantizer_makes(kind: str, tied: bool, tmp_path: Path) -> None:
    """Formats and bytes of every tensor, of rows that blocks of 256 divide (256) and do not (96)."""
    sizes = {"hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 3, "tie_word_embeddings": tied}
    sizes["initializer_range"] = 0.02
    folder = saved(tmp_path / "model", "qwen2", **sizes)
    whole = export_gguf(folder, tmp_path / "whole.gguf", "f32").file
    file_type = LlamaFileType[f"MOSTLY_{kind.upper()}"]
    run(_QUANTIZE_FILE, file=str(whole), out=str(tmp_path / "theirs.gguf"), type=int(file_type))
    reader = gguf.GGUFReader(export_gguf(folder, tmp_path / "ours.gguf", kind).file)
    found = {tensor.name: tensor for tensor in reader.tensors}
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert found[name].tensor_type == tensor.tensor_type, name
        np.testing.assert_array_equal(found[name].data, tensor.data, err_msg=name)
    assert reader.fields["general.file_type"].contents() == file_type


def test_an_adapter_beside_its_base_says_what_the_merged_model_says(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=4, alpha=10), seed=1)
    save_adapter(shaken(decoder), tmp_path / "adapter", base)
    file = export_gguf(base, tmp_path / "base.gguf", "f32").file
    lora = export_gguf(tmp_path / "adapter", tmp_path / "lora.gguf").file
    merged = merge_folder(tmp_path / "adapter", tmp_path / "merged")
    found = greedy(file, adapter=str(lora))
    assert found == ours(merged) != ours(base)


def test_llama3_and_yarn_turn_as_here_over_a_long_text(tmp_path: Path) -> None:
    llama3 = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    prompt = torch.randint(0, 300, (90,), generator=torch.Generator().manual_seed(0)).tolist()
    for name, rope in (("llama3", llama3), ("yarn", yarn)):
        folder = saved(tmp_path / name, rope_parameters=rope)
        file = export_gguf(folder, tmp_path / f"{name}.gguf", "f32").file
        assert greedy(file, [prompt])[0] == ours(folder, [prompt])[0]


@pytest.mark.long
def test_smollm2_says_there_what_it_says_here(tmp_path: Path) -> None:
    folder = get("smollm2-135m")
    tokenizer = Tokenizer.load(folder)
    questions = ("the capital of France", "a prime number", "snow", "12 + 5", "a poem", "Python", "rain", "a good name")
    talks = [[{"role": "user", "content": f"Tell me about {question}."}] for question in questions]
    prompts = [tokenizer.encode(tokenizer.render_chat(talk), specials=True) for talk in talks]
    file = export_gguf(folder, tmp_path / "f16.gguf", "f16").file
    back = convert(file, tmp_path / "f16", dtype="float32")
    assert greedy(file, prompts) == ours(back, prompts)
    # What goes into a product is rounded to 8 bits there, as here it is not: only a near tie may fall otherwise. Which
    # ones there are, and so how many answers are the same to their end, changes with the processor.
    file = export_gguf(folder, tmp_path / "q8_0.gguf", "q8_0").file
    behind = shortfalls(load_model(convert(file, tmp_path / "q8_0")), prompts, greedy(file, prompts))
    same = sum(one == 0 for one in behind)
    assert len(behind) == 256 and same >= 0.98 * len(behind) and max(behind) < 0.1, (same, max(behind))
