"""A folder for a plain file server: a page, the model as an ONNX graph, and transformers.js with onnxruntime.

    index.html, page.css, page.js, worker.js   the page; page.json says what it shows
    model/                                     what `--to onnx` writes
    lib/                                       from npm packages (`packages`)

Opened in a browser it needs nothing from anywhere else.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from shoestring.core.files import atomic_folder
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.config import ONNXType
from shoestring.export.onnx.folder import check_folder, write_folder
from shoestring.export.result import Exported
from shoestring.export.web.packages import FILES, packages
from shoestring.models.families.registry import read_config
from shoestring.models.resolve import Say

_PAGE = ("index.html", "page.css", "page.js", "worker.js")


def export_web_folder(folder: Path, out: Path, kind: ONNXType, name: str, say: Say | None = None) -> Exported:
    """Write the folder `out`. name: what the page calls the model.

    Raises what `packages` does, and what `export.onnx.folder` does for a model that a graph cannot say.
    """
    check_folder(folder)
    library = packages(say)
    with atomic_folder(out) as temporary:
        (temporary / "model").mkdir()
        done = write_folder(folder, temporary / "model", kind, say)
        (temporary / "model" / "genai_config.json").unlink()
        (temporary / "lib").mkdir()
        for file in FILES:
            shutil.copyfile(library / file, temporary / "lib" / file)
        for file in _PAGE:
            shutil.copyfile(Path(__file__).parent / "static" / file, temporary / file)
        about = {
            "name": name,
            "type": kind,
            "bytes": done.bytes,
            "context": read_config(folder).context,
            "chat": Tokenizer.load(folder).chat_template is not None,
        }
        (temporary / "page.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    unchecked = [*done.unchecked, "the page in a browser"]
    return Exported(out, size, done.formats, done.checked, unchecked)
