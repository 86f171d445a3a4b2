"""Rows that are streamed from a safetensors file are those that are read, with direct reads and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoestring.core.direct import DirectFile
from shoestring.models.weights import TensorFile, save_file


@pytest.mark.parametrize("refused", [False, True])
def test_rows_are_streamed_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    if refused:
        monkeypatch.setattr(DirectFile, "read_into", lambda *_: False)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "odd": torch.randint(-9, 9, (7,), dtype=torch.int8, generator=generator),
        "matrix": torch.randn(700, 33, generator=generator).to(torch.bfloat16),
        "one": torch.tensor(3.0),
        "none": torch.empty(0, 5),
    }
    save_file(tensors, tmp_path / "t.safetensors")
    with TensorFile(tmp_path / "t.safetensors") as file:
        for name, tensor in tensors.items():
            target = torch.empty_like(tensor)
            file.stream_rows(name, target)
            assert torch.equal(target, tensor)
        for first, last in ((0, 1), (3, 690), (699, 700), (50, 50)):
            target = torch.empty(last - first, 33, dtype=torch.bfloat16)
            file.stream_rows("matrix", target, first)
            assert torch.equal(target, tensors["matrix"][first:last])
