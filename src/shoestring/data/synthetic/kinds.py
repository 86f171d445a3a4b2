"""The table of exercise kinds, and `make`, which draws a set of one kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.data.synthetic.annotated import annotated
from shoestring.data.synthetic.arithmetic import arithmetic
from shoestring.data.synthetic.code import code
from shoestring.data.synthetic.comparisons import comparisons
from shoestring.data.synthetic.conversation import conversation
from shoestring.data.synthetic.exercise import Draw, ExerciseSet, collect
from shoestring.data.synthetic.formatting import formatting
from shoestring.data.synthetic.functions import functions
from shoestring.data.synthetic.instructions import instructions
from shoestring.data.synthetic.letters import letters
from shoestring.data.synthetic.patterns import patterns
from shoestring.data.synthetic.structure import structure
from shoestring.data.synthetic.sums import sums

KINDS: dict[str, Callable[..., Draw]] = {
    "arithmetic": arithmetic,
    "patterns": patterns,
    "comparisons": comparisons,
    "format": formatting,
    "code": code,
    "sums": sums,
    "annotated": annotated,
    "instructions": instructions,
    "functions": functions,
    "structure": structure,
    "letters": letters,
    "conversation": conversation,
}


def make(kind: str, n: int, seed: int = 1, test: float = 0.1, **settings: Any) -> ExerciseSet:
    """n exercises of a kind, a share of `test` of them held out. settings: of the kind's own function.

    The same arguments give the same exercises on every machine. Raises ConfigError.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of exercise {kind!r}", hint=f"known: {', '.join(KINDS)}")
    if settings and kind != "arithmetic":
        raise ConfigError(f"{kind} has no setting {', '.join(settings)}", hint="only arithmetic has settings")
    return collect(KINDS[kind](**settings), n, seed, test)
