"""A folder that was just written, read by onnxruntime-genai where that is installed: it must go on as onnxruntime does.

Its own tokenizer is asked too. Where that cuts a text otherwise the folder is no worse for all that reads
tokenizer.json as it stands, so it is said, and not refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shoestring.core.errors import ModelFileError

NAME = "onnxruntime-genai"


def check(
    folder: Path, ids: list[int], wanted: list[int], ends: list[int], text: str, of_text: list[int]
) -> tuple[list[str], list[str]]:
    """-> what was checked and what not, in sentences. wanted: the greedy tokens after ids, where onnxruntime stops at
    none; of_text: the ids of a text. Raises ModelFileError where the folder is refused or other tokens come."""
    try:
        import onnxruntime_genai
    except ImportError as error:
        return [], [f"in {NAME}, which cannot be imported: {error}"]
    version = f"in {NAME} {onnxruntime_genai.__version__}"
    try:
        model = onnxruntime_genai.Model(str(folder))
        found = _greedy(onnxruntime_genai, model, ids, len(wanted))
    except RuntimeError as error:
        raise _refused(f"does not take the folder ({error})") from error
    until = next((n for n, token in enumerate(wanted) if token in ends), len(wanted))
    if found[:until] != wanted[:until] or not set(found[until:]) <= {*ends}:  # an end is shown or not
        raise _refused("goes on with other tokens than onnxruntime")
    checked = [f"{version}: {until} greedy tokens"]
    try:
        made = [int(i) for i in onnxruntime_genai.Tokenizer(model).encode(text)]
    except RuntimeError as error:
        return checked, [f"{version}: token ids, for its own tokenizer does not take this one ({error})"]
    if made[-len(of_text) :] != of_text:  # it may put a beginning before them
        return checked, [f"{version}: its own tokenizer makes other ids of a text; give it ids"]
    return [f"{checked[0]}, token ids"], []


def _greedy(genai: Any, model: Any, ids: list[int], count: int) -> list[int]:
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + count, do_sample=False, repetition_penalty=1.0)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array(ids, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)][len(ids) :]


def _refused(what: str) -> ModelFileError:
    return ModelFileError(f"{NAME} {what}, so there is no folder", hint="this is a fault of the export")
