"""A MODEL is found as a folder, a run, a GGUF file or a name; otherwise the error says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.core.errors import ModelFileError
from shoestring.core.files import replace_symlink_or_pointer
from shoestring.models import resolve
from shoestring.models.resolve import find_model
from tests.models.gguf.gguf_files import tiny_model, write_gguf


def folder(path: Path, file: str = "config.json") -> Path:
    path.mkdir(parents=True)
    (path / file).write_text("{}")
    return path


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_model_or_adapter_folder_is_itself(file: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", file)
    assert find_model(str(path)) == find_model(path) == path


@pytest.mark.parametrize("linked", [True, False])
def test_a_run_is_its_newest_checkpoint(
    linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linked:  # Windows without the privilege: a file that holds the name
        monkeypatch.delattr("os.symlink")
        monkeypatch.setattr("os.symlink", refuse, raising=False)
    step = folder(tmp_path / "run" / "step-000500")
    replace_symlink_or_pointer(tmp_path / "run" / "latest", "step-000500")
    assert find_model(tmp_path / "run").resolve() == step
    assert find_model(tmp_path / "run" / "latest").resolve() == step


def refuse(*_: object, **__: object) -> None:
    raise OSError("not permitted")


def test_a_gguf_file_is_converted_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    found = find_model(write_gguf(tmp_path / "m.gguf", tiny_model("llama")))
    assert found.is_relative_to(tmp_path / "cache") and (found / "model.safetensors").is_file()


def test_names_are_taken_from_the_cache_before_they_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(resolve, "cached", lambda name: tmp_path if name == "smollm2-135m" else None)
    monkeypatch.setattr(resolve, "get", lambda name, say: asked.append(name) or tmp_path)
    for name in ("smollm2-135m", "hf:owner/name", "owner/name"):
        assert find_model(name) == tmp_path
    assert asked == ["hf:owner/name", "hf:owner/name"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("smolm2-135m", "did you mean smollm2-135m"),
        ("runs/quickstart-9", "for the hub write hf:runs/quickstart-9"),
        ("runs/empty", "no config.json, adapter_config.json or latest"),
        ("runs/dangling", "its newest checkpoint 'step-1' is not there"),
        ("missing.gguf", "no such file"),
        ("notes.txt", "neither a folder nor a GGUF file"),
        ("", "no model"),
    ],
)
def test_what_is_not_a_model_is_a_sentence(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    (tmp_path / "runs" / "dangling").mkdir()
    replace_symlink_or_pointer(tmp_path / "runs" / "dangling" / "latest", "step-1")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelFileError) as error:
        find_model(name)
    assert sentence in str(error.value)
