"""onnxruntime is the judge: the graph computes what our decoder does, at once and through its cache."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import numpy_helper

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, ModelFileError, RunError
from shoestring.export.job import export, export_onnx
from shoestring.export.onnx import graph as graphs
from shoestring.export.onnx.folder import NAMES
from shoestring.export.onnx.in_onnxruntime import Session, greedy
from shoestring.generate.language_model import LanguageModel
from shoestring.models.builder import build
from shoestring.models.families.registry import read_config
from shoestring.models.folder import load_model, save_model
from shoestring.models.get import get
from shoestring.models.weight_files import WeightFiles
from tests.export.folders import saved, special_ids, tokenizer_of
from tests.export.test_export_refusals import GQA, MEMORY, MOE, MTLA, config
from tests.models.gguf.gguf_files import vocabulary

IDS = torch.randint(0, 300, (30,), generator=torch.Generator().manual_seed(1)).tolist()
LOW_RANK = {"kind": "low_rank", "rank": 4}
KINDS: list[dict[str, Any]] = [
    {"attention": {**GQA, "window": 7}},
    {"block": "reversible"},
    {"sharing": {"unique_layers": 1}},
    {"linear": LOW_RANK, "attention": {**GQA, "qkv_bias": True}},
    {"logit_softcap": 2.0},
    {"position": {"kind": "learned"}},
    {"position": {"kind": "rope_learned"}},
    {"position": {"kind": "none"}},
    {"position": {"scaling": {"kind": "yarn", "factor": 4, "original_context": 16, "beta_fast": 16}}},
    {"feed_forward": {"kind": "relu2", "width": 48}},
    {"feed_forward": {"kind": "gelu", "width": 48, "tanh": True, "bias": True}},
    {"attention": {**GQA, "qk_norm": True, "qkv_bias": True, "output_bias": True}},
    {"block": "reversible", "sharing": {"unique_layers": 1}, "linear": LOW_RANK},
]


def model(folder: Path, **changes: Any) -> Path:
    """A folder of ours with random weights that matter, norms and biases drawn too."""
    decoder = build(config(**changes), seed=1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2 + float("norm" in name))
            else:
                parameter.mul_(6)
    save_model(decoder, folder, tokenizer_of())
    return folder


def graph_file(folder: Path, kind: str = "fp32") -> Path:
    return folder / "onnx" / f"{NAMES[kind]}.onnx"


def ours(folder: Path, ids: list[int]) -> np.ndarray:
    decoder = load_model(folder)
    with torch.no_grad():
        return decoder.head(decoder(torch.tensor([ids]))[0])[0].numpy()


@pytest.mark.parametrize(("arch", "pre"), [("llama", "llama-bpe"), ("qwen2", "qwen2"), ("qwen3", "gpt-2")])
def test_logits_and_greedy_tokens_are_those_of_transformers(arch: str, pre: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", arch, pre, tie_word_embeddings=arch == "qwen2")
    done = export_onnx(folder, tmp_path / "out")
    assert [sentence.split()[1] for sentence in done.checked] == ["onnxruntime", "onnxruntime-genai"]
    assert done.checked[1].endswith("greedy tokens, token ids") and done.unchecked == []
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    session = Session(graph_file(tmp_path / "out"), read_config(folder))
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(session.run(IDS), wanted, rtol=0, atol=1e-3)
    session.forget()
    through = np.concatenate([session.run(IDS[:9]), session.run(IDS[9:10]), session.run(IDS[10:])])
    np.testing.assert_allclose(through, wanted, rtol=0, atol=1e-3)
    going_on = IDS[:8]
    with torch.no_grad():
        for _ in range(64):
            going_on.append(int(theirs(torch.tensor([going_on])).logits[0, -1].argmax()))
    assert greedy(session, IDS[:8], 64) == going_on[8:]


@pytest.mark.long
def test_smollm2_says_in_onnxruntime_what_it_says_here(tmp_path: Path) -> None:
    folder = get("smollm2-135m")
    export_onnx(folder, tmp_path / "out")
    session = Session(graph_file(tmp_path / "out"), read_config(folder))
    language = LanguageModel.load(folder)
    language.stop_tokens = frozenset()
    for question in ("What is the capital of France?", "Write a poem about rain.", "def add(a, b):"):
        talk = [{"role": "user", "content": question}]
        prompt = language.tokenizer.encode(language.tokenizer.render_chat(talk), specials=True)
        wanted = ours(folder, prompt)
        session.forget()
        assert np.abs(session.run(prompt) - wanted).max() < 1e-3 * (wanted.max() - wanted.min())
        told = language.complete_ids([prompt], temperature=0, max_tokens=64)[0].tokens
        session.forget()
        assert greedy(session, prompt, 64) == told and len(told) == 64


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_other_kinds_are_written_where_a_graph_can_say_them(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = model(tmp_path / "model", **changes)
    export_onnx(folder, tmp_path / "out")
    session = Session(graph_file(tmp_path / "out"), read_config(folder))
    wanted = ours(folder, IDS)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] in ("llama", "qwen2", "qwen3") and written["head_dim"] == 16
    assert wanted.std() > 0.1
    np.testing.assert_allclose(session.run(IDS), wanted, rtol=0, atol=1e-3)
    session.forget()
    through = np.concatenate([session.run(IDS[:9]), *(session.run([i]) for i in IDS[9:])])
    np.testing.assert_allclose(through, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention": MTLA}, "temporal latent attention (mtla)"),
        ({"memory": MEMORY}, "a memory bank"),
        ({"input_adapter": {"external_width": 6, "width": 4}}, "external vectors (input_adapter)"),
        ({"value_residual": True}, "a value residual"),
        ({"feed_forward": MOE}, "experts"),
    ],
)
def test_what_it_cannot_say_is_refused_by_name(
    changes: dict[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(build(config(**changes), seed=1), tmp_path / "model", tokenizer_of())
    assert main(["export", str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert f"this model has {named}, which is not written as an ONNX graph" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_rows_of_a_batch_may_begin_with_padding(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    export_onnx(folder, tmp_path / "out")
    session = onnxruntime.InferenceSession(str(graph_file(tmp_path / "out")), providers=["CPUExecutionProvider"])
    short, long = IDS[:5], IDS[5:14]
    feeds: dict[str, Any] = {
        "input_ids": np.array([[0] * 4 + short, long]), "attention_mask": np.array([[0] * 4 + [1] * 5, [1] * 9]),
    }  # fmt: skip
    shape = read_config(folder).attention
    past = np.zeros((2, shape.kv_heads, 0, shape.head_width), np.float32)
    feeds |= {f"past_key_values.{layer}.{part}": past for layer in range(2) for part in ("key", "value")}
    (logits,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(logits[0, 4:], ours(folder, short), rtol=0, atol=1e-3)
    np.testing.assert_allclose(logits[1], ours(folder, long), rtol=0, atol=1e-3)


def stored(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def decoded(held: dict[str, np.ndarray], name: str, width: int) -> np.ndarray:
    """What the codes of a matrix stand for, [out, in], as the operators' documentation says."""
    bits = 4 if f"{name}.int4" in held else 8
    codes, scales = held[f"{name}.int{bits}"], held[f"{name}.scale"]
    if codes.ndim == 2:
        about = codes.astype(np.float32) - 128
        return about * scales[:, None] if name == "embedding.weight" else (about * scales).T
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], 32)
    values = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(*codes.shape[:2], 1)
    return values.reshape(len(values), -1)[:, :width]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_matrices_of_few_bits_are_near_and_the_graph_multiplies_what_they_stand_for(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 72, "head_dim": 16, "intermediate_size": 90}  # which blocks of 32 do not divide
    folder = saved(tmp_path / "model", tie_word_embeddings=tied, initializer_range=0.15, **sizes)
    done = export_onnx(folder, tmp_path / "out", kind)
    assert "the likeliest token is the model's for" in done.checked[0]
    held, decoder = stored(graph_file(tmp_path / "out", kind)), load_model(folder)
    with WeightFiles(folder) as files:
        matrices = [name for name, place in files.places.items() if len(place.info.shape) == 2]
    assert ("head.weight" in matrices) is not tied
    with torch.no_grad():
        for name in matrices:
            parameter = decoder.get_parameter(name)
            values = decoded(held, name, parameter.shape[1])
            lost = np.linalg.norm(values - parameter.numpy()) / np.linalg.norm(parameter.numpy())
            assert lost < (0.12 if f"{name}.int4" in held else 0.015), name
            if kind == "int8":
                assert np.abs(held[f"{name}.int8"].astype(int) - 128).max() * 255 * 2 < 2**15  # two products of bytes
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        wanted = decoder.head(decoder(torch.tensor([IDS]))[0])[0].numpy()
    found = Session(graph_file(tmp_path / "out", kind), read_config(folder)).run(IDS)
    off = np.abs(found - wanted).max() / (wanted.max() - wanted.min())
    assert off < 0.05, off  # what goes into a product is rounded to 8 bits
    assert sum(name.endswith(("int4", "int8")) for name in held) == len(matrices)  # a tied head is not there twice
    assert done.bytes < sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_the_names_are_those_that_transformers_js_and_genai_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "qwen3")
    export(folder, tmp_path / "out", "onnx", "int4")
    proto = onnx.load(graph_file(tmp_path / "out", "int4"), load_external_data=False)
    caches = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in caches)]
    assert [value.name for value in proto.graph.input] == names
    assert [value.name for value in proto.graph.output] == ["logits", *(f"present.{name}" for name in caches)]
    onnx.checker.check_model(str(graph_file(tmp_path / "out", "int4")))
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    ids = special_ids()
    assert genai["eos_token_id"] == [ids["eos_token_id"]] and genai["bos_token_id"] == ids["bos_token_id"]
    assert (genai["type"], genai["vocab_size"], genai["context_length"]) == ("qwen3", len(vocabulary()[0]), 128)
    decoder = genai["decoder"]
    assert (tmp_path / "out" / decoder["filename"]).is_file() and decoder["head_size"] == 32
    assert decoder["inputs"]["past_key_names"] % 1 in names
    config_json = json.loads((tmp_path / "out" / "config.json").read_text())
    where = {"dtype": "q4", "use_external_data_format": {"model_q4.onnx": 1}}
    assert config_json["transformers.js_config"] == where
    assert config_json["model_type"] == "qwen3"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "genai_config.json", "generation_config.json", "onnx", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out/onnx").iterdir()) == ["model_q4.onnx", "model_q4.onnx_data"]


def test_a_graph_that_computes_something_else_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoestring.export.onnx import decoder

    monkeypatch.setattr(decoder._Builder, "turn", lambda self, x, shared: x)  # without rotary positions
    with pytest.raises(ModelFileError, match="the graph that was written gives other logits than the model"):
        export_onnx(saved(tmp_path / "model"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_fills_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: graphs.Graph, file: Any) -> None:
        file.write(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(graphs.Graph, "write_weights", full)
    with pytest.raises(RunError, match="the disk is full"):
        export_onnx(saved(tmp_path / "model"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_type_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no type 'q8_0' of onnx to export to\n  types: fp32, int8, int4"):
        export("nowhere", tmp_path / "out", "onnx", "q8_0")
    with pytest.raises(ConfigError, match="there is no type 'int4' of gguf"):
        export("nowhere", tmp_path / "out.gguf", "gguf", "int4")

