"""What the claims' benchmark calibrates with: files of the library, and talk that the model writes itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.calibration_text import PIECE, write
from shoestring.generate.language_model import LanguageModel
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    tokenizer = chatml(templates.CHATML)
    shape = ModelConfig.model_validate({**tiny.SHAPE, "context": 512, "vocabulary": tokenizer.vocabulary_size})
    model = LanguageModel(build(shape, seed=3), tokenizer)
    monkeypatch.setattr("shoestring.offload.load.load", lambda *_: model)
    return model


def texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_chat_model_writes_talk_and_nothing_measured_is_calibrated_with(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = write("m", tmp_path / "c", tmp_path / "h", pieces=5, conversations=12, held=3)
    calibration, held = texts(tmp_path / "c"), texts(tmp_path / "h")
    talk = [text for text in calibration if "<|im_start|>user\n" in text]
    assert 0 < told == len(talk) < 12  # those whose question came to an end by chance
    assert all("<|im_end|>\n<|im_start|>assistant\n" in text for text in talk)
    library = [text for text in calibration if text not in talk]
    assert len(library) == 5 and len(held) == 3 and all(len(text) == PIECE for text in library + held)
    assert not set(library) & set(held)

    again = write("m", tmp_path / "c2", tmp_path / "h2", pieces=5, conversations=12, held=3)
    assert (told, calibration, held) == (again, texts(tmp_path / "c2"), texts(tmp_path / "h2"))

    monkeypatch.setattr(model.tokenizer, "chat_templates", {})
    assert write("m", tmp_path / "c3", tmp_path / "h3", pieces=5, conversations=12, held=3) == 0
    assert sorted(texts(tmp_path / "c3")) == sorted(library)
