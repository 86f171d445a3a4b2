"""What a user calls a model, to the folder that holds it.

A MODEL is a model folder, an adapter (PEFT) folder, the folder of a run (then its newest checkpoint), a GGUF
file, a known name such as smollm2-135m, or a repository of the Hugging Face hub. What is on disk wins over
names, and the network is asked last.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from shoestring.core.errors import ModelFileError
from shoestring.core.files import resolve_pointer
from shoestring.models.get import cached, get, known_names
from shoestring.models.wheels import KNOWN, Say

_OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def find_model(text: str | Path, say: Say | None = None, encoder: bool = False) -> Path:
    """The folder of the model that `text` names; fetched and converted first where need be.

    say: told in a sentence what is being waited for. encoder: whether one that generates nothing will do. Raises
    ModelFileError that lists where it was looked for, and NetworkError when a download fails.
    """
    name = str(text)
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):
        return _folder(path)
    if os.path.isfile(path):
        target = resolve_pointer(path) if path.name in ("latest", "best") else path
        if os.path.isdir(target):
            return _folder(target)
        if path.suffix.lower() == ".gguf":
            return get(str(path), say=say)
        raise ModelFileError("not a model: neither a folder nor a GGUF file", where=name)
    if name in KNOWN and KNOWN[name].encoder and not encoder:
        raise ModelFileError(
            f"{name} is an encoder: it makes vectors of texts, and generates nothing", hint=known_names(encoders=False)
        )
    if name in KNOWN or name.startswith("hf:"):
        return cached(name) or get(name, say=say)
    if path.suffix.lower() == ".gguf":
        raise ModelFileError("no such file", where=name)
    if _OWNER_AND_NAME.fullmatch(name) and not isinstance(text, Path):
        # OWNER/NAME looks like a path too: a path that is close but wrong must not become a download.
        if os.path.isdir(path.parent):
            raise ModelFileError(
                f"no model {name!r}: there is no such folder",
                hint=f"for the hub write hf:{name}\n{known_names(name, encoder)}",
            )
        return cached(f"hf:{name}") or get(f"hf:{name}", say=say)
    raise ModelFileError(
        f"no model {name!r}: it is no folder or file here ({Path.cwd()}) and no known name",
        hint=known_names(name, encoder),
    )


def _folder(path: Path) -> Path:
    if os.path.isfile(path / "config.json") or os.path.isfile(path / "adapter_config.json"):
        return path
    latest = path / "latest"
    if os.path.exists(latest) or latest.is_symlink():
        target = resolve_pointer(latest)
        if os.path.isfile(target / "config.json") or os.path.isfile(target / "adapter_config.json"):
            return target
        raise ModelFileError(
            f"its newest checkpoint {target.name!r} is not there or not whole", where=str(path)
        )
    raise ModelFileError(
        "not a model folder: no config.json, adapter_config.json or latest in it",
        where=str(path),
        hint="a run that was stopped before its first checkpoint has none"
        if (path / "recipe.yaml").is_file()
        else None,
    )
