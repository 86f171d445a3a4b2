"""How a process that is called (`process.call`) answers: one JSON value on stdout, or the sentence of an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from shoestring.core.errors import ShoestringError


def answer(make: Callable[[dict[str, Any]], Any]) -> None:
    """What `make` makes of the object on stdin. What is printed on the way is for stderr."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        value: dict[str, Any] = {"value": make(json.load(sys.stdin))}
    except ShoestringError as error:
        value = {"error": error.message, "where": error.where, "hint": error.hint}
    said.write(json.dumps(value) + "\n")
    said.flush()
