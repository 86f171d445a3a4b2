"""`shoestring export`: a model or adapter for another tool, written whole and checked, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from shoestring.core.errors import ConfigError, RunError
from shoestring.core.extras import need
from shoestring.core.files import check_place
from shoestring.export.config import ADAPTER_TYPES, GGUF_TYPES, ONNX_TYPES, GGUFType, ONNXType, Target
from shoestring.export.result import Exported, modelfile_path
from shoestring.models.peft_folder import is_adapter
from shoestring.models.resolve import Say, find_model


def export(
    model: str | Path, out: str | Path, to: Target = "gguf", kind: str | None = None, say: Say | None = None
) -> Exported:
    """`export_gguf` or `export_onnx`. Raises ConfigError for a kind that the other one has."""
    types = {"gguf": GGUF_TYPES, "onnx": ONNX_TYPES}[to]
    if kind is not None and kind not in types:
        raise ConfigError(f"there is no type {kind!r} of {to} to export to", hint=f"types: {', '.join(types)}")
    if to == "onnx":
        return export_onnx(model, out, cast("ONNXType | None", kind), say)
    return export_gguf(model, out, cast("GGUFType | None", kind), say)


def export_gguf(
    model: str | Path, out: str | Path, kind: GGUFType | None = None, say: Say | None = None
) -> Exported:
    """Write a model, or an adapter beside its base, as a GGUF file.

    model: what `models.resolve.find_model` takes. kind: of the numbers; None is f16, of an adapter f32. Raises
    ConfigError for a kind that is not there, RunError where `out` is there already or cannot be written, and what
    `export.gguf.model` and `export.gguf.adapter` raise.
    """
    out = Path(os.path.expanduser(out))
    if kind is not None and kind not in GGUF_TYPES:
        raise ConfigError(f"there is no type {kind!r} of gguf to export to", hint=f"types: {', '.join(GGUF_TYPES)}")
    _check_new(out, modelfile_path(out))
    folder = find_model(model, say=say)
    path = Path(os.path.expanduser(model))
    name = path.name if path.exists() and path.name else str(model)
    if is_adapter(folder):
        from shoestring.export.gguf.adapter import export_adapter

        if kind is not None and kind not in ADAPTER_TYPES:
            raise ConfigError(
                f"an adapter is not written in {kind}", hint=f"types of an adapter: {', '.join(ADAPTER_TYPES)}"
            )
        return export_adapter(folder, out, kind or "f32", name, say)
    from shoestring.export.gguf.model import export_model

    return export_model(folder, out, kind or "f16", name, say)


def export_onnx(
    model: str | Path, out: str | Path, kind: ONNXType | None = None, say: Say | None = None
) -> Exported:
    """Write a model as a folder with an ONNX graph, for onnxruntime, onnxruntime-genai and transformers.js.

    kind: of the numbers; None is fp32. Raises ConfigError where the package onnx is not there, RunError where `out` is
    there already or cannot be written, and what `export.onnx.folder` raises.
    """
    out = Path(os.path.expanduser(out))
    if kind is not None and kind not in ONNX_TYPES:
        raise ConfigError(f"there is no type {kind!r} of onnx to export to", hint=f"types: {', '.join(ONNX_TYPES)}")
    need("onnx", "--to onnx", "export")
    _check_new(out)
    from shoestring.export.onnx.folder import export_onnx_folder

    return export_onnx_folder(find_model(model, say=say), out, kind or "fp32", say)


def _check_new(*files: Path) -> None:
    for file in files:
        if os.path.lexists(file):
            raise RunError("this exists already", str(file), "choose another --out, or remove it first")
    check_place(files[0])
