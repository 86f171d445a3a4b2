"""What a dense model on disk loses on text, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from shoestring.compression.ends import begin, nats
from shoestring.compression.passage import InMemory, MakeKept, pass_through
from shoestring.compression.read_block import read_block
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.models.builder import build
from shoestring.models.weight_files import WeightFiles


@torch.no_grad()
def nats_of(folder: str | Path, batches: Sequence[Batch], what: str, kept: MakeKept = InMemory) -> float:
    """Nats of all labels of the batches. what: is told meanwhile. kept: for hidden states."""
    if not batches:
        return 0.0
    with WeightFiles(folder) as files, waiting(what, files.config.layers) as told:
        plain = build(files.config, device="meta")
        passages = begin(batches, plain, files.places, kept)
        for index in range(files.config.layers):
            pass_through(read_block(files, index), passages)
            told.advance()
        return nats(passages, plain, files.places)
