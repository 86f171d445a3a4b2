"""Shards of documents whose tokens 1, 2, 3, ... all differ, two bytes of text for each, written as `prepare` writes
them."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from shoestring.data.preparation.writer import Extent, SplitWriter
from shoestring.data.shards import FORMAT, ShardFolder, index_checksum

SEPARATOR = 0


def made_shards(folder: Path, lengths, per_shard: int = 4, dtype: str = "uint16", compress: int = 0, first: int = 1):
    """lengths: of the training documents, separators not counted. first: their first token."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = SplitWriter(folder, "train", np.dtype(dtype), SEPARATOR, compress, 0, Extent())
    shards = []
    for number, length in enumerate(lengths, 1):
        writer.add(np.arange(first, first + length), 2 * length)
        first += length
        if number % per_shard == 0 or number == len(lengths):
            shards.append(asdict(writer.close()))
    writer.forget()
    index = {"format": FORMAT, "tokenizer": "", "vocabulary": 60_000, "separator": SEPARATOR, "dtype": dtype,
             "compression": "zstd" if compress else None, "shards": shards}  # fmt: skip
    (folder / "index.json").write_text(json.dumps({**index, "sha256": index_checksum(index)}))
    return ShardFolder(folder)
