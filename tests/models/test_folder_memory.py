"""Loading peaks at one model: measured in a process of its own, because a peak never goes down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import save_model

MEASURE = """
import sys
from shoestring.core.machine import peak_rss_bytes
from shoestring.models.folder import load_model
load_model(sys.argv[1])
before = peak_rss_bytes()
model = load_model(sys.argv[2])
print((peak_rss_bytes() - before) / (4 * model.parameter_count()))
"""


def test_loading_a_bfloat16_folder_takes_the_memory_of_one_float32_model(tmp_path):
    save(tmp_path / "tiny", 8)  # loaded first, so that imports and first calls are not counted
    save(tmp_path / "model", 20_000)
    assert 0.7 < measured(tmp_path) < 1.2


def save(folder: Path, vocabulary: int) -> None:
    config = ModelConfig.model_validate({
        "vocabulary": vocabulary, "width": 256, "layers": 2, "context": 64,
        "attention": {"heads": 4, "kv_heads": 2, "head_width": 64}, "feed_forward": {"width": 512},
        "tied_head": False,
    })  # fmt: skip
    model = build(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    save_model(model.to(torch.bfloat16), folder)


def measured(folder: Path) -> float:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(folder / "tiny"), str(folder / "model")]
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    return float(done.stdout)
