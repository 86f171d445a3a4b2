"""Models of kinds that transformers does not have: config.json holds our own ModelConfig, weights our own names.

`model_type` is "shoestring", so transformers refuses the folder by name instead of reading it wrongly. A
block shared by several layers is stored once, under the number of the block.
"""

from __future__ import annotations

from typing import Any

from shoestring.models.config import ModelConfig
from shoestring.models.families.family import Family, Fields

NOTE = "made of kinds that transformers does not have: read it with shoestring.load"


def _read(fields: Fields) -> ModelConfig:
    values = fields.mapping("shoestring")
    if values is None:
        raise fields.fail("shoestring is missing", "config.json is incomplete; save the model again")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "note"):
        fields.get(name)
    return ModelConfig.model_validate(values)


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "max_position_embeddings": config.context,
        "note": NOTE,
        "shoestring": config.model_dump(mode="json"),
    }


class _OwnNames(Family):
    def tensor_name(self, parameter: str) -> str:
        """The parameter's own name, blocks where every family has its layers."""
        if parameter.startswith("blocks."):
            return "model.layers." + parameter.removeprefix("blocks.")
        return parameter


SHOESTRING = _OwnNames("shoestring", "ShoestringForCausalLM", _read, _write, lambda config: True, {}, {})
