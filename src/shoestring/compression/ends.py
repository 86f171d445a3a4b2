"""What stands before and behind the blocks of a model on disk: the embedding that text begins with, the norm and the
head that measure it. None of them is in memory as a whole."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.passage import InMemory, MakeKept, Passage
from shoestring.compression.read_block import check_finite
from shoestring.compression.report import Decoding, Measured
from shoestring.compression.tensor_stream import Streamed, rows_of
from shoestring.data.batch import Batch
from shoestring.models.builder import allocate
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.family import Family
from shoestring.models.folder import rounded_to
from shoestring.models.place import Place
from shoestring.models.rounded_rows import ENDS, rounded_rows, scale_names, take_rounded
from shoestring.models.weight_files import WeightFiles
from shoestring.models.weights import TensorFile
from shoestring.offload.ends import DiskEmbedding, StreamedHead
from shoestring.offload.stream import placeholder
from shoestring.train.objective import next_token

_TOGETHER = 1 << 20  # numbers rounded at a time


def begin(
    batches: Sequence[Batch], plain: Decoder, ends: Mapping[str, Place], kept: MakeKept = InMemory
) -> list[Passage]:
    """Each batch as the first block takes it. plain: the model on the meta device. kept: for hidden states."""
    passages = []
    if batches:
        with contextlib.closing(DiskEmbedding(_placeholder(plain.config), ends["embedding.weight"])) as embedding:
            for batch in batches:
                passage = Passage(batch, plain.rotary, kept())
                passage.hidden_BTD = embedding(batch.tokens_BT)
                passages.append(passage)
    return passages


def nats(passages: Sequence[Passage], plain: Decoder, ends: Mapping[str, Place]) -> float:
    """The loss, summed, of what the last block gave."""
    if not passages:
        return 0.0
    with ending(plain, ends) as (norm, head):
        return sum(float(next_token(norm(passage.hidden_BTD), head, passage.batch).sum) for passage in passages)


@contextlib.contextmanager
def ending(plain: Decoder, ends: Mapping[str, Place]) -> Iterator[tuple[nn.Module, StreamedHead]]:
    """The norm, frozen, and the head."""
    config, norm = plain.config, plain.norm.requires_grad_(False)
    allocate(norm, "cpu")
    place = ends["norm.weight"]
    place.file.read_into(place.tensor, norm.get_parameter("weight"))
    place = ends["embedding.weight" if config.tied_head else "head.weight"]
    head = StreamedHead(_placeholder(config), place, config.logit_softcap)
    with contextlib.closing(head.source):
        yield norm, head


def measured_on(
    text: Calibration | None, weight_bytes: int, nats: float, decoding: Decoding | None = None
) -> Measured:
    """nats: the loss on the held-out part of the text, summed."""
    if text is None:
        return Measured(weight_bytes, None, None, decoding)
    bits = nats / math.log(2) / text.label_bytes if text.label_bytes else None
    return Measured(weight_bytes, nats / max(text.labels, 1), bits, decoding)


def copied(
    places: Mapping[str, Place], family: Family, dtype_of: Callable[[str], torch.dtype],
    rounded: torch.dtype | None = None,
) -> list[Streamed]:  # fmt: skip
    """All that is outside the blocks, under the names that the family has for it, to be written in these formats.
    rounded: of scales, where embedding and head are to be in 8 bits."""
    found = []
    for name, place in places.items():
        end, dtype = name.removesuffix(".weight"), dtype_of(name)
        if rounded is not None and end in ENDS:
            found += _in_8_bits(end, place, family, rounded, tied="head.weight" not in places)
        elif not name.startswith("blocks."):
            pieces = functools.partial(_rows, place, dtype)
            found.append(Streamed(family.tensor_name(name), dtype, place.info.shape, pieces))
    return found


def outside(files: WeightFiles, family: Family, written: TensorFile) -> dict[str, Place]:
    """What `copied` wrote: all that is outside the blocks, by the decoder's names."""
    where = {name: Place("", written, name) for name in written.infos}
    take_rounded(family, files.config.tied_head, where)
    names = [name for name in files.places if not name.startswith("blocks.")]
    return {name: where[family.tensor_name(name)]._replace(parameter=name) for name in names}


def _in_8_bits(end: str, place: Place, family: Family, scale: torch.dtype, tied: bool) -> list[Streamed]:
    def made() -> Iterator[tuple[Tensor, Tensor]]:
        together = max(_TOGETHER // place.info.shape[1], 1)
        for rows in rows_of(place.file, place.tensor):
            check_finite(rows, place)
            for part in rows.split(together):
                yield rounded_rows(part.float(), scale)

    def codes() -> Iterator[Tensor]:
        return (codes for codes, _ in made())

    def scales() -> Iterator[Tensor]:
        return (scales for _, scales in made())

    name, count = family.tensor_name(f"{end}.weight"), place.info.shape[0]
    beside = [Streamed(each, scale, (count, 1), scales) for each in scale_names(family, end, tied)]
    return [Streamed(name, torch.int8, place.info.shape, codes), *beside]


def _rows(place: Place, dtype: torch.dtype) -> Iterable[Tensor]:
    """A tensor, some rows after others. Raises ModelFileError for NaN and infinity."""
    for rows in rows_of(place.file, place.tensor):
        check_finite(rows, place)
        yield rounded_to(place.parameter, rows, dtype)


def _placeholder(config: ModelConfig) -> nn.Parameter:
    return nn.Parameter(placeholder((config.vocabulary, config.width), torch.float32), requires_grad=False)
