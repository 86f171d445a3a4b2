"""What an export gives: the files, and what of them was checked and what not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Exported:
    """formats: how many tensors have which. checked and unchecked: sentences. beside: files that came along."""

    file: Path
    bytes: int
    formats: dict[str, int]
    checked: list[str]
    unchecked: list[str]
    beside: list[Path] = field(default_factory=list)


def modelfile_path(out: Path) -> Path:
    """What stands beside a GGUF file: model.Modelfile beside model.gguf."""
    return out.with_name(f"{out.name.removesuffix('.gguf')}.Modelfile")
