"""How weights are moved, in a recipe: `optimizer.kind` and what each kind takes. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config, usual_kind
from shoestring.plan.shapes import Moving

Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class AnyOptimizerConfig(Config):
    """What every kind has. Built by `train.optimizer.build_optimizer`."""

    in_backward: bool = Field(
        False,
        description="move each weight as soon as its gradient is there, and free that: for steps of one microbatch"
        " in one process, with train.clip null",
    )


class AdamWConfig(AnyOptimizerConfig):
    """AdamW (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="on matrices only; norms and biases are not decayed")
    state: Literal["float32", "8bit"] = Field(
        "float32", description="of both moments; 8bit takes a quarter of the memory (arXiv 2110.02861)"
    )
    scaling: Literal["none", "mup"] = Field(
        "none",
        description="mup: rates and fresh weights by model.width over base_width, so that rates found at that width"
        " hold (arXiv 2203.03466)",
    )
    base_width: int | None = Field(None, gt=0, description="of scaling mup: the width for which the rates are meant")

    @model_validator(mode="after")
    def _base(self) -> AdamWConfig:
        if (self.scaling == "mup") != (self.base_width is not None):
            raise ValueError("scaling mup and base_width, the width for which the rates are meant, go together")
        return self


class BesideMuonConfig(Config):
    """AdamW for what Muon does not move: embedding, head, positions, norms and biases."""

    learning_rate: float = Field(3e-4, gt=0)
    embedding_learning_rate: float | None = Field(None, gt=0, description="of the token embedding; null: as the others")
    head_learning_rate: float | None = Field(
        None, gt=0, description="of a head that is not the embedding; null: as the others"
    )
    betas: Betas = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="on embedding, head and positions; norms and biases not")


class MuonConfig(AnyOptimizerConfig):
    """Muon for the matrices in blocks (`train.muon`), AdamW for everything else."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(0.02, gt=0, description="of the matrices in blocks; 3e-4 if scaling is rms")
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    scaling: Literal["spectral", "rms"] = Field(
        "spectral",
        description="steps times sqrt(max(1, outputs / inputs)); or 0.2 sqrt(the larger), as long as AdamW's, so that"
        " one learning rate serves both",
    )
    weight_decay: float = Field(0.1, ge=0, description="on the matrices in blocks")
    cautious: bool = Field(False, description="decay only where the step goes towards zero anyway (arXiv 2510.12402)")
    iterations: int = Field(5, gt=0, le=30, description="of Newton-Schulz")
    coefficients: tuple[float, float, float] = Field((3.4445, -4.7750, 2.0315), description="a s + b s^3 + c s^5")
    adamw: BesideMuonConfig = BesideMuonConfig()

    @model_validator(mode="before")
    @classmethod
    def _rate_of_adamw(cls, values: Any) -> Any:
        """With scaling rms the rate that is left out is AdamW's usual one, or the other part's."""
        if not isinstance(values, dict) or values.get("scaling") != "rms":
            return values
        rate = values.get("learning_rate", 3e-4)
        beside = values.get("adamw", {})
        if isinstance(beside, dict):
            beside = {"learning_rate": rate, **beside}
        return {**values, "learning_rate": rate, "adamw": beside}


class AdafactorConfig(AnyOptimizerConfig):
    """Adafactor (arXiv 1804.04235, torch.optim.Adafactor): of second moments only the sums of rows and columns."""

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: float = Field(
        0.01, gt=0, description="share of its root mean square that a step moves a weight; at most 1 / sqrt(step)"
    )
    beta2_decay: float = Field(-0.8, le=0, description="second moments forget 1 - step^this of themselves")
    epsilon: float | None = Field(None, ge=0, description="under the square root; null: the dtype's")
    least_scale: float = Field(1e-3, ge=0, description="for weights whose root mean square is smaller")
    clip_update: float = Field(1.0, ge=1, description="largest root mean square of a step, before the rate")
    weight_decay: float = Field(0.0, ge=0, description="on matrices only; norms and biases are not decayed")


class LionConfig(AnyOptimizerConfig):
    """Lion (arXiv 2302.06675, the package lion-pytorch): the sign of one moment.

    Its authors take a third to a tenth of AdamW's rate, and as much more decay.
    """

    kind: Literal["lion"] = "lion"
    learning_rate: float = Field(1e-4, gt=0)
    betas: Betas = (0.9, 0.99)
    weight_decay: float = Field(0.3, ge=0, description="on matrices only; norms and biases are not decayed")


OptimizerConfig = Annotated[
    Annotated[AdamWConfig | MuonConfig | AdafactorConfig | LionConfig, Field(discriminator="kind")],
    usual_kind("adamw"),
]


def moving(config: OptimizerConfig) -> Moving:
    """As the plan sees it."""
    iterations = config.iterations if isinstance(config, MuonConfig) else Moving.iterations
    eight_bits = isinstance(config, AdamWConfig) and config.state == "8bit"
    return Moving(config.kind, eight_bits, iterations, config.in_backward)
