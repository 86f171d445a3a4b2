"""What `prune` is told. Torch-free, so that a mistake is reported at once."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from shoestring.compression.text_config import TextConfig
from shoestring.core.config import load_config
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.units import parse_count, parse_seconds
from shoestring.core.yaml_document import YamlDocument

Method = Literal["magnitude", "wanda"]
Pattern = Literal["2:4", "4:8"]
SIZES = ("layers", "feed_forward", "heads", "width")


class PruneConfig(TextConfig):
    """Built by `compression.prune.job.prune`."""

    sparsity: float | None = Field(None, gt=0, lt=1, description="part of each matrix in the blocks that becomes zero")
    pattern: Pattern | None = Field(None, description="2:4: of every 4 inputs in a row's order, 2 weights are kept")
    method: Method | None = Field(
        None, description="which weights become zero: wanda, arXiv 2306.11695, by calibration text; or magnitude"
    )
    layers: int | None = Field(None, ge=1, description="how many are kept")
    feed_forward: int | None = Field(None, ge=1, description="channels that are kept in each layer")
    heads: int | None = Field(None, ge=1, description="query heads that are kept in each layer, in whole groups")
    width: int | None = Field(None, ge=1, description="components of the residual stream that are kept")
    parameters: str | int | None = Field(
        None, description="of the whole model, as 95M or 0.7x; which sizes shrink is then chosen"
    )
    fit: bool = Field(True, description="fit what is kept of a matrix to what the whole one gave on the text")
    rounds: int = Field(1, ge=1, le=64, description="steps towards the target, each measured anew")
    recover: int | str | None = Field(
        None, description="training behind each round, on the calibration source: steps, or a time such as 10m"
    )
    recover_by: Literal["text", "model"] = Field(
        "text", description="what recovering learns: each next token, or what the whole model predicts in its place"
    )
    learning_rate: float | None = Field(None, gt=0, description="the highest of recovering; null: 1e-4")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the weights that are written; auto: as the model has them"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> PruneConfig:
        sizes = [name for name in SIZES if getattr(self, name) is not None]
        weights = [name for name in ("sparsity", "pattern") if getattr(self, name) is not None]
        if len(weights) == 2:
            raise ValueError("sparsity and pattern exclude each other: a pattern says how many weights are zero")
        if self.parameters is not None and sizes:
            raise ValueError(f"parameters chooses the sizes, and {sizes[0]} is one: give one of them")
        if weights and (sizes or self.parameters is not None):
            other = sizes[0] if sizes else "parameters"
            raise ValueError(f"{weights[0]} makes weights zero and {other} takes parts out: prune twice, for each once")
        if not weights and not sizes and self.parameters is None:
            raise ValueError(
                "nothing is to be pruned: give sparsity or pattern (weights become zero), parameters, or sizes"
                f" ({', '.join(SIZES)})"
            )
        if not weights and self.method is not None:
            raise ValueError("method is of sparsity and pattern: parts are chosen by what they change on the text")
        if weights and "fit" in self.model_fields_set:
            raise ValueError("fit is of parts that are taken out: masks leave the other weights as they are")
        if self.pattern is not None and self.rounds > self.zeros_of[0]:
            raise ValueError(f"pattern {self.pattern} has {self.zeros_of[0]} rounds at most, a zero more in each")
        if self.calibrate is None:
            if self.by_text:
                what = "wanda" if weights else "taking parts out by what they change"
                other = "give calibrate a source" + (", or take method magnitude" if weights else "")
                raise ValueError(f"{what} needs text to calibrate with: {other}")
            if self.recover is not None:
                raise ValueError("recover trains on the calibration text: give calibrate a source")
        for name in ("learning_rate", "recover_by"):
            if self.recover is None and name in self.model_fields_set:
                raise ValueError(f"{name} is of recover, which is not asked for")
        return self

    @model_validator(mode="after")
    def _readable(self) -> PruneConfig:
        try:
            _ = self.wanted, self.recovering
        except ConfigError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return self

    @property
    def masks(self) -> bool:
        """Whether weights become zero, rather than parts being taken out."""
        return self.sparsity is not None or self.pattern is not None

    @property
    def by_text(self) -> bool:
        """Whether what is pruned is chosen by the calibration text."""
        return not self.masks or self.method != "magnitude"

    @property
    def zeros_of(self) -> tuple[int, int]:
        """Of a pattern: how many weights of how many become zero."""
        assert self.pattern is not None
        kept, of = map(int, self.pattern.split(":"))
        return of - kept, of

    @property
    def wanted(self) -> tuple[float | None, int | None]:
        """Parameters as a part of the model's, or as a number. Raises ConfigError."""
        if self.parameters is None:
            return None, None
        text = str(self.parameters).strip()
        match = re.fullmatch(r"(\d*\.?\d+)\s*[x×]", text)
        if match is None:
            return None, parse_count(text)
        if not 0 < float(match[1]) < 1:
            raise ConfigError(f"{text} is no smaller model", hint="write a part below one, such as 0.7x")
        return float(match[1]), None

    @property
    def recovering(self) -> tuple[int | None, float | None]:
        """Optimizer steps of a round, or seconds. Raises ConfigError."""
        text = str(self.recover).strip()
        if self.recover is None:
            return None, None
        if text.isdigit():
            if int(text) < 1:
                raise ConfigError("recover of 0 steps is none", hint="leave it out, or give steps or a time")
            return int(text), None
        seconds = parse_seconds(text)
        if seconds <= 0:
            raise ConfigError("recover of no time is none", hint="leave it out, or give steps or a time")
        return None, seconds


def prune_config(given: dict[str, Any]) -> PruneConfig:
    """Of settings by name, those that are None left to their defaults. Raises ConfigError."""
    settings = {name: value for name, value in given.items() if value is not None}
    return load_config(PruneConfig, YamlDocument(settings, dict.fromkeys(settings, GIVEN.get()), GIVEN.get()))
