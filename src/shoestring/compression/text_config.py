"""What is said of the text that a model is calibrated with and measured on. Torch-free."""

from __future__ import annotations

from pydantic import Field

from shoestring.core.config import Config
from shoestring.data.supervised.config import OnBadLine

TOGETHER = 4096  # tokens in a batch, where memory allows
LONGEST = 2048  # tokens at which examples are cut


class TextConfig(Config):
    """The part that the settings of every verb of this room have."""

    calibrate: str | None = Field(None, min_length=1, description="text or examples; some are kept to measure with")
    columns: dict[str, str] = Field({}, description="fields that have other names in the rows, as data.columns")
    on_bad_line: OnBadLine = Field("stop", description="rows that cannot be used; skip leaves them out")
    rows: int = Field(64, ge=1, description="of calibration text, each of `context` tokens")
    context: int = Field(512, ge=8, description="tokens of a row, at most those that the model can look at")
    held_out: int = Field(16, ge=1, description="rows to measure with, before and after")
    read: int | None = Field(
        None, ge=1, description="rows of text that are read at least, to draw from; null: as many as are wanted"
    )
    seed: int = Field(0, ge=0, description="of the choice of rows")
