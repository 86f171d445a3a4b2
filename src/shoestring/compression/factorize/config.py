"""What `factorize` is told. Torch-free, so that a mistake is reported at once."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from shoestring.compression.text_config import TextConfig
from shoestring.core.config import load_config
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.units import parse_count
from shoestring.core.yaml_document import YamlDocument

_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*x\s*")


class FactorizeConfig(TextConfig):
    """Built by `compression.factorize.job.factorize`."""

    parameters: str | None = Field(None, description="of the whole model then: 0.7x of what it has, or a number as 80M")
    rank: int | None = Field(None, gt=0, description="of every matrix that it makes smaller, in place of parameters")
    dense: bool = Field(False, description="write the products of the factors: no smaller, but any tool reads it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of all weights; auto: as the model has them"
    )

    @field_validator("parameters")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            target(value, 1 << 60)
        return value

    @model_validator(mode="after")
    def _one_size(self) -> FactorizeConfig:
        if (self.parameters is None) == (self.rank is None):
            raise ValueError("give one of parameters (0.7x, 80M) and rank: how small the matrices are to be")
        if self.calibrate is None:
            for name in ("rows", "context", "held_out", "columns", "on_bad_line"):
                if name in self.model_fields_set:
                    raise ValueError(f"{name} is of the text to calibrate with, and calibrate names none")
        return self


def target(text: str, parameters: int) -> int:
    """The number of parameters that `text` asks for. parameters: that the model has. Raises ValueError."""
    if match := _SHARE.fullmatch(text):
        share = float(match[1])
        if not 0 < share < 1:
            raise ValueError(f"{text.strip()} is no part of a model: a number between 0 and 1, and x, as 0.7x")
        return int(share * parameters)
    try:
        return parse_count(text)
    except ConfigError:
        raise ValueError(f"{text!r} is neither a part of the model as 0.7x nor a number as 80M") from None


def factorize_config(given: dict[str, Any]) -> FactorizeConfig:
    """Of settings by name, those that are None left to their defaults. Raises ConfigError."""
    settings = {name: value for name, value in given.items() if value is not None}
    return load_config(FactorizeConfig, YamlDocument(settings, dict.fromkeys(settings, GIVEN.get()), GIVEN.get()))
