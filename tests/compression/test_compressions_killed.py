"""Every verb that makes a model smaller, killed by SIGKILL and asked again: the bytes of a run that nobody killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import save_model
from tests.compression.distill import distilling
from tests.compression.prune.prunable import FEW, prunable
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny
from tests.train.tiny import corpus

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
WORKS: dict[str, dict[str, Any]] = {
    "quantize": {"verb": "quantize", "settings": {**FEW, "group": 8}},
    "parts": {"verb": "prune", "settings": {**FEW, "layers": 2, "feed_forward": 32, "heads": 4, "width": 24}},
    "rounds": {"verb": "prune", "settings": {**FEW, "pattern": "2:4", "rounds": 2, "recover": 2}},
    "taught": {"verb": "prune", "settings": {**FEW, "feed_forward": 32, "recover": 4, "recover_by": "model"}},
    "factorize": {"verb": "factorize", "settings": {**FEW, "parameters": "0.75x"}},
    "distill": {"verb": "distill", "settings": {"train.steps": 6}},
    "samples": {"verb": "distill", "settings": {"distill.cache_samples": 10}},
    "compress": {"verb": "compress", "settings": {**FEW, "target": "0.17x", "recover": 2}},
}  # fmt: skip


def wide(folder: Path) -> Path:
    """Whose matrices groups of 32 divide, also once it is pruned."""
    tokenizer = chatml(templates.CHATML)
    shape = {
        "vocabulary": tokenizer.vocabulary_size, "width": 64, "layers": 2, "context": 128, "initializer_range": 0.2,
        "attention": {"heads": 4, "kv_heads": 2, "head_width": 16}, "feed_forward": {"width": 128},
    }  # fmt: skip
    save_model(build(ModelConfig.model_validate(shape), seed=1), folder, tokenizer)
    return folder


def work_of(name: str, folder: Path, seed: int, deaths: int) -> dict[str, Any]:
    verb, settings = WORKS[name]["verb"], dict(WORKS[name]["settings"])
    sums = str(tiny.sums(folder / "sums.jsonl"))
    if verb == "distill":
        model = distilling.sharp(tiny.chat_model(folder / "teacher"))
        student = distilling.smaller(model, folder / "student")
        settings = {**distilling.SHORT, "model.init": str(student), "data.source": sums, **settings}
    elif verb == "compress":
        model, settings["calibrate"] = wide(folder / "model"), str(corpus(folder / "text"))
    else:
        model, settings["calibrate"] = prunable(folder / "model"), sums
    assert Tokenizer.load(model).chat_template
    return {"verb": verb, "model": str(model), "settings": settings, "seed": seed, "deaths": deaths}


def check_killed(name: str, folder: Path, seed: int, deaths: int) -> None:
    script = [sys.executable, str(ROOT / "tests/compression/killed.py"), str(folder)]
    work = json.dumps(work_of(name, folder, seed, deaths))
    done = subprocess.run([*script, work], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] > 0 and found["left"] == ["x"], found


@pytest.mark.parametrize("name", ["parts", "factorize"])
def test_killed_twice_it_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    check_killed(name, tmp_path, seed=0, deaths=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", WORKS)
def test_more_instants_of_every_verb(name: str, seed: int, tmp_path: Path) -> None:
    check_killed(name, tmp_path, seed=seed + 1, deaths=16)
