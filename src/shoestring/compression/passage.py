"""Text on its way through the blocks of a model: a batch, and the hidden states that the next block takes.

Hidden states are in memory, or in a file each, which is read and written as a whole: then only one passage's are in
memory at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from shoestring.core.errors import RunError
from shoestring.data.batch import PADDING_SEGMENT, Batch
from shoestring.models.weights import tensor_bytes
from shoestring.nn.context import Context, make_context
from shoestring.nn.rope import RotaryEmbedding


class Kept(Protocol):
    def get(self) -> Tensor: ...
    def put(self, hidden_BTD: Tensor) -> None: ...


MakeKept = Callable[[], Kept]  # for each passage one


class InMemory:
    def __init__(self) -> None:
        self._hidden = torch.empty(0)

    def get(self) -> Tensor:
        return self._hidden

    def put(self, hidden_BTD: Tensor) -> None:
        self._hidden = hidden_BTD


class OnDisk:
    """In float32."""

    def __init__(self, file: Path):
        self._file, self._shape = file, torch.Size([0])

    def get(self) -> Tensor:
        hidden_BTD = torch.empty(self._shape)
        with open(self._file, "rb") as file:
            found = file.readinto(hidden_BTD.view(-1).view(torch.uint8).numpy().data)
        if found != hidden_BTD.numel() * 4:
            raise RunError("hidden states on disk were changed while they are used", str(self._file), "begin anew")
        return hidden_BTD

    def put(self, hidden_BTD: Tensor) -> None:
        self._shape = hidden_BTD.shape
        with open(self._file, "wb") as file:
            file.write(tensor_bytes(hidden_BTD.float()))


@dataclass
class Passage:
    """rotary: of the model. target: what the block that is being learned should give."""

    batch: Batch
    rotary: RotaryEmbedding | None
    kept: Kept
    target: Kept = field(default_factory=InMemory)

    @property
    def hidden_BTD(self) -> Tensor:
        """What the next block takes."""
        return self.kept.get()

    @hidden_BTD.setter
    def hidden_BTD(self, hidden_BTD: Tensor) -> None:
        self.kept.put(hidden_BTD)

    @property
    def context(self) -> Context:
        """Made anew each time: it is small work, and not small for many passages."""
        batch = self.batch
        return make_context(batch.tokens_BT, self.rotary, batch.positions_BT, batch.segments_BT)

    @property
    def there_BT(self) -> Tensor:
        """True where a token is no padding."""
        return self.batch.segments_BT != PADDING_SEGMENT


def inputs_of(block: nn.Module, linear: str, passages: Sequence[Passage]) -> Iterator[Tensor]:
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


def pass_through(block: nn.Module, passages: Sequence[Passage]) -> None:
    """Bring the passages behind the block."""
    for passage in passages:
        passage.hidden_BTD = block(passage.hidden_BTD, passage.context)[0]
