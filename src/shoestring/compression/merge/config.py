"""What `merge` is told. Torch-free, so that a mistake is reported at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from shoestring.compression.text_config import TextConfig
from shoestring.core.config import load_config
from shoestring.core.given import GIVEN
from shoestring.core.yaml_document import YamlDocument


class MergeConfig(TextConfig):
    """Built by `compression.merge.job.merge`. The text is only measured on."""

    dense: bool = Field(False, description="whole matrices, where the base has them in few bits or as factors")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of what is not in few bits; auto: as the base has it"
    )

    @model_validator(mode="after")
    def _text(self) -> MergeConfig:
        if self.calibrate is None:
            for name in ("rows", "context", "held_out", "columns", "on_bad_line", "seed"):
                if name in self.model_fields_set:
                    raise ValueError(f"{name} is of the text to measure on, and calibrate names none")
        return self


def merge_config(given: dict[str, Any]) -> MergeConfig:
    """Of settings by name, those that are None left to their defaults. Raises ConfigError."""
    settings = {name: value for name, value in given.items() if value is not None}
    return load_config(MergeConfig, YamlDocument(settings, dict.fromkeys(settings, GIVEN.get()), GIVEN.get()))
