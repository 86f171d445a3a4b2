"""One round: a model folder in, the same with weights made zero or parts taken out, block by block.

A block is read, pruned by what the pruned ones before it give, and written beside the folder that will be
(`compression.unfinished`), so that a run that was stopped goes on behind the last whole block. The pass that chooses
layers and width comes first, and stands in the journal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration
from shoestring.compression.ends import begin
from shoestring.compression.passage import MakeKept, Passage, pass_through
from shoestring.compression.prune.masks import Mask, mask_block
from shoestring.compression.prune.parts import prune_block
from shoestring.compression.prune.shape import Shape
from shoestring.compression.prune.survey import Kept, moments_behind_norms, survey
from shoestring.compression.quantize.config import LINEARS
from shoestring.compression.read_block import check_finite, read_block
from shoestring.compression.tensor_stream import Streamed, join, rows_of
from shoestring.compression.unfinished import Unfinished
from shoestring.core import matmul
from shoestring.core.errors import ModelFileError
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.models.builder import allocate, build, build_block
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import family_of
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import read_generation_config, rounded_to, write_configs
from shoestring.models.place import Place
from shoestring.models.resolve import Say
from shoestring.models.weight_files import WeightFiles


@dataclass(frozen=True)
class Step:
    """What a round does: make weights zero by a mask, or reach a shape. fit: whether matrices make up for inputs that
    they lose. dtype: of all that is written; None: as the model has it."""

    mask: Mask | None
    shape: Shape
    fit: bool
    dtype: torch.dtype | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "dtype": str(self.dtype)}


class Round:
    """files: of the model before. batches: of calibration text, none where nothing is chosen by it."""

    def __init__(
        self, files: WeightFiles, folder: Path, step: Step, text: Calibration | None, batches: Sequence[Batch]
    ):
        self.files, self.folder, self.step, self.text, self.batches = files, folder, step, text, batches
        self.before: ModelConfig = files.config
        self.config = step.shape.applied(files.config)
        self.family = family_of(self.config)

    def made_of(self) -> dict[str, Any]:
        """All that decides what is written."""
        return {
            "weights": Fingerprint.of([file.path for file in self.files.files]).digest,
            "config": self.before.model_dump(mode="json"),
            "step": self.step.to_json(),
            "text": None if self.text is None else self.text.digest(),
            "batches": len(self.batches),
            "threads": torch.get_num_threads(),
        }

    @torch.no_grad()
    def run(self, work: Unfinished, say: Say | None, what: str, states: MakeKept) -> None:
        """All parts that are not there yet. what: is told meanwhile. states: where hidden ones are."""
        if not matmul.TABLE.adopt(work.libraries) and work.parts and say is not None:
            say(matmul.OTHER_MACHINE)
        if not work.parts:
            self._write_ends(work, survey(self.files, self.batches, self.step.shape, states))
        kept = self.kept(work)
        linears = len(LINEARS)
        with work.open(0) as ends:
            place = Place("", ends, self.family.tensor_name("embedding.weight"))
            passages = begin(self.batches, build(self.config, device="meta"), {"embedding.weight": place}, states)
            whole = self._whole(kept, states)
            with waiting(what, linears * len(kept.layers)) as told:
                for number, index in enumerate(kept.layers):
                    behind_norms = whole(index)
                    if number + 1 < len(work.parts):
                        told.found(linears)
                        block = self._read_again(work, number) if passages else None
                    else:
                        block = self._prune(work, number, index, kept, passages, behind_norms, told.advance)
                    if block is not None and number + 1 < len(kept.layers):
                        pass_through(block, passages)

    def _whole(self, kept: Kept, states: MakeKept) -> Callable[[int], dict[str, Tensor]]:
        """Takes the text through the model before, up to and with block `index`; -> second moments behind its norms.
        Nothing, and no work, where no width goes that is to be made up for."""
        if kept.width is None or not self.step.fit:
            return lambda index: {}
        passages, following = begin(self.batches, build(self.before, device="meta"), self.files.places, states), 0

        def up_to(index: int) -> dict[str, Tensor]:
            nonlocal following
            for skipped in range(following, index):
                pass_through(read_block(self.files, skipped), passages)
            following = index + 1
            return moments_behind_norms(read_block(self.files, index), passages)

        return up_to

    @staticmethod
    def kept(work: Unfinished) -> Kept:
        """What the first pass chose."""
        said = work.parts[0]["kept"]
        width = None if said["width"] is None else tuple(said["width"])
        return Kept(tuple(said["layers"]), width, said["scale"], tuple(said["influence"]))

    def finish(self, work: Unfinished, folder: Path) -> int:
        """The weights and configs of the folder, without a tokenizer; -> bytes of its weights."""
        write_configs(folder, self.config, self._dtype("embedding.weight"), read_generation_config(self.folder))
        with work.all() as parts:
            found = sum(info.elements for part in parts for info in part.infos.values())
            assert found == self.config.parameter_count(), (found, self.config)
            return join(parts, folder)

    # --- parts -----------------------------------------------------------------------------------------------

    def _write_ends(self, work: Unfinished, kept: Kept) -> None:
        width_D = None if kept.width is None else torch.tensor(kept.width)
        tensors = []
        for name, place in self.files.places.items():
            if not name.startswith("blocks."):
                shape = (*place.info.shape[:-1], self.config.width)
                rows = functools.partial(self._rows, place, width_D, kept.scale.get(name.removesuffix(".weight"), 1.0))
                tensors.append(Streamed(self.family.tensor_name(name), self._dtype(name), shape, rows))
        work.add(tensors, kept=asdict(kept))

    def _rows(self, place: Place, width_D: Tensor | None, scale: float) -> Any:
        """A tensor outside of the blocks, some rows after others, in the components that are kept."""
        for rows in rows_of(place.file, place.tensor):
            check_finite(rows, place)
            if width_D is not None:
                rows = rows[..., width_D]
            if scale != 1.0:
                rows = rows.float() * scale
            yield rounded_to(place.parameter, rows, self._dtype(place.parameter))

    def _prune(
        self, work: Unfinished, number: int, index: int, kept: Kept, passages: Sequence[Passage],
        behind_norms: dict[str, Tensor], done: Any,
    ) -> nn.Module:  # fmt: skip
        """Block `index` of the model becomes block `number`."""
        block, said = read_block(self.files, index), {}
        if self.step.mask is not None:
            said["zeros"] = mask_block(block, self.step.mask, passages, done)
        else:
            block, said = prune_block(
                block, index, self.before, self.step.shape, kept, passages, self.step.fit, behind_norms
            )
            done(len(LINEARS))
        tensors = []
        for name, parameter in block.named_parameters():
            before = f"blocks.{index}.{name}"
            rounded = rounded_to(before, parameter.detach(), self._dtype(before))
            parameter.copy_(rounded)
            if not bool(parameter.isfinite().all()):
                raise ModelFileError(f"{before} is beyond numbers once it is pruned", str(self.folder))
            tensors.append(_whole(self.family.tensor_name(f"blocks.{number}.{name}"), rounded))
        work.libraries = matmul.TABLE.choices()
        work.add(tensors, layer=index, **said)
        return block

    def _read_again(self, work: Unfinished, number: int) -> nn.Module:
        """A block as an earlier run left it."""
        with torch.device("meta"):
            block = build_block(self.config)
        allocate(block, "cpu")
        with work.open(number + 1) as file:
            for name, parameter in block.named_parameters():
                file.read_into(self.family.tensor_name(f"blocks.{number}.{name}"), parameter)
        return block.requires_grad_(False).eval()

    def _dtype(self, name: str) -> torch.dtype:
        return self.step.dtype or self.files.places[name].info.dtype


def _whole(name: str, tensor: Tensor) -> Streamed:
    return Streamed(name, tensor.dtype, tuple(tensor.shape), lambda: [tensor])
