"""What the command line is, and where settings that stand in no file are given, as an error says it.

Standard library only, as the overview is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

GIVEN: ContextVar[str] = ContextVar("given", default="(in the call)")  # the command line puts its own name here
COMMAND: ContextVar[Sequence[str]] = ContextVar("command", default=())  # its words, for processes that do the same
