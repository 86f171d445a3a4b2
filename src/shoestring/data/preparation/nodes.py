"""Preparation on several machines: an engine runs the encoding of files anywhere, one process writes the shards.

datatrove's executors (local, Slurm, Ray) run tasks, keep their logs and do not run again what is done. It was chosen
before Ray Data: its releases are about preparing text, its local executor needs no cluster, and it is a tenth of
Ray's size. What a task encodes goes into the folder of the shards, which all machines must see.
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoestring.core.errors import DataError
from shoestring.core.extras import need
from shoestring.core.files import atomic_folder
from shoestring.data.preparation.encoding import Encoder
from shoestring.data.preparation.parts import PARTS, part_batches, write_part
from shoestring.data.prepare import Settings, id_dtype, prepare_source
from shoestring.data.quality.review import examine
from shoestring.data.shards import ShardFolder, is_shard_folder
from shoestring.data.sources import Source
from shoestring.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Work:
    """What every node is told: plain values, so that an engine can send them. tokenizer: a folder."""

    source: str
    tokenizer: str
    out: str
    text_field: str | None
    validation: float
    on_bad_line: Literal["stop", "skip"]
    settings: Settings

    def opened(self) -> Source:
        return Source(self.source, self.text_field, self.validation, self.on_bad_line)


def encode_share(work: Work, rank: int, world: int) -> None:
    """The files whose number leaves `rank` when divided by `world`."""
    source, tokenizer = work.opened(), Tokenizer.load(work.tokenizer)
    encoder = Encoder(tokenizer, id_dtype(tokenizer))
    examined = functools.partial(examine, config=work.settings.quality)
    workers = work.settings.workers or os.cpu_count() or 1
    for number in range(rank, len(source.files), world):
        write_part(source, number, encoder, examined, Path(work.out), workers)


def pipeline(work: Work) -> list[Any]:
    """The step for any of datatrove's executors; with `tasks=W` it is run for ranks 0 … W − 1."""
    need("datatrove", "preparation on several nodes", "data")
    from datatrove.pipeline.base import PipelineStep

    class Encode(PipelineStep):
        name = "shoestring: encode"

        def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
            encode_share(work, rank, world_size)
            return data

    return [Encode()]


def write_from_parts(work: Work) -> ShardFolder:
    """The shards, once every node has come to its end. Raises DataError where one has not."""
    source = work.opened()
    batches = functools.partial(part_batches, source, Path(work.out))
    shards = prepare_source(source, Tokenizer.load(work.tokenizer), work.out, work.settings, batches)
    for done in Path(work.out).glob(f"{PARTS}*"):
        shutil.rmtree(done)
    return shards


def prepare_on_nodes(
    source: str | Path,
    tokenizer: Tokenizer,
    out: str | Path,
    nodes: int,
    text_field: str | None = None,
    validation: float = 0.05,
    on_bad_line: Literal["stop", "skip"] = "stop",
    settings: Settings | None = None,
) -> ShardFolder:
    """All of it on this machine, in so many processes: as a cluster would do it. Raises DataError where one failed."""
    folder = Path(out) / "tokenizer"
    work = Work(str(source), str(folder), str(out), text_field, validation, on_bad_line, settings or Settings())
    steps = pipeline(work)
    from datatrove.executor.local import LocalPipelineExecutor

    if not is_shard_folder(out):
        with atomic_folder(folder, replace=True) as new:
            tokenizer.save(new)
        logs = Path(out) / f"{PARTS}-logs"
        try:
            LocalPipelineExecutor(steps, tasks=nodes, workers=nodes, logging_dir=str(logs)).run()
        except Exception as error:  # what a task raised, as its process told it
            last = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise DataError(f"a node failed: {last}", str(out), f"its log is in {logs}") from error
    return write_from_parts(work)
