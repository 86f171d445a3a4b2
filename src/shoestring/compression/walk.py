"""The way of text through a model on disk while its blocks are changed, one after another, and written as parts.

What calibrates goes behind the changed blocks, so that each is changed by what it will meet. What measures goes twice:
behind the blocks as they were, and behind the changed ones. Blocks that an earlier run finished are read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from shoestring.compression.ends import begin, nats, outside
from shoestring.compression.passage import MakeKept, Passage, pass_through
from shoestring.compression.read_block import read_block
from shoestring.compression.unfinished import Unfinished
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.models.builder import build
from shoestring.models.families.family import Family
from shoestring.models.weight_files import WeightFiles

Change = Callable[[nn.Module, int, list[Passage], list[Passage], Callable[[], Any]], None]


def change_blocks(
    files: WeightFiles, work: Unfinished, family: Family, calibrating: Sequence[Batch], measuring: Sequence[Batch],
    *, change: Change, read_again: Callable[[int], nn.Module], kept: MakeKept, what: str, linears: int,
    beside: bool = False, seconds: list[float] | None = None,
) -> tuple[float, float]:  # fmt: skip
    """All parts of `work` that are not there yet; its first, what is outside of the blocks, is. -> nats on what
    measures, before and after.

    family: of the tensors that are written. change: a block, by number, in place, by what reaches it in the passages,
    and write it as the next part; told of each linear. beside: whether it wants what calibrates as the model has it
    that is not changed, too, in passages that it brings behind the block; without, there are none. read_again: a block
    that is written. kept: for hidden states. linears: of a block. what: is told meanwhile. seconds: those that each
    changed block took are added to it.
    """
    before, layers, plain = files.places, files.config.layers, build(files.config, device="meta")
    with work.open(0) as ends:
        after = outside(files, family, ends)
        passages = begin(calibrating, plain, after, kept)
        own = begin(calibrating if beside else [], plain, before, kept)
        measured = begin(measuring, plain, before, kept)
        afterwards = begin(measuring, plain, after, kept)
        with waiting(what, linears * layers) as told:
            for index in range(layers):
                done, began = index + 1 < len(work.parts), time.perf_counter()
                if not done or measured or own:
                    block = read_block(files, index)
                    pass_through(block, measured)
                if done:
                    told.found(linears)
                    if not calibrating and not measuring:
                        continue  # no text has to pass it
                    if own:
                        pass_through(block, own)
                    block = read_again(index)
                else:
                    change(block, index, passages, own, told.advance)
                if index < layers - 1:
                    pass_through(block, passages)
                pass_through(block, afterwards)
                if seconds is not None and not done:
                    seconds.append(time.perf_counter() - began)
        return nats(measured, plain, before), nats(afterwards, plain, after)
