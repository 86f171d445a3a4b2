"""From a model folder to the part of the model that this process holds: nothing else is read or given memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError
from shoestring.models.builder import allocate, build, initialize
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import read_config
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import load_model
from shoestring.models.weight_files import WeightFiles
from shoestring.models.weights import TensorFile
from shoestring.nn.config import block_order
from shoestring.nn.quantized.config import Int8Config
from shoestring.nn.quantized.int8_head import Int8Head
from shoestring.offload.config import StoreFormat
from shoestring.offload.ends import DiskEmbedding
from shoestring.offload.head_store import open_head
from shoestring.offload.model import compute_in, open_streamed_head, settle, stand_in, unstreamed
from shoestring.offload.pipeline.model import SplitDecoder, settle_head, split_off
from shoestring.offload.pipeline.parts import StreamedPart
from shoestring.offload.pipeline.place import Place
from shoestring.offload.pipeline.wire import Wire
from shoestring.offload.stack import StreamedStack
from shoestring.offload.store import Store, empty_block, open_store
from shoestring.offload.stream import LayerStream
from shoestring.train.exact_weights import read_exact


def load_part(
    folder: str | Path,
    place: Place,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantized: Config | None = None,
    trained: bool = False,
    say: Callable[[str], Any] | None = None,
) -> SplitDecoder:
    """The layers at `place` of the model in a folder, in memory, as `models.folder.load_model` reads them. The folder
    may have these alone.

    trained: whether every weight is to be, which decides where a tied matrix lies. An embedding that is not stays on
    disk, from which rows are read; a head that multiplies integers has its copy in int8, in the cache, read as it is.
    Raises ConfigError for a model that cannot be split, and what `load_model` raises.
    """
    wire, held = Wire(device), place.holds(read_config(folder), trained)
    integers = place.is_last and quantized == Int8Config(compute="int8")

    def part(whole: Decoder) -> SplitDecoder:
        return split_off(whole, place, wire, trained, embedded=trained, headed=not integers)

    found = load_model(folder, device, dtype, quantized, part=part, held=held)
    assert isinstance(found, SplitDecoder)
    with WeightFiles(folder, packed=True, held=held) as files:
        if place.is_first and not trained:
            stand_in_for = stand_in(found.config, dtype, device)
            found.embedding = DiskEmbedding(stand_in_for, files.places["embedding.weight"])
        if integers:
            source = Fingerprint.of([file.path for file in files.files])
            name = "embedding.weight" if found.config.tied_head else "head.weight"
            with TensorFile(open_head(files.places[name], source, say).path) as head:
                codes, scale = (head.read(name).to(device) for name in ("codes", "scale"))
            found.head = Int8Head(codes, scale, found.config.logit_softcap)
    return settle_head(found)


@torch.no_grad()
def load_trained_part(folder: Path, place: Place, device: torch.device | str = "cpu") -> SplitDecoder:
    """The layers at `place` of a folder in float32, every weight to be trained; of a checkpoint, as they were."""
    part = load_part(folder, place, device, torch.float32, trained=True)
    read_exact(part, folder)
    return part


def fresh_part(config: ModelConfig, place: Place, seed: int, device: torch.device | str = "cpu") -> SplitDecoder:
    """The layers at `place` of a fresh model, with the weights that they have in a whole one of this seed."""
    part = split_off(build(config, device="meta"), place, Wire(device), trained=True)
    allocate(part, device)
    initialize(part, seed, build(config, device="meta"))
    return settle_head(part)


def open_streamed_part(
    folder: str | Path,
    place: Place,
    weights: StoreFormat = "source",
    slots: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prefetch: bool = True,
    say: Callable[[str], Any] | None = None,
    compute: Literal["float", "int8"] = "float",
    keeps: int = 0,
) -> SplitDecoder:
    """The layers at `place`, streamed from disk through `slots` buffers as `offload.model.open_streamed` does, with
    embedding and head on disk too. keeps: the last of them keep what they computed until it goes backward. Raises
    ConfigError for what cannot be, and what `open_streamed` raises."""
    config = read_config(folder)
    own = place.blocks(block_order(config.layers, config.sharing))
    store = open_store(folder, weights, say, own, place.holds(config, trained=False))
    try:
        if refused := unstreamed(store.config):
            raise ConfigError(f"a model with {refused[0]} cannot be streamed layer by layer")
        integers = compute == "int8" and store.format == "int8"
        decoder = _assemble(store, place, slots, device, dtype, prefetch, integers, say, keeps)
    except BaseException:
        store.close()
        raise
    compute_in(decoder, compute, dtype)
    return decoder


def _assemble(
    store: Store, place: Place, slots: int, device: torch.device | str, dtype: torch.dtype, prefetch: bool,
    integers: bool, say: Callable[[str], Any] | None, keeps: int,
) -> SplitDecoder:  # fmt: skip
    config, wire = store.config, Wire(device)
    whole = build(config, device="meta", dtype=dtype)
    part = StreamedPart(config, place)
    own = place.blocks(part.order)
    names = {piece.name for piece in store.layers[0]}
    for index in own:
        whole.blocks[index] = empty_block(config, index, store.format, store.packed)
        settle(whole.blocks[index], f"blocks.{index}.", names, store, device, dtype)
    if place.is_first:
        whole.embedding = DiskEmbedding(stand_in(config, dtype, device), store.files.places["embedding.weight"])
        settle(nn.ModuleDict({"inputs": whole.inputs}), "", set(), store, device, dtype)
    if place.is_last:
        settle(nn.ModuleDict({"norm": whole.norm}), "", set(), store, device, dtype)
        whole.head = open_streamed_head(store, stand_in(config, dtype, device), integers, say)
    blocks = nn.ModuleList(whole.blocks[index] for index in own)
    stream = LayerStream(store, blocks, slots, dtype, device, prefetch)
    order = tuple(own.index(part.order[position]) for position in part.positions)
    part.read_from(StreamedStack(order, stream, place.first, keeps), blocks)
    decoder = split_off(whole, place, wire, trained=False, part=part)
    decoder.stream = stream
    return settle_head(decoder.requires_grad_(False)).eval()
