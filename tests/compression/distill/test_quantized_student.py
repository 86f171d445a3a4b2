"""Distilling into a student that will be in few bits: the last lines write the student that was taught."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from shoestring.cli.main import main
from shoestring.compression.distill.job import distill
from shoestring.models.fake_quantization import fake_quantize_blocks
from shoestring.models.folder import load_model
from shoestring.models.packed_files import packed_linears
from shoestring.models.peft_folder import load_adapted
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.fake import FakeQuantized
from tests.compression.distill.distilling import SHORT


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_codes_that_are_written_are_those_that_were_taught(
    method: str, teacher: Path, student: Path, sums: Path, tmp_path: Path
) -> None:
    result = distill(
        teacher, student, sums, out=tmp_path / "run",
        overrides={**SHORT, "quantize": {"bits": 4, "group": 16}, "adapter.method": method},
    )  # fmt: skip
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in str(result).splitlines() if line.strip()}
    if method == "lora":
        assert main(shlex.split(lines["merge"])[1:]) == 0
    assert main(shlex.split(lines["quantize"])[1:]) == 0
    trained = load_adapted(result.best)[0] if method == "lora" else load_model(result.best)
    fake_quantize_blocks(trained, PackedConfig(bits=4, group=16))
    written = packed_linears(load_model(tmp_path / "run" / "quantized"))
    for name, linear in written.items():
        module = trained.get_submodule(name)
        assert isinstance(module, FakeQuantized)
        module(torch.zeros(1, module.in_features))
        assert module.kept.codes is not None and torch.equal(module.kept.codes.codes_OI, linear.codes()), name
    assert len(written) == 7
