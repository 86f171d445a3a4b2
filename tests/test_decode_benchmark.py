"""The benchmark of decoding: its sides, its files, and its figures."""

import json
import sys

import pytest
import torch

from benchmarks import decode, decode_worker
from benchmarks.decode import Case, Side, compared, llama_python, measure, table
from benchmarks.gguf_models import in_format, random_model
from benchmarks.random_models import SHAPES
from shoestring.kernels.blocks import BlockMatrix
from shoestring.models.gguf.load import load_gguf
from tests.models.gguf.gguf_files import quantize_model, tiny_model, write_gguf


class Fake:
    """A worker that takes so many seconds for a token."""

    seconds = {"ours": 0.01, "theirs": 0.02, "other": 0.015}

    def __init__(self, side):
        self.side, self.about, self.closed = side, {"bytes": 1000, "products": 0.001}, False

    def ask(self, prompt, tokens):
        each = self.seconds[self.side.name]
        return {"read": each * len(prompt), "written": each * (tokens - 1), "tokens": list(range(tokens))}

    def close(self):
        self.closed = True


def test_without_llama_cpp_the_benchmark_says_what_it_needs(monkeypatch):
    with pytest.raises(SystemExit, match="cannot be started"):
        llama_python("/nowhere/python")
    monkeypatch.setattr(decode, "_PROBE", "import no_such_module")
    with pytest.raises(SystemExit, match="has no llama_cpp"):
        llama_python(sys.executable)


def test_figures_are_ratios_to_the_same_file_and_to_the_best(capsys):
    sides = [Side("ours", "shoestring", "m", "file"), Side("theirs", "llama", "m"), Side("other", "llama", "n")]
    case = Case("q4_1", 100, sides)
    found = measure(case, Fake, rounds=3)
    figures = compared(case, found, bandwidth=200_000)
    assert figures == pytest.approx({
        "decode_ratio": 2, "decode_ratio_best": 1.5, "prefill_ratio": 2, "prefill_ratio_best": 1.5, "limit_share": 0.5,
        "tokens_per_second": 100,
    })  # fmt: skip
    table(case, found, bandwidth=200_000)
    assert "50%" in capsys.readouterr().out


def test_a_file_in_another_format_is_the_same_model(tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    quantize_model(model, "Q4_1")
    file = write_gguf(tmp_path / "m.gguf", model, "Q4_1")
    found, _, _ = load_gguf(in_format(file, "F32", tmp_path))
    first = found.blocks[0].attention.query.matrix.values
    assert torch.equal(first, model.model.layers[0].self_attn.q_proj.weight)
    eight, _, _ = load_gguf(in_format(file, "Q4_0", tmp_path))
    assert eight.blocks[0].attention.query.matrix.bits == 4 and eight.head.matrix.bits == 8
    assert in_format(file, "Q4_0", tmp_path).stat().st_mtime_ns  # made once


def test_random_models_are_read_and_our_side_answers(tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", (64, 2, 4, 2, 96, 512, True))
    file = random_model("tiny", "Q4_0", tmp_path)
    about, answer = decode_worker.shoestring(str(file), "file")
    lines = []
    requests = [json.dumps({"prompt": [1, 2, 3], "tokens": tokens}) for tokens in (4, 1)]
    decode_worker.serve(about, answer, requests, lines.append)
    said, four, one = map(json.loads, lines)
    assert said["products"] > 0 and len(four["tokens"]) == 4 and four["tokens"][:1] == one["tokens"]
    decoder, _, _ = load_gguf(file)
    held = decode_worker.matrices(decoder)
    assert len(held) == 2 * 7 + 1 and all(isinstance(matrix, BlockMatrix) for matrix in held)
    assert said["bytes"] == sum(matrix.held.nbytes for matrix in held)
