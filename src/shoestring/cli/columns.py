"""`--columns prompt=Q completion=A`: what the fields of rows are called, where that is not one of the usual names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from shoestring.core.errors import ConfigError

Columns = Annotated[
    list[str] | None,
    Parameter(
        help="which fields of the rows are meant, as prompt=Q completion=A (data.columns) [usual names are known]",
        consume_multiple=True,
    ),
]


def columns_of(pairs: Sequence[str] | None) -> dict[str, str]:
    """Field of a form -> its name in the rows. Raises ConfigError."""
    columns: dict[str, str] = {}
    for pair in pairs or ():
        field, equals, name = pair.partition("=")
        if not (equals and field and name):
            raise ConfigError(
                f"--columns {pair}: not FIELD=NAME (command line)", hint="write it as: --columns prompt=Q completion=A"
            )
        if columns.setdefault(field, name) != name:
            raise ConfigError(f"--columns says two things of {field} (command line)")
    return columns
