"""How several processes train one model, in a recipe. Torch-free.

How many there are is no setting: the command starts them (`--ranks`, `--gpus`), or torchrun does, and a run goes on
with any number of them.
"""

from __future__ import annotations

from pydantic import Field

from shoestring.core.config import Config
from shoestring.core.units import Seconds


class ParallelConfig(Config):
    """What of the model lies in each process. Losses and steps are those of one process, whatever is chosen."""

    exchange_timeout: Seconds = Field(
        600.0, description="how long processes wait for one of them, before the run ends and names it"
    )
