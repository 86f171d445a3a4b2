"""A decoder that is larger than memory: base weights stay on disk, adapters, norms and biases in memory.

It is an ordinary `Decoder`: adapters attach to it, any torch optimizer trains them, `LanguageModel` decodes with it.
Only one block at a time has its weights; the others have placeholders.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import read_config
from shoestring.nn.config import FactorizedConfig, block_order
from shoestring.nn.quantized.int8 import Int8Linear
from shoestring.nn.quantized.packed import PackedLinear
from shoestring.offload.config import StoreFormat
from shoestring.offload.ends import DiskEmbedding, StreamedHead, StreamedInt8Head
from shoestring.offload.head_store import open_head
from shoestring.offload.stack import StreamedStack
from shoestring.offload.store import Store, empty_block, open_store
from shoestring.offload.stream import LayerStream, placeholder


class StreamedDecoder(Decoder):
    """Made by `open_streamed`. `stream` loads blocks, `stack` says when."""

    stream: LayerStream
    stack: StreamedStack
    head: StreamedHead | StreamedInt8Head
    embedding: DiskEmbedding

    @contextlib.contextmanager
    def present(self, index: int) -> Iterator[nn.Module]:
        """Inside, block `index` has its weights."""
        self.stream.load(index)
        yield self.blocks[index]

    @property
    def waited(self) -> float:
        """Seconds that computing has waited for the disk so far."""
        return self.stream.waited + self.head.source.waited

    def close(self) -> None:
        """End the reading threads and close the files."""
        self.stream.close()
        self.head.source.close()
        self.embedding.close()


def open_streamed(
    folder: str | Path,
    weights: StoreFormat = "source",
    slots: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prefetch: bool = True,
    say: Callable[[str], Any] | None = None,
    compute: Literal["float", "int8"] = "float",
) -> StreamedDecoder:
    """The model in a folder, its layers streamed through `slots` buffers, everything frozen.

    weights: how layers are kept on disk; formats that the folder does not have are made once, in the cache. dtype: that
    dense weights are used in. compute: "int8" runs the products of int8 weights in integers. Raises ModelFileError
    (broken, changed or unsupported models), RunError (full disk).
    """
    if refused := unstreamed(read_config(folder)):
        raise ModelFileError(f"a model with {refused[0]} cannot be streamed layer by layer", str(folder))
    store = open_store(folder, weights, say)
    try:
        integers = compute == "int8" and store.format == "int8"
        decoder = _assemble(store, slots, device, dtype, prefetch, integers, say)
    except BaseException:
        store.close()
        raise
    compute_in(decoder, compute, dtype)
    return decoder


def compute_in(root: nn.Module, compute: Literal["float", "int8"], dtype: torch.dtype) -> None:
    """How quantized linears multiply. dtype: what they are made dense in."""
    for module in root.modules():
        if isinstance(module, Int8Linear):
            module.compute = compute
        elif isinstance(module, PackedLinear):
            module.dense_dtype = dtype


def unstreamed(config: ModelConfig) -> list[str]:
    """In words, what keeps a model from being streamed; empty where nothing does."""
    refused = {
        f"{config.block} blocks": config.block != "sequential",
        "a memory bank": config.memory is not None,
        "value residuals": config.value_residual,
        "a convolution over the embedding": config.embedding_convolution is not None,
        "matrices of a rank of their own in each layer": isinstance(config.linear, FactorizedConfig),
    }
    return [kind for kind, is_there in refused.items() if is_there]


def _assemble(
    store: Store, slots: int, device: torch.device | str, dtype: torch.dtype, prefetch: bool, integers: bool,
    say: Callable[[str], Any] | None,
) -> StreamedDecoder:
    config, places = store.config, store.files.places
    plain = build(config, device="meta", dtype=dtype)
    blocks = nn.ModuleList(
        empty_block(config, index, store.format, store.packed) for index in range(config.unique_layers)
    )
    stream_names = {piece.name for piece in store.layers[0]}
    for index, block in enumerate(blocks):
        settle(block, f"blocks.{index}.", stream_names, store, device, dtype)
    outside = nn.ModuleDict({"inputs": plain.inputs, "norm": plain.norm})
    settle(outside, "", set(), store, device, dtype)
    weight = stand_in(config, dtype, device)
    head = open_streamed_head(store, weight if config.tied_head else stand_in(config, dtype, device), integers, say)
    stream = LayerStream(store, blocks, slots, dtype, device, prefetch)
    stack = StreamedStack(tuple(block_order(config.layers, config.sharing)), stream)
    decoder = StreamedDecoder(
        config,
        embedding=DiskEmbedding(weight, places["embedding.weight"]),
        mix=plain.mix,
        inputs=dict(plain.inputs.items()),
        blocks=list(blocks),
        stack=stack,
        norm=plain.norm,
        head=head,
        rotary=plain.rotary,
        make_cache=plain._make_cache,
    )
    decoder.stream, decoder.stack = stream, stack
    return decoder.requires_grad_(False).eval()


def stand_in(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    """In the place of an embedding's or a head's weight that is on disk."""
    return nn.Parameter(placeholder((config.vocabulary, config.width), dtype, device), requires_grad=False)


def open_streamed_head(
    store: Store, weight: nn.Parameter, integers: bool, say: Callable[[str], Any] | None
) -> StreamedHead | StreamedInt8Head:
    """weight: its stand-in. integers: whether its products are of those."""
    config = store.config
    place = store.files.places["embedding.weight" if config.tied_head else "head.weight"]
    if integers:
        return StreamedInt8Head(open_head(place, store.source, say), weight.device, config.logit_softcap)
    return StreamedHead(weight, place, config.logit_softcap)


def settle(
    root: nn.Module, prefix: str, streamed: set[str], store: Store, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Placeholder tensors for what is streamed; everything else read from the model's files."""
    for module_name, module in root.named_modules():
        own: list[tuple[dict[str, Any], bool]] = [(module._parameters, True), (module._buffers, False)]
        for table, is_parameter in own:
            for last, old in table.items():
                if old is None:
                    continue
                name = f"{module_name}.{last}" if module_name else last
                if name in streamed:
                    kept = dtype if is_parameter else old.dtype
                    new = placeholder(old.shape, kept, device)
                else:
                    new = torch.empty(old.shape, dtype=dtype, device=device)
                    place = store.files.places[prefix + name]
                    place.file.read_into(place.tensor, new)
                table[last] = nn.Parameter(new, requires_grad=False) if is_parameter else new
