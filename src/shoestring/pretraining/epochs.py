"""How often a run reads its text: told where it is more than once, and asked about where it is a mistake more likely.

Up to about four passes repeated text is nearly as good as new (arXiv 2305.16264); what a model gains from twenty is
little, and from hundreds it learns its text by heart.
"""

from __future__ import annotations

import math
import sys

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import format_count
from shoestring.pretraining.config import PretrainTrainSection


def epochs(settings: PretrainTrainSection, tokens: int | None) -> float | None:
    """Passes over `tokens` of text to train on; None for a run that its time bounds, or text that nobody has
    counted."""
    planned = settings.planned_tokens
    return None if planned is None or tokens is None else planned / max(tokens, 1)


def told(passes: float | None) -> str:
    """For the header; nothing where all text is new."""
    if passes is None or passes <= 1:
        return ""
    return f"; read {passes:,.0f} times" if passes >= 10 else f"; read {passes:.1f} times"


def check_epochs(settings: PretrainTrainSection, tokens: int, source: str) -> None:
    """Ask whether a run of many passes is meant, where somebody can answer.

    Raises ConfigError where nobody can, or for a no.
    """
    passes = epochs(settings, tokens)
    if passes is None or passes <= settings.most_epochs:
        return
    budget = format_count(settings.planned_tokens or 0)
    sentence = f"{budget} tokens are {passes:,.0f} epochs of {source}, which has {format_count(tokens)} to train on"
    if sys.stdin is not None and sys.stdin.isatty() and console.err.is_terminal:
        console.err.print(f"{sentence}; go on? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    fewer = settings.most_epochs * tokens
    raise ConfigError(
        sentence,
        hint=f"--train.most_epochs {math.ceil(passes)} says that this is meant; --train.tokens {fewer:.0f} is"
        f" {settings.most_epochs:g} epochs; or give more text with --data.source",
    )
