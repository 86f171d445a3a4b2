"""What a plan asks of work that has no recipe: texts to write, slots to serve, a model to quantize. Torch-free."""

from __future__ import annotations

from pydantic import Field

from shoestring.compression.quantize.config import QuantizeConfig
from shoestring.core.config import Config, load_config
from shoestring.core.errors import BudgetError
from shoestring.core.units import Bytes, Seconds
from shoestring.core.yaml_document import YamlDocument


class PlanBudget(Config):
    """What there is: of memory for the process, of a GPU's, and of time to wait."""

    memory: Bytes | None = None
    gpu_memory: Bytes | None = None
    time: Seconds | None = None


class GenerateShape(Config):
    texts: int = Field(1, gt=0, description="written at once")
    prompt: int = Field(512, gt=0, description="tokens of each prompt")
    max_tokens: int = Field(256, gt=0, description="tokens written of each text")


class ServeShape(Config):
    slots: int | None = Field(None, gt=0, description="texts at once; null: 16, or as many as there is room for")
    context: int | None = Field(
        None, gt=1, description="tokens of a text, prompt and answer; null: the model's, up to 4096"
    )


class GenerateAsked(Config):
    """The settings of a plan with `--job generate`."""

    generate: GenerateShape = GenerateShape()


class ServeAsked(Config):
    serve: ServeShape = ServeShape()


class QuantizeAsked(Config):
    quantize: QuantizeConfig


def plan_budget(memory: str | int | None, gpu_memory: str | int | None, time: str | float | None) -> PlanBudget:
    """Raises ConfigError for what is no size or time, and for a number without a unit on the command line."""
    given = {"memory": memory, "gpu_memory": gpu_memory, "time": time}
    given = {name: value for name, value in given.items() if value is not None}
    found = load_config(PlanBudget, YamlDocument({}, name="the plan"), given)
    for name in given:
        if getattr(found, name) == 0:
            raise BudgetError(f"{name} 0 leaves nothing to plan with")
    return found
