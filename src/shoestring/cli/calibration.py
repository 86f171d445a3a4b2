"""Flags of the text that a model is made smaller by, and of the memory for it: the same for each such verb."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from shoestring.cli.columns import columns_of

Calibrate = Annotated[
    str | None,
    Parameter(
        help="a text, a folder, stdlib, or rows, also conversations: like what the model is for; a part of it is"
        " kept apart, to measure before and after"
    ),
]
Rows = Annotated[int | None, Parameter(help="of calibration text [64]")]
Context = Annotated[int | None, Parameter(help="tokens of a row [512, or what the model can]")]
Seed = Annotated[int | None, Parameter(help="of the choice of rows [0]")]
OnBadLine = Annotated[
    Literal["stop", "skip"] | None, Parameter(help="rows that cannot be used; skip counts [stop]")
]
Memory = Annotated[
    str | None, Parameter(help="the whole process at most, as 3GB; the text may have to go to disk")
]


def text_settings(
    calibrate: str | None, rows: int | None, context: int | None, seed: int | None, columns: list[str] | None,
    on_bad_line: Literal["stop", "skip"] | None,
) -> dict[str, Any]:  # fmt: skip
    """By the names that `compression.text_config.TextConfig` has. Raises ConfigError."""
    return {
        "calibrate": calibrate, "rows": rows, "context": context, "seed": seed, "columns": columns_of(columns) or None,
        "on_bad_line": on_bad_line,
    }  # fmt: skip
