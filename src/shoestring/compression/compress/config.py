"""What `compress` is told. Torch-free, so that a mistake is reported at once."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from shoestring.compression.text_config import TextConfig
from shoestring.core.config import load_config
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.units import Bytes, Seconds, parse_bytes
from shoestring.core.yaml_document import YamlDocument
from shoestring.evaluate.suite.question import ITEMS

RECOVER = 100  # steps
_RATIO = re.compile(r"\s*(\d*\.?\d+)\s*[xX×]\s*")
_PERCENT = re.compile(r"\s*(\d*\.?\d+)\s*%\s*")


def _target(value: Any) -> Any:
    """Bytes as they are; a part of the model's size as "0.5x"."""
    match = _RATIO.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        share = float(match[1])
        if not 0 < share < 1:
            raise ValueError(f"{value}: a part of the model's size lies between 0x and 1x")
        return f"{share}x"
    try:
        return parse_bytes(value)
    except ConfigError as error:
        raise ValueError(f"expected a size such as 100MB, or a part such as 0.5x, found {value!r}") from error


def _share(value: Any) -> Any:
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    try:
        share = float(match[1]) / 100 if match is not None else float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 < share <= 1:
        raise ValueError(f"expected a share of the quality such as 95% or 0.95, found {value!r}")
    return share


class CompressConfig(TextConfig):
    """Built by `compression.compress.job.compress`."""

    target: Annotated[int | str | None, BeforeValidator(lambda value: None if value is None else _target(value))] = (
        Field(None, description="the weights at most, as 100MB, or as a part of what they take now, 0.5x")
    )
    keep: Annotated[float | None, BeforeValidator(lambda value: None if value is None else _share(value))] = Field(
        None, description="the share of quality that must be left, as 95%; the smallest that has it is taken"
    )
    time: Seconds | None = Field(None, description="after this no other candidate is begun")
    suite: Literal["core"] | None = Field(None, description="questions that are put to each candidate; null: none")
    items: int = Field(ITEMS, ge=1, le=ITEMS, description="questions of each category of the suite")
    recover: int | None = Field(
        None, ge=0, description="steps of training behind pruning; 0: nothing is pruned; null: 100, with memory 0"
    )
    memory: Bytes | None = Field(None, description="of the whole process at most")

    @model_validator(mode="after")
    def _goes_together(self) -> CompressConfig:
        if (self.target is None) == (self.keep is None):
            found = "neither of them" if self.target is None else "both"
            raise ValueError(
                f"say how small, target (100MB, 0.5x), or how good, keep (95%): one of the two; found {found}"
            )
        if self.calibrate is None:
            raise ValueError("candidates are measured on text: give calibrate a source, such as stdlib or your rows")
        if self.suite is None and "items" in self.model_fields_set:
            raise ValueError("items are of the suite, and none is asked")
        if self.memory is not None and self.recover:
            raise ValueError("recover trains a whole model, whose memory is not predicted: leave out recover or memory")
        return self

    @property
    def recovering(self) -> int:
        """Steps of training behind pruning, 0 where nothing is pruned."""
        return (RECOVER if self.memory is None else 0) if self.recover is None else self.recover

    def limit(self, now: int) -> int | None:
        """Bytes of weights that may be left of `now`; None where the quality decides."""
        if isinstance(self.target, str):
            return int(float(self.target.removesuffix("x")) * now)
        return self.target

    def measuring(self) -> dict[str, Any]:
        """What decides the figures of a candidate."""
        without = {"target", "keep", "time", "memory"}
        settings = {name: value for name, value in self.model_dump(mode="json").items() if name not in without}
        return {**settings, "recover": self.recovering}


def compress_config(given: dict[str, Any]) -> CompressConfig:
    """Of settings by name, those that are None left to their defaults. Raises ConfigError."""
    settings = {name: value for name, value in given.items() if value is not None}
    return load_config(CompressConfig, YamlDocument(settings, dict.fromkeys(settings, GIVEN.get()), GIVEN.get()))
