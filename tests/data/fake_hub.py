"""The hub's client as the package uses it, with data sets that are folders on this machine; and without a network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest


class FakeHub:
    """branches: branch -> folder of its files. asked, fetched: what was listed and fetched, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **branches: Path) -> None:
        self.branches = {name.replace("convert", "refs/convert/parquet"): path for name, path in branches.items()}
        self.asked: list[tuple[str, str]] = []
        self.fetched: list[str] = []
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def dataset_info(self, name: str, revision: str, files_metadata: bool) -> Any:
        assert files_metadata
        self.asked.append((name, revision))
        folder = self.branches[revision]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return SimpleNamespace(sha=f"commit of {revision}", siblings=[_sibling(folder, file) for file in files])

    def download(self, name: str, file: str, repo_type: str, revision: str) -> str:
        assert repo_type == "dataset" and revision.startswith("commit of ")
        self.fetched.append(file)
        return str(self.branches[revision.removeprefix("commit of ")] / file)


def _sibling(folder: Path, file: Path) -> Any:
    content = file.read_bytes()
    large = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if file.suffix == ".parquet" else None
    name = file.relative_to(folder).as_posix()
    return SimpleNamespace(rfilename=name, size=len(content), blob_id=hashlib.sha1(content).hexdigest(), lfs=large)


def unreachable(monkeypatch: pytest.MonkeyPatch, reason: str = "no route to host") -> None:
    """Every question to the hub fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(reason)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(dataset_info=refuse))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
