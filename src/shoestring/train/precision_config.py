"""Number formats of a run, in a recipe. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from shoestring.core.config import Config

Format = Literal["float32", "bfloat16", "float16"]
Compute = Literal["float32", "bfloat16", "float16", "int8"]
TORCHAO = ("tensorwise", "rowwise", "rowwise_with_gw_hp")  # scales from the numbers at hand
TRANSFORMER_ENGINE = ("delayed", "current")


class FP8Config(Config):
    """Products of the blocks' linears in FP8 (arXiv 2209.05433), around them bfloat16. Built by `train.fp8`.

    Embedding and head stay out. Weights, gradients of weights and the optimizer stay in float32.
    """

    recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "current"] = Field(
        "tensorwise",
        description="scales: one a tensor, one a row, or one a row and weight gradients in bfloat16 (torchao); from the"
        " history of largest numbers, or one a tensor (TransformerEngine)",
    )
    history: int = Field(16, gt=0, description="steps whose largest numbers a delayed scale is made from")
    emulate: bool = Field(False, description="round to FP8 and multiply in bfloat16: slow, on any machine, for tests")

    @model_validator(mode="after")
    def _used(self) -> FP8Config:
        if self.recipe != "delayed" and "history" in self.model_fields_set and self.history != 16:
            raise ValueError(f"history is for recipe delayed, and recipe is {self.recipe}")
        if self.emulate and self.recipe in TRANSFORMER_ENGINE:
            raise ValueError(f"emulate is for torchao's recipes ({', '.join(TORCHAO)}), and recipe is {self.recipe}")
        return self


class LossScaleConfig(Config):
    """Of float16, whose smallest gradients would be zero (Mixed Precision Training, arXiv 1710.03740).

    Built by `train.loss_scale`.
    """

    initial: float = Field(65536.0, ge=1, description="what the loss is multiplied by at first")
    growth_steps: int = Field(2000, gt=0, description="steps without an overflow, after which the scale doubles")


def _switched(value: Any) -> Any:
    """true and false, as the setting's name suggests."""
    return ({} if value else None) if isinstance(value, bool) else value


class PrecisionConfig(Config):
    """Number formats. Trained weights and the optimizer stay in float32; `compute` is what matmuls run in, `saved` what
    whole models are rounded to when they are written (`train.exact_weights`)."""

    compute: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="auto: bfloat16 where this machine's products are at least 1.3 times as fast in it, else float32;"
        " float16: with the loss scaled; int8: frozen weights kept in int8, or trained ones rounded for each product",
    )
    around: Format = Field(
        "float32", description="with int8: what the rest is computed in, weight gradients and attention"
    )
    fp8: Annotated[FP8Config | None, BeforeValidator(_switched)] = Field(
        None, description="products of blocks in FP8; true: as it stands; null: none (--no-fp8)"
    )
    compile: bool = Field(False, description="compile the blocks with torch.compile: a minute first, then faster")
    loss_scale: LossScaleConfig = LossScaleConfig()
    saved: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of models that are written; auto: as in the model that the run began from, else float32"
    )

    @model_validator(mode="after")
    def _possible(self) -> PrecisionConfig:
        if self.fp8 is not None and self.compute not in ("auto", "bfloat16"):
            raise ValueError(f"fp8 has bfloat16 around it, and compute is {self.compute}: leave one of them out")
        if self.loss_scale != LossScaleConfig() and self.compute != "float16":
            raise ValueError(f"loss_scale is for compute float16, and compute is {self.compute}")
        if self.around != "float32" and self.compute != "int8":
            raise ValueError(f"around is for compute int8, and compute is {self.compute}")
        if self.around == "float16":
            raise ValueError("around is float32 or bfloat16: int8's gradients have no scaled loss")
        if self.compile and self.compute == "int8":
            raise ValueError("compile and compute int8 exclude each other: int8's products are no graph of torch's")
        return self

    @property
    def settled(self) -> Compute:
        """`compute` of a run that has begun, which knows what `auto` is (`train.precision`)."""
        assert self.compute != "auto"
        return self.compute

    @property
    def dtype(self) -> Format:
        """Of everything that is not a matmul in int8."""
        return self.around if self.settled == "int8" else self.settled
