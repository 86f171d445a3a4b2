"""How a verb is declared: a cyclopts App with the house's conventions and two examples.

Flags have no `--no-` twins, help is plain text with the examples last. Heavy imports belong inside the verb's
function.
"""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

Overrides = Annotated["dict[str, str] | None", Parameter(parse=False)]
"""Type of a parameter named `overrides`: a verb that has one takes `--dotted.key value` for its recipe."""

Json = Annotated[bool, Parameter(help="print the result as one JSON object")]


def verb(name: str, help: str, examples: tuple[str, str] | tuple[()] = ()) -> App:
    """An App named `name`; `help` is its opening sentence, `examples` are two command lines."""
    epilogue = "Examples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None
    return App(
        name=name,
        help=help,
        help_epilogue=epilogue,
        help_flags=[],
        version_flags=[],
        default_parameter=Parameter(negative=()),
    )

