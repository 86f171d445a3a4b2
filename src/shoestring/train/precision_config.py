"""Number formats of a run, in a recipe. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shoestring.core.config import Config


class PrecisionConfig(Config):
    """Number formats. Trained weights and the optimizer stay in float32; `compute` is what matmuls run in, `saved` what
    whole models are rounded to when they are written (`train.exact_weights`)."""

    compute: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "float32",
        description="auto: the faster of float32 and bfloat16 on this machine, measured; int8: matmuls of frozen"
        " weights, kept in int8",
    )
    saved: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of models that are written; auto: as in the model that the run began from, else float32"
    )

    @property
    def settled(self) -> Literal["float32", "bfloat16", "int8"]:
        """`compute` of a run that has begun, which knows what `auto` is (`train.precision`)."""
        assert self.compute != "auto"
        return self.compute

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Of everything that is not a matmul in int8."""
        return "float32" if self.settled == "int8" else self.settled
