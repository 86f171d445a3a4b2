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
    """`export_gguf`, `export_onnx` or `export_web`. Raises ConfigError for a kind that the other one has."""
    types = GGUF_TYPES if to == "gguf" else ONNX_TYPES
    if kind is not None and kind not in types:
        raise ConfigError(f"there is no type {kind!r} of {to} to export to", hint=f"types: {', '.join(types)}")
    if to == "onnx":
        return export_onnx(model, out, cast("ONNXType | None", kind), say)
    if to == "web":
        return export_web(model, out, cast("ONNXType | None", kind), say)
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
    folder, name = find_model(model, say=say), _name(model)
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
    out = _new_folder(out, kind, "onnx")
    from shoestring.export.onnx.folder import export_onnx_folder

    return export_onnx_folder(find_model(model, say=say), out, kind or "fp32", say)


def export_web(
    model: str | Path, out: str | Path, kind: ONNXType | None = None, say: Say | None = None
) -> Exported:
    """Write a folder with a page that answers in the browser: what `export_onnx` writes, with transformers.js beside.

    kind: of the numbers; None is int8. Raises what `export_onnx` does, and what `export.web.packages` does.
    """
    out = _new_folder(out, kind, "web")
    from shoestring.export.web.folder import export_web_folder

    return export_web_folder(find_model(model, say=say), out, kind or "int8", _name(model), say)


def _new_folder(out: str | Path, kind: str | None, to: Target) -> Path:
    out = Path(os.path.expanduser(out))
    if kind is not None and kind not in ONNX_TYPES:
        raise ConfigError(f"there is no type {kind!r} of {to} to export to", hint=f"types: {', '.join(ONNX_TYPES)}")
    need("onnx", f"--to {to}", "export")
    _check_new(out)
    return out


def _name(model: str | Path) -> str:
    """What the model is called elsewhere."""
    path = Path(os.path.expanduser(model))
    return path.name if path.exists() and path.name else str(model)


def _check_new(*files: Path) -> None:
    for file in files:
        if os.path.lexists(file):
            raise RunError("this exists already", str(file), "choose another --out, or remove it first")
    check_place(files[0])
