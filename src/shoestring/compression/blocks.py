"""One block at a time: read, quantized by what reaches its linears, and left, with text on its way through all of them.

A linear's calibration inputs are those that the model makes whose linears before it, in the same block too, are
quantized already: query, key and value first, then output, then gate and up, then down. Between them a block runs no
further than to the linear that is asked for, so in all it computes little more than two passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.config import Method
from shoestring.compression.gptq import Hessian, Rounded, gptq, to_nearest
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.data.batch import PADDING_SEGMENT, Batch
from shoestring.models.builder import allocate, build_block
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.models.place import Place
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.context import Context
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.packed import PackedLinear, check_groups, round_rows

# Linears that share their inputs, in the order in which they run.
STAGES = (
    ("attention.query", "attention.key", "attention.value"),
    ("attention.output",),
    ("feed_forward.gate", "feed_forward.up"),
    ("feed_forward.down",),
)
_TOGETHER = 1 << 22  # numbers looked at at a time
LINEARS = tuple(name for stage in STAGES for name in stage)


@dataclass
class Passage:
    """Text on its way through the blocks: hidden_BTD is what the next one takes."""

    batch: Batch
    context: Context
    hidden_BTD: Tensor

    @property
    def there_BT(self) -> Tensor:
        """True where a token is no padding."""
        return self.batch.segments_BT != PADDING_SEGMENT


def check_model(config: ModelConfig, packed: PackedConfig, where: str) -> None:
    """Raises ModelFileError for kinds that are not quantized here, ConfigError for groups that do not fit."""
    if dense_parts(config) is None:
        raise ModelFileError(
            "only models with grouped-query attention, SwiGLU and rotary positions in every layer can be quantized",
            where, "Llama, Qwen2 and Qwen3 are such models",
        )  # fmt: skip
    with torch.device("meta"):
        block = build_block(config)
    for name in LINEARS:
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        try:
            check_groups(linear.in_features, packed)
        except ConfigError as error:
            raise ConfigError(f"{error.message} ({name})", hint=error.hint) from error


def read_block(files: WeightFiles, index: int) -> nn.Module:
    """Its weights in float32. Raises ModelFileError for NaN and infinity."""
    with torch.device("meta"):
        block = build_block(files.config, index)
    allocate(block, "cpu")
    for name, parameter in block.named_parameters():
        place = files.places[f"blocks.{index}.{name}"]
        place.file.read_into(place.tensor, parameter)
        place.file.forget(place.tensor)
        check_finite(parameter, place)
    return block.requires_grad_(False).eval()


def check_finite(tensor: Tensor, place: Place) -> None:
    """Raises ModelFileError for NaN and infinity."""
    if not all(bool(torch.isfinite(part).all()) for part in tensor.detach().view(-1).split(_TOGETHER)):
        raise ModelFileError(
            f"tensor {place.tensor} holds NaN or infinity", str(place.file.path),
            "the model is broken: fetch it again, or train it again",
        )  # fmt: skip


def quantize_block(
    block: nn.Module,
    passages: list[Passage],
    config: PackedConfig,
    method: Method,
    damping: float,
    done: Callable[[], Any],
) -> dict[str, Rounded]:
    """Replace the block's linears by packed ones, in place; -> what each became. done: called after each linear."""
    found = {}
    for stage in STAGES:
        hessian = None
        if method == "gptq":
            hessian = Hessian(block.get_submodule(stage[0]).in_features)  # type: ignore[arg-type]
            for x_NI in inputs_of(block, stage[0], passages):
                hessian.add(x_NI if config.activations is None else round_rows(x_NI))
        for name in stage:
            linear: Any = block.get_submodule(name)
            if hessian is None:
                rounded = to_nearest(linear.weight, config)
            else:
                rounded = gptq(linear.weight, hessian.sum_II, config, damping)
            parent, _, last = name.rpartition(".")
            packed = PackedLinear.of(rounded.codes_OI, rounded.grid, config, linear.bias)
            setattr(block.get_submodule(parent), last, packed.eval())
            found[name] = rounded
            done()
    return found


def inputs_of(block: nn.Module, linear: str, passages: list[Passage]) -> Iterator[Tensor]:
    """What reaches a linear of the block in each passage, [N, I], padding left out. The block runs no further."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])
        raise _Enough

    handle = block.get_submodule(linear).register_forward_pre_hook(catch)
    try:
        for passage in passages:
            with contextlib.suppress(_Enough):
                block(passage.hidden_BTD, passage.context)
            yield caught.pop()[passage.there_BT]
    finally:
        handle.remove()


class _Enough(Exception):
    """What was asked for is there."""


def pass_through(block: nn.Module, passages: list[Passage]) -> None:
    """Bring the passages behind the block."""
    for passage in passages:
        passage.hidden_BTD = block(passage.hidden_BTD, passage.context)[0]
