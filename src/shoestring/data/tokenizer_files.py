"""The files of a tokenizer's folder, which may be anybody's: what is wrong with them is a TokenizerError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from shoestring.core.errors import TokenizerError
from shoestring.core.foreign import parse_json, read_json, repeats_repetition


@contextlib.contextmanager
def panics() -> Iterator[None]:
    """A panic in the Rust library as a TokenizerError: it is no Exception, and its class cannot be imported."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"the tokenizer cannot be used: {error}", "tokenizer.json") from error


def check_patterns(backend: tokenizers.Tokenizer) -> None:
    """Raises ValueError for a regular expression that repeats what repeats: a line can take minutes."""
    for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder):
        waiting = [parse_json(part.__getstate__())] if part is not None else []
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict):
                waiting += item.values()
                pattern = item.get("Regex")
                if isinstance(pattern, str) and repeats_repetition(pattern):
                    raise ValueError(f"its pattern {pattern!r:.80} repeats what repeats, which can take for ever")
            elif isinstance(item, list):
                waiting += item


def no_tokenizer(folder: Path) -> TokenizerError:
    """What to say of a folder without tokenizer.json."""
    older = ("vocab.json", "merges.txt"), ("tokenizer.model",), ("vocab.txt",)
    there = next((names for names in older if all((folder / name).is_file() for name in names)), None)
    if there is None:
        return TokenizerError(
            "no tokenizer.json in this folder", str(folder), "give a folder written by Hugging Face tools or by us"
        )
    return TokenizerError(
        f"the tokenizer is here in an older form ({' and '.join(there)}), and there is no tokenizer.json", str(folder),
        "have transformers write one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )  # fmt: skip


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none. Raises TokenizerError."""
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
    except ValueError as error:
        raise TokenizerError(f"not valid JSON: {error}", str(file)) from error
    except OSError as error:
        raise TokenizerError(f"cannot be read: {error.strerror}", str(file)) from error
    if not isinstance(content, dict):
        raise TokenizerError("not a JSON object", str(file))
    return content


def add_missing_tokens(backend: tokenizers.Tokenizer, added: Any, folder: Path) -> None:
    """Tokens that only tokenizer_config.json lists (added_tokens_decoder: id -> AddedToken)."""
    if not isinstance(added, dict):
        return
    for key, token in sorted(added.items(), key=lambda item: int(item[0])):
        if backend.token_to_id(token["content"]) is not None:
            continue
        options = {
            k: token[k] for k in ("single_word", "lstrip", "rstrip", "normalized", "special") if k in token
        }
        backend.add_tokens([tokenizers.AddedToken(token["content"], **options)])
        if backend.token_to_id(token["content"]) != int(key):
            raise TokenizerError(
                f"added token {token['content']!r} cannot have the id {key}",
                str(folder / "tokenizer_config.json"),
            )


def chat_templates(folder: Path, configured: Any) -> dict[str, str]:
    """Templates by name, from chat_template.jinja (newer transformers) or the config (one, or a list)."""
    templates: dict[str, str] = {}
    if isinstance(configured, str):
        templates["default"] = configured
    elif isinstance(configured, list):
        templates = {entry["name"]: entry["template"] for entry in configured}
    file = folder / "chat_template.jinja"
    if file.is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[extra.stem] = extra.read_text(encoding="utf-8")
    if not all(isinstance(template, str) for template in templates.values()):
        raise ValueError("a chat template that is not text")
    return templates
