"""Data sets that have a name of their own: where on the hub they are, and how their columns are called.

A file or folder of that name on this machine wins: it is a copy, and has the same columns.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from shoestring.data.hub import HUB, ON_THIS_MACHINE


@dataclass(frozen=True)
class BuiltIn:
    """source: on the hub. column: of its text. columns: for examples, fields that have other names there.

    copies: what may be given instead, for the sentence that the hub cannot be reached.
    """

    source: str
    column: str = "text"
    columns: dict[str, str] = field(default_factory=dict)
    copies: str = ON_THIS_MACHINE


_PARQUET = "or put some of its Parquet files into a folder and give that folder with --text-field"
_EXAMPLES = "or give a copy, as a path: its Parquet files or"

BUILT_IN = {
    "fineweb-edu": BuiltIn("hf:HuggingFaceFW/fineweb-edu/sample/10BT", copies=f"{_PARQUET} text"),
    "falcon-refinedweb": BuiltIn(
        "hf:tiiuae/falcon-refinedweb", "content", {"text": "content"}, f"{_PARQUET} content"
    ),
    "alpaca": BuiltIn("hf:tatsu-lab/alpaca", copies=f"{_EXAMPLES} alpaca_data.json"),
    "gsm8k": BuiltIn("hf:openai/gsm8k/main", copies=f"{_EXAMPLES} train.jsonl"),
}  # fmt: skip
_NAME = re.compile(r"(?P<name>[a-z0-9-]+)(?P<rest>(?:@[^\[\]]+)?(?:\[:\d+\])?)")


def find(source: str) -> tuple[str, BuiltIn | None]:
    """(where to read, what is known of it). As on the hub, @REVISION and [:N] may stand behind a name."""
    match = _NAME.fullmatch(source)
    known = BUILT_IN.get(match["name"]) if match else None
    if match is None or known is None:
        return source, None
    return source if os.path.exists(source) else known.source + match["rest"], known


def is_remote(source: str) -> bool:
    """Whether it is read from the hub."""
    return find(source)[0].startswith(HUB)
