"""Data sets on the Hugging Face hub: `hf:OWNER/NAME`, of which the training files are fetched into the hub's own cache.

`hf:OWNER/NAME/FOLDER` takes one of its folders (a configuration, a sample), `@REVISION` behind it fixes what is read,
and `[:N]` at the end takes the first N files alone: web text comes in thousands. Files are listed at once, with what
their content is, and fetched one by one when they are read: whoever stops early has fetched no more than was read.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.errors import DataError, NetworkError
from shoestring.core.hub import quiet_hub

HUB = "hf:"
_NAME = re.compile(
    r"hf:(?P<name>[^/@\[\]]+/[^/@\[\]]+)(?:/(?P<folder>[^@\[\]]+))?(?:@(?P<revision>[^\[\]]+))?(?:\[:(?P<most>[1-9]\d{0,8})\])?"
)
ON_THIS_MACHINE = "or put its Parquet, JSON or CSV files into a folder and give that folder"


@dataclass(frozen=True)
class HubFile:
    """One file of a data set, in one commit. size: bytes. content: the hash by which the hub knows them."""

    repository: str
    name: str
    commit: str
    size: int
    content: str
    hint: str

    def fetch(self) -> Path:
        """The file in the hub's cache, where it stays. Raises NetworkError."""
        from huggingface_hub import hf_hub_download

        try:
            with quiet_hub(console.say):
                found = hf_hub_download(self.repository, self.name, repo_type="dataset", revision=self.commit)
        except Exception as error:
            raise _unreachable(error, f"{HUB}{self.repository}/{self.name}", self.hint) from error
        return Path(found)


def hub_files(source: str, say: Callable[[str], None] | None, hint: str = ON_THIS_MACHINE) -> list[HubFile]:
    """A data set's training files in order: its own Parquet, JSON or CSV files, else what the hub made Parquet of.

    hint: what to give instead, where the hub cannot be reached. Raises DataError for a name that is none or a data set
    without such files, and NetworkError.
    """
    from huggingface_hub import HfApi

    match = _NAME.fullmatch(source)
    if match is None:
        names = "write hf:OWNER/NAME, hf:OWNER/NAME/FOLDER or hf:OWNER/NAME@REVISION; [:4] takes the first four files"
        raise DataError(f"{source!r} is not a name on the hub", hint=names)
    name, folder, revision, most = match.group("name", "folder", "revision", "most")
    if say is not None:
        say(f"fetching {name} from the hub")
    for branch in [revision] if revision else ["main", "refs/convert/parquet"]:
        try:
            with quiet_hub(say):
                found = HfApi().dataset_info(name, revision=branch, files_metadata=True)
        except Exception as error:  # its HTTP client changes between versions and has error classes of its own
            raise _unreachable(error, source, hint) from error
        listed = {file.rfilename: file for file in found.siblings or ()}
        if folder is not None:
            listed = {file: of for file, of in listed.items() if file.startswith(folder.rstrip("/") + "/")}
        if chosen := training_files(list(listed))[: None if most is None else int(most)]:
            commit = found.sha or branch
            return [_hub_file(name, commit, listed[file], hint) for file in chosen]
    raise DataError(f"this data set has no Parquet, JSON or CSV files{' there' * (folder is not None)}", source)


def _hub_file(repository: str, commit: str, file: Any, hint: str) -> HubFile:
    content = getattr(file.lfs, "sha256", None) or file.blob_id or f"{commit}/{file.rfilename}"
    return HubFile(repository, file.rfilename, commit, file.size or 0, content, hint)


def _unreachable(error: Exception, source: str, hint: str) -> NetworkError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return NetworkError(f"could not be fetched from the hub: {reason}", source, f"run the same again, {hint}")


def training_files(listed: list[str]) -> list[str]:
    """Of a data set's files those to train on: one kind, the training split where splits are named.

    Several configurations (folders) are not mixed: the first one, `default` before others, is taken.
    """
    for pattern in ("*.parquet", "*.jsonl*", "*.json", "*.csv", "*.tsv"):
        found = sorted(file for file in listed if fnmatch.fnmatch(file, pattern) and "/." not in f"/{file}")
        if pattern == "*.json":
            found = [file for file in found if "/" in file or "train" in file or "data" in file]
        named = [file for file in found if "train" in file]
        found = named or [file for file in found if not any(word in file for word in ("test", "valid", "eval"))]
        if found:
            folders = sorted({file.rpartition("/")[0] for file in found}, key=lambda f: ("default" not in f, f))
            return [file for file in found if file.rpartition("/")[0] == folders[0]]
    return []
