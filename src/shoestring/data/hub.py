"""Data sets on the Hugging Face hub: `hf:OWNER/NAME`, of which the training files are fetched into the hub's own cache.

`hf:OWNER/NAME/FOLDER` takes one of its folders (a configuration, a sample), `@REVISION` behind it fixes what is read,
and `[:N]` at the end takes the first N files alone: web text comes in thousands.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from pathlib import Path

from shoestring.core.errors import DataError, NetworkError
from shoestring.core.hub import quiet_hub

HUB = "hf:"
_NAME = re.compile(
    r"hf:(?P<name>[^/@\[\]]+/[^/@\[\]]+)(?:/(?P<folder>[^@\[\]]+))?(?:@(?P<revision>[^\[\]]+))?(?:\[:(?P<most>[1-9]\d{0,8})\])?"
)


def hub_files(source: str, say: Callable[[str], None] | None) -> list[tuple[str, Path]]:
    """(name in the data set, file on this machine) of a data set's training files, in order.

    Its own Parquet, JSON or CSV files, else what the hub converted to Parquet. Raises DataError for a name that is none
    or a data set without such files, and NetworkError.
    """
    from huggingface_hub import HfApi, hf_hub_download

    match = _NAME.fullmatch(source)
    if match is None:
        hint = "write hf:OWNER/NAME, hf:OWNER/NAME/FOLDER or hf:OWNER/NAME@REVISION; [:4] takes the first four files"
        raise DataError(f"{source!r} is not a name on the hub", hint=hint)
    name, folder, revision, most = match.group("name", "folder", "revision", "most")
    revisions = [revision] if revision else ["main", "refs/convert/parquet"]
    if say is not None:
        say(f"fetching {name} from the hub")
    try:
        with quiet_hub(say):
            for branch in revisions:
                listed = HfApi().list_repo_files(name, repo_type="dataset", revision=branch)
                if folder is not None:
                    listed = [file for file in listed if file.startswith(folder.rstrip("/") + "/")]
                if chosen := training_files(listed)[: None if most is None else int(most)]:
                    fetched = [hf_hub_download(name, file, repo_type="dataset", revision=branch) for file in chosen]
                    return list(zip(chosen, map(Path, fetched), strict=True))
    except Exception as error:  # its HTTP client changes between versions and has error classes of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise NetworkError(f"could not be fetched from the hub: {reason}", source, "run the same again") from error
    raise DataError(f"this data set has no Parquet, JSON or CSV files{' there' * (folder is not None)}", source)


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
