"""Where streamed layers come from: the model's own safetensors files, or a store made from them once.

    STORE/manifest.json              format, SHA-256 of the source, each layer's size and CRC-32
    STORE/layer-00000.safetensors    the layer's matrices in float32 or bfloat16, or its quantized linears

A folder whose linears are in few bits is streamed so; where they lie in another layout than memory's, from a store.

What is one-dimensional (norms, biases) is small and stays in memory, from the source; so do embedding and head on disk.
A store appears whole or not at all. It stands in the cache, under a name made of the source's content and the format.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.core.files import atomic_folder, cache_dir, remove_stale
from shoestring.core.foreign import read_json
from shoestring.models.builder import build_block
from shoestring.models.config import ModelConfig
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.packed_files import put_empty
from shoestring.models.resolve import Say
from shoestring.models.weight_files import WeightFiles
from shoestring.models.weights import TensorFile, write_tensors
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.replace import replace_linears
from shoestring.offload.config import QUANTIZED, StoreFormat
from shoestring.offload.packed_layers import (
    block_linears,
    check_alike,
    format_of,
    lie_ready,
    packed_layer,
    packed_piece,
)

MANIFEST, _VERSION = "manifest.json", 1
_DENSE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Piece:
    """One tensor of a layer. name: in the block, as attention.query.weight."""

    name: str
    file: TensorFile
    tensor: str

    @property
    def dtype(self) -> torch.dtype:
        return self.file.infos[self.tensor].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.infos[self.tensor].shape

    @property
    def offset(self) -> int:
        """In its file."""
        return self.file.infos[self.tensor].offset

    @property
    def bytes(self) -> int:
        info = self.file.infos[self.tensor]
        return info.elements * info.dtype.itemsize


@dataclass(frozen=True)
class Store:
    """format: a `StoreFormat`, or that of a copy of linears in few bits. layers: the pieces of each. checks: CRC-32 of
    a layer's pieces in their order, None where the files have none. packed: linears in few bits, by name in a block."""

    config: ModelConfig
    format: str
    source: Fingerprint
    layers: tuple[tuple[Piece, ...], ...]
    checks: tuple[int, ...] | None
    files: WeightFiles
    own: tuple[TensorFile, ...] = ()
    packed: Mapping[str, PackedConfig] = field(default_factory=dict)

    def close(self) -> None:
        self.files.close()
        for file in self.own:
            file.__exit__()


def empty_block(
    config: ModelConfig, index: int, format: str, packed: Mapping[str, PackedConfig] | None = None
) -> nn.Module:
    """The block on the meta device, its linears as the store keeps them."""
    with torch.device("meta"):
        block = build_block(config, index)
        put_empty(block, packed or {})
        if format in QUANTIZED:
            replace_linears(block, QUANTIZED[format], lambda *_: True)
    return block


def open_store(
    folder: str | Path,
    format: StoreFormat = "source",
    say: Say | None = None,
    only: Sequence[int] | None = None,
    held: Callable[[str], bool] | None = None,
) -> Store:
    """The layers of the model in a folder, made ready in this format if they are not yet.

    only: these, the others being elsewhere; held: which parameters the folder has then, as `WeightFiles` takes it.
    Raises ModelFileError for a broken or changed source and a corrupted store, RunError for a full disk, ConfigError
    for another format of weights that are in few bits.
    """
    files = WeightFiles(folder, packed=True, held=held)
    try:
        source = Fingerprint.of([file.path for file in files.files])
        if files.packed:
            return _open_packed(files, format, source, say, only)
        if format in _DENSE and all(place.info.dtype == _DENSE[format] for place in files.places.values()):
            format = "source"
        if format == "source":
            return Store(files.config, format, source, _source_layers(files, only=only), None, files)
        place = store_folder(source, format, only)
        if not (place / MANIFEST).is_file():
            _make(place, files, format, source, say, only=only)
        return _open_made(place, files, format, source, only=only)
    except BaseException:
        files.close()
        raise


def _open_packed(
    files: WeightFiles, format: StoreFormat, source: Fingerprint, say: Say | None, only: Sequence[int] | None
) -> Store:
    if format != "source":
        raise ConfigError(
            f"this model's weights are quantized already, and are streamed as they are, not in {format}",
            hint="leave weights out, or take the dense model",
        )
    check_alike(files)
    packed = block_linears(files)
    if lie_ready(files, packed):
        return Store(files.config, format, source, _source_layers(files, packed, only), None, files, packed=packed)
    kept = format_of(files)
    place = store_folder(source, kept, only)
    if not (place / MANIFEST).is_file():
        _make(place, files, kept, source, say, packed, only)
    return _open_made(place, files, kept, source, packed, only)


def store_folder(source: Fingerprint, format: str, only: Sequence[int] | None = None) -> Path:
    """Where the store of a source stands, or of these of its layers."""
    some = "" if only is None else f"-of-{zlib.crc32(repr(list(only)).encode()):08x}"
    return cache_dir() / "stores" / f"{source.key}-{format}{some}"


def _layers_of(files: WeightFiles, only: Sequence[int] | None) -> list[int]:
    return list(range(files.config.unique_layers) if only is None else only)


def store_bytes(config: ModelConfig, format: StoreFormat) -> int:
    """Bytes of all layers in this format, "source" counted as float32."""
    return config.unique_layers * layer_bytes(empty_block(config, 0, format), _DENSE.get(format, torch.float32))


def layer_bytes(block: nn.Module, dense: torch.dtype) -> int:
    """Bytes of what is streamed of a block."""
    return sum(
        tensor.numel() * (dense.itemsize if isinstance(tensor, nn.Parameter) else tensor.dtype.itemsize)
        for _, tensor in streamed(block)
    )


def streamed(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What of a block goes through the buffers, by name: matrices, and all of a quantized linear but its bias.

    Like parts of neighbouring linears follow each other, so that those that share an input lie in one stretch.
    """
    tensors = [*block.named_parameters(), *block.named_buffers()]
    chosen = [(name, t) for name, t in tensors if (t.dim() >= 2 if isinstance(t, nn.Parameter) else _is_code(name))]
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name, _ in chosen))
    return iter(sorted(chosen, key=lambda item: kinds.index(item[0].rpartition(".")[2])))


def _is_code(name: str) -> bool:
    return name.rpartition(".")[2] != "bias"


def _source_layers(
    files: WeightFiles, packed: Mapping[str, PackedConfig] | None = None, only: Sequence[int] | None = None
) -> tuple[tuple[Piece, ...], ...]:
    config = files.config
    names = [name for name, _ in streamed(empty_block(config, 0, "source", packed))]
    return tuple(
        tuple(
            Piece(name, place.file, place.tensor)
            for name in names
            for place in [packed_piece(files, index, name)]
        )
        for index in _layers_of(files, only)
    )


def _make(
    place: Path, files: WeightFiles, format: str, source: Fingerprint, say: Say | None,
    packed: Mapping[str, PackedConfig] | None = None, only: Sequence[int] | None = None,
) -> None:  # fmt: skip
    """Write the store, one layer in memory at a time."""
    if say is not None:
        kind = "copy of the layers' codes, laid out for streaming" if packed else f"{format} copy of the layers"
        say(f"making a {kind}, once: {place}")
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(place)
    layers: list[dict[str, int | str]] = []
    with atomic_folder(place) as temporary:
        for index in _layers_of(files, only):
            block = packed_layer(files, index, packed) if packed else _layer(files, index, format)
            tensors = {name: tensor.detach().contiguous() for name, tensor in streamed(block)}
            name = f"layer-{index:05d}.safetensors"
            with open(temporary / name, "xb") as file:
                write_tensors(file, tensors, {})  # one behind another, in this order: a layer is read at once
            size = (temporary / name).stat().st_size
            layers.append({"file": name, "bytes": size, "crc32": checksum(tensors.values())})
        content = {"version": _VERSION, "format": format, "source": source.digest, "layers": layers}
        (temporary / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _layer(files: WeightFiles, index: int, format: str) -> nn.Module:
    """A block as the store keeps it, in memory."""
    with torch.device("meta"):
        block = build_block(files.config, index)
    for name, parameter in list(block.named_parameters()):
        place = files.places[f"blocks.{index}.{name}"]
        tensor = torch.empty(parameter.shape, dtype=_DENSE.get(format, torch.float32))
        place.file.read_into(place.tensor, tensor)
        place.file.forget(place.tensor)
        owner, _, last = name.rpartition(".")
        setattr(block.get_submodule(owner), last, nn.Parameter(tensor, requires_grad=False))
    if format in QUANTIZED:
        replace_linears(block, QUANTIZED[format], lambda *_: True)
    return block


def checksum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 of the tensors' bytes, one after another."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def _open_made(
    place: Path, files: WeightFiles, format: str, source: Fingerprint, packed: Mapping[str, PackedConfig] | None = None,
    only: Sequence[int] | None = None,
) -> Store:  # fmt: skip
    """The store in `place`, checked against its manifest; contents are checked as they are first read."""
    broken = f"delete the folder {place}: it is made again from the model"
    own: list[TensorFile] = []
    try:
        manifest = read_json(place / MANIFEST)
        listed = [(entry["file"], int(entry["bytes"]), int(entry["crc32"])) for entry in manifest["layers"]]
        made = (manifest["version"], manifest["format"], manifest["source"], len(listed))
        layers = _layers_of(files, only)
        if made != (_VERSION, format, source.digest, len(layers)):
            raise ValueError("it was made by another version, or from other weights")
        expected = [name for name, _ in streamed(empty_block(files.config, 0, format, packed))]
        for index, (name, size, _) in zip(layers, listed, strict=True):
            if name != f"layer-{index:05d}.safetensors":
                raise ValueError(f"layer {index} is called {name!r}")
            if (place / name).stat().st_size != size:
                raise ValueError(f"{name} has {(place / name).stat().st_size:,} bytes instead of {size:,}")
            file = TensorFile(place / name)
            own.append(file)
            if set(file.infos) != set(expected):
                raise ValueError(f"{name} holds other tensors than this model's layers")
        pieces = tuple(tuple(Piece(name, file, name) for name in expected) for file in own)
        checks = tuple(crc for *_, crc in listed)
        return Store(files.config, format, source, pieces, checks, files, tuple(own), packed or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        for file in own:
            file.__exit__()
        raise ModelFileError(f"the store of streamed layers is broken: {error}", str(place), broken) from error
    except ModelFileError:
        for file in own:
            file.__exit__()
        raise
