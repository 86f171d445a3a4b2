"""What an unfinished folder of shards was begun with, and how far it came: one file, replaced as a whole.

Everything in it is of one instant: the place in the source, the whole shards, what the open ones hold, what was
counted. So a run that was killed at any instant goes on from the last one that was entered, and ends with the same
bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoestring.core.errors import DataError
from shoestring.core.files import atomic_write
from shoestring.core.foreign import read_json
from shoestring.data.preparation.encoding import Place
from shoestring.data.preparation.writer import Extent
from shoestring.data.shards import SPLITS, Shard

JOURNAL = "journal.json"


@dataclass
class Journal:
    """inputs: text, settings and tokenizer, by their fingerprints. remembered: bytes of `.seen`, which holds the
    marks of the documents written. review: the reviewer's state, but for these."""

    inputs: dict[str, Any]
    tokenizer: str
    place: Place = field(default_factory=Place)
    shards: list[Shard] = field(default_factory=list)
    extents: dict[str, Extent] = field(default_factory=lambda: {split: Extent() for split in SPLITS})
    remembered: int = 0
    review: dict[str, Any] | None = None
    done: bool = False  # the source has been read to its end

    def write(self, out: Path) -> None:
        with atomic_write(out / JOURNAL) as file:
            file.write(json.dumps(asdict(self), indent=1) + "\n")


def read_journal(out: Path) -> Journal | None:
    """The folder's journal; None where there is none. Raises DataError for a damaged one."""
    file = out / JOURNAL
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        content["place"] = Place(**content["place"])
        content["shards"] = [Shard(**entry) for entry in content["shards"]]
        content["extents"] = {split: Extent(**content["extents"][split]) for split in SPLITS}
        return Journal(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the journal is damaged: {error}", str(file), "remove the folder and try again") from error
