from __future__ import annotations

from pathlib import Path

import pytest

from tests.compression.distill import distilling
from tests.finetuning import tiny


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilling.sharp(tiny.chat_model(tmp_path_factory.mktemp("teacher") / "teacher"))


@pytest.fixture(scope="session")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilling.smaller(teacher, tmp_path_factory.mktemp("student") / "student")


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"{n} and {n + 1} are numbers, {n} is the lower one.\n" for n in range(120)))
    return file


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are drawn in other tests, and take a second each."""
    monkeypatch.setattr("shoestring.train.run.write_plot", lambda *arguments: None)
