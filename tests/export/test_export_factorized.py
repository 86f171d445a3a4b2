"""A factorized model elsewhere: its ONNX graph computes the same, and a GGUF file is had once it is multiplied out."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.compression.factorize.job import factorize
from shoestring.compression.merge.job import merge
from shoestring.core.errors import ModelFileError
from shoestring.export.job import export
from tests.finetuning import tiny


def test_the_graph_is_checked_and_llama_cpp_gets_whole_matrices(tmp_path: Path) -> None:
    factorize(tiny.chat_model(tmp_path / "model"), tmp_path / "thin", "0.96x")
    done = export(str(tmp_path / "thin"), tmp_path / "onnx", "onnx")
    assert done.checked and done.file.exists()
    with pytest.raises(ModelFileError, match="(?s)low-rank matrices.*shoestring merge MODEL multiplies factors out"):
        export(str(tmp_path / "thin"), tmp_path / "thin.gguf")
    merge(tmp_path / "thin", tmp_path / "dense")
    assert export(str(tmp_path / "dense"), tmp_path / "dense.gguf").file.stat().st_size > 10_000
