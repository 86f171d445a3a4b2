"""What a cache holds of a text's beginning, on disk: a long system prompt, or a conversation, is read by a model once.

A safetensors file: the tokens [N], and of each layer what a slot of the cache keeps of them. Its metadata say which
model computed it, in which numbers and with which adapter; what another one computed is refused, and so is a file whose
bytes have changed (SHA-256). It is nothing but an answer kept: without it the same tokens are read again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.core.files import atomic_write
from shoestring.core.foreign import parse_json
from shoestring.generate.config import SamplingConfig
from shoestring.generate.identity import difference, identity
from shoestring.models.weights import TensorFile, tensor_bytes, write_tensors

if TYPE_CHECKING:
    from shoestring.generate.language_model import LanguageModel
    from shoestring.generate.scheduler import Scheduler

FORMAT = "shoestring prefix 1"
_TOKENS = "tokens"
_AGAIN = "without it the text is read again; save it anew"


def save_prefix(
    model: LanguageModel, file: str | Path, tokens: list[int], scheduler: Scheduler | None = None
) -> int:
    """Write what `scheduler` holds of the text that begins with `tokens`; -> how many of them that are.

    Without a scheduler they are read first. Raises ConfigError where nothing of them is held, or the model takes
    vectors from elsewhere; RunError where the file cannot be written.
    """
    _check(model)
    if scheduler is None:
        scheduler = model.scheduler(1, min(len(tokens) + 1, model.decoder.config.context))
        scheduler.add(model.request(tokens, SamplingConfig(max_tokens=1, temperature=0)))
        list(scheduler.run())
    slot, count = scheduler.held(tokens)
    if not count:
        raise ConfigError("nothing of this text has been read yet, so there is nothing to save")
    held = {_TOKENS: torch.tensor(tokens[:count])} | scheduler.cache.slot_tensors(slot, count)
    metadata = {"format": FORMAT, "of": json.dumps(identity(model)), "sha256": _digest(held)}
    with atomic_write(file, "wb") as out:
        write_tensors(out, held, metadata)
    return count


def load_prefix(model: LanguageModel, file: str | Path, scheduler: Scheduler) -> int:
    """Give a free slot what `save_prefix` wrote; -> the tokens that it then holds, from which requests go on.

    Raises ModelFileError for a file that is damaged or belongs to another model, and ConfigError without a free slot;
    then no slot holds anything of it.
    """
    _check(model)
    with TensorFile(file) as opened:
        _check_origin(model, opened)
        info = opened.infos.get(_TOKENS)
        if info is None or info.dtype != torch.int64 or len(info.shape) != 1 or not info.elements:
            raise ModelFileError("it holds no tokens", str(file), _AGAIN)
        count, context = info.elements, model.decoder.config.context
        if count > context:
            raise ModelFileError(f"it holds {count:,} tokens, and the model's context is {context:,}", str(file))
        tokens = opened.read(_TOKENS)

        def fill(views: dict[str, Tensor]) -> None:
            found = {name: (info.shape, info.dtype) for name, info in opened.infos.items() if name != _TOKENS}
            if found != {name: (tuple(view.shape), view.dtype) for name, view in views.items()}:
                raise ModelFileError("its tensors do not fit this model's cache", str(file), _AGAIN)
            for name, view in views.items():
                view.copy_(opened.read(name))
            if _digest({_TOKENS: tokens} | views) != opened.metadata.get("sha256"):
                raise ModelFileError("it is damaged: its bytes are not those that were saved", str(file), _AGAIN)

        scheduler.give(tokens.tolist(), fill)
    return count


def _check(model: LanguageModel) -> None:
    if model.decoder.config.input_adapter is not None:
        raise ConfigError("a model that takes vectors from another one keeps no beginnings of texts on disk")


def _check_origin(model: LanguageModel, opened: TensorFile) -> None:
    where = str(opened.path)
    if opened.metadata.get("format") != FORMAT:
        raise ModelFileError("not a file that save_prefix wrote", where)
    try:
        origin = parse_json(opened.metadata.get("of", ""))
    except ValueError:
        origin = None
    if not isinstance(origin, dict):
        raise ModelFileError("it does not say which model it belongs to", where, _AGAIN)
    differs = difference(origin, identity(model))
    if differs is not None:
        raise ModelFileError(f"{differs}, and cannot be used here", where, _AGAIN)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()
