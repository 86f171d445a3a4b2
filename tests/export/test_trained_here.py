"""The whole way: trained here, fine-tuned with LoRA, merged, exported; other tools go on as we do."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.export.onnx.folder import NAMES
from shoestring.export.onnx.in_onnxruntime import Session
from shoestring.export.onnx.in_onnxruntime import greedy as in_onnxruntime
from shoestring.models.families.registry import read_config
from tests.export.test_export_in_llama_cpp import PROMPTS, PYTHON, TOKENS, ours
from tests.export.test_export_in_llama_cpp import greedy as in_llama_cpp
from tests.finetuning.tiny import sums


@pytest.mark.long
def test_a_model_that_was_trained_and_fine_tuned_here_says_elsewhere_what_it_says_here(tmp_path: Path) -> None:
    def run(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    texts, base, tuned, merged = (tmp_path / name for name in ("texts", "base", "tuned", "merged"))
    texts.mkdir()
    for number in range(30):
        lines = "".join(f"def f{number}_{i}(x):\n    return {i * number} + x\n\n\n" for i in range(40))
        (texts / f"{number:02d}.py").write_text(lines)
    faster = ("--optimizer.learning_rate", 1e-2)
    run("pretrain", "elite-112m-smoke", "--data.source", texts, "--train.steps", 60, *faster, "--out", base)
    examples = ("--data", sums(tmp_path / "sums.jsonl"), "--steps", 30, "--train.answers", 1)
    run("finetune", base, *examples, *faster, "--out", tuned)
    run("merge", tuned, "--out", merged)
    run("export", merged, "--to", "gguf", "--type", "f32", "--out", tmp_path / "m.gguf")
    run("export", merged, "--to", "onnx", "--out", tmp_path / "onnx")
    wanted = ours(merged)
    session = Session(tmp_path / "onnx" / "onnx" / f"{NAMES['fp32']}.onnx", read_config(merged))
    assert [in_onnxruntime(session, prompt, TOKENS) for prompt in PROMPTS] == wanted != ours(base / "latest")
    if PYTHON:
        assert in_llama_cpp(tmp_path / "m.gguf") == wanted
