"""How weights are moved, in a recipe: `optimizer.kind` and what each kind takes. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shoestring.core.config import Config, usual_kind

Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class AdamWConfig(Config):
    """AdamW (arXiv 1711.05101), built by `train.optimizer.build_optimizer`."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="on matrices only; norms and biases are not decayed")


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


class MuonConfig(Config):
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


OptimizerConfig = Annotated[
    Annotated[AdamWConfig | MuonConfig, Field(discriminator="kind")], usual_kind("adamw")
]
