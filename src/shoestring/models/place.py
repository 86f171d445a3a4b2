"""Where a tensor of a model folder stands."""

from __future__ import annotations

from typing import NamedTuple

from shoestring.models.weights import TensorFile, TensorInfo


class Place(NamedTuple):
    """Where a parameter of the decoder stands on disk; the tensor may have another name there than the family's."""

    parameter: str
    file: TensorFile
    tensor: str

    @property
    def info(self) -> TensorInfo:
        return self.file.infos[self.tensor]
