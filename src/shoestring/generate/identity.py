"""Which model computes, and in which numbers, as texts to compare: for what is kept on disk and belongs to it.

Weights from files are known by the files' contents, those made in Python by their values. Whoever trains a model
further in memory, under the name of the folder that it came from, keeps nothing of it here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from shoestring.models.adapters import adapted_linears
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.gguf.split import part_paths
from shoestring.models.peft_config import CONFIG
from shoestring.models.peft_folder import WEIGHTS, find_base, is_adapter
from shoestring.models.weight_files import weight_paths
from shoestring.models.weights import tensor_bytes
from shoestring.nn.lora import LoRA
from shoestring.nn.quantized.decoding import DecodingEmbedding, DecodingHead, DecodingLinear

if TYPE_CHECKING:
    from shoestring.generate.language_model import LanguageModel

NONE = "none"
SENTENCES = {
    "model": "it belongs to another model",
    "numbers": "it was computed in other number formats ({old}, and these are {new})",
    "adapter": "it was computed with another adapter, or with one where there is none now",
}


def identity(model: LanguageModel) -> dict[str, str]:
    """model: a digest of config and weights. numbers: how weights and the cache are kept, and the kinds of layers with
    their number formats. adapter: a digest of the one at work, or none. Raises ModelFileError where the files are
    gone."""
    numbers = ", ".join([*_kept(model), _numbers(model.decoder)])
    return {"model": _weights(model), "numbers": numbers, "adapter": _adapter(model.decoder)}


def difference(old: dict[str, str], new: dict[str, str]) -> str | None:
    """What differs first, as a sentence; None where all is the same."""
    for what, sentence in SENTENCES.items():
        if old.get(what) != new[what]:
            return sentence.format(old=old.get(what), new=new[what])
    return None


def _kept(model: LanguageModel) -> list[str]:
    found = {"weights": model.weights, "cache": model.cache}
    return [f"{name} {kept}" for name, kept in found.items() if kept != "source"]


def _weights(model: LanguageModel) -> str:
    digest = hashlib.sha256(model.decoder.config.model_dump_json().encode())
    if model.folder is not None:
        digest.update(Fingerprint.of(_files(model.folder)).digest.encode())
    else:
        for tensor in _values(model.decoder):
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _values(decoder: nn.Module) -> Iterator[Tensor]:
    """All that it computes with, adapters apart; matrices kept for decoding are in no state dictionary."""
    for name, tensor in decoder.state_dict().items():
        if ".adapters." not in name:
            yield tensor
    for module in decoder.modules():
        if isinstance(module, DecodingLinear | DecodingHead | DecodingEmbedding):
            yield module.matrix.held
            if module.matrix.bias is not None:
                yield module.matrix.bias


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return part_paths(folder)
    if is_adapter(folder):
        return [folder / CONFIG, folder / WEIGHTS, *weight_paths(find_base(folder))]
    return weight_paths(folder)


def _numbers(decoder: nn.Module) -> str:
    kinds = set()
    for module in decoder.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not isinstance(module, LoRA):
            formats = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in own})
            kinds.add(f"{type(module).__name__} {'/'.join(formats)}")
    return ", ".join(sorted(kinds))


def _adapter(decoder: nn.Module) -> str:
    digest, found = hashlib.sha256(), False
    for name, linear in adapted_linears(decoder).items():
        if linear.active is not None:
            found, adapter = True, linear.adapters[linear.active]
            digest.update(f"{name} {adapter.scale}".encode())
            for tensor in adapter.state_dict().values():
                digest.update(tensor_bytes(tensor))
    return digest.hexdigest() if found else NONE
