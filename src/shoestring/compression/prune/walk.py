"""Text through a model on disk, one block in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from shoestring.compression.passage import InMemory, Passage, pass_through
from shoestring.compression.read_block import read_block
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.models.builder import allocate, build
from shoestring.models.config import ModelConfig
from shoestring.models.place import Place
from shoestring.models.weight_files import WeightFiles
from shoestring.offload.ends import DiskEmbedding, StreamedHead
from shoestring.offload.stream import placeholder
from shoestring.train.objective import next_token


def begin(embedding: Place, config: ModelConfig, batches: Sequence[Batch]) -> list[Passage]:
    """Each batch as the first block takes it."""
    if not batches:
        return []
    rotary, passages = build(config, device="meta").rotary, []
    with contextlib.closing(DiskEmbedding(_placeholder(config), embedding)) as rows:
        for batch in batches:
            passage = Passage(batch, rotary, InMemory())
            passage.hidden_BTD = rows(batch.tokens_BT)
            passages.append(passage)
    return passages


@torch.no_grad()
def nats_of(folder: str | Path, batches: Sequence[Batch], what: str) -> float:
    """Nats of all labels of the batches under the dense model in a folder. what: is told meanwhile."""
    if not batches:
        return 0.0
    with WeightFiles(folder) as files, waiting(what, files.config.layers) as told:
        passages = begin(files.places["embedding.weight"], files.config, batches)
        for index in range(files.config.layers):
            pass_through(read_block(files, index), passages)
            told.advance()
        return _ending(files.places, files.config, passages)


def _ending(places: Mapping[str, Place], config: ModelConfig, passages: Sequence[Passage]) -> float:
    norm = build(config, device="meta").norm
    allocate(norm, "cpu")
    places["norm.weight"].file.read_into(places["norm.weight"].tensor, norm.get_parameter("weight"))
    place = places["embedding.weight" if config.tied_head else "head.weight"]
    head = StreamedHead(_placeholder(config), place, config.logit_softcap)
    with contextlib.closing(head.source):
        return sum(float(next_token(norm(passage.hidden_BTD), head, passage.batch).sum) for passage in passages)


def _placeholder(config: ModelConfig) -> nn.Parameter:
    return nn.Parameter(placeholder((config.vocabulary, config.width), torch.float32), requires_grad=False)
