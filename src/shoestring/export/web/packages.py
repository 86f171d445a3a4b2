"""transformers.js and onnxruntime for browsers, from their npm packages, of which a page needs three files.

npm fetches the packages as they were published and checks them against the registry's sums; nothing of theirs is run.
What was fetched is kept in the cache, so that the next page needs no network.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from shoestring.core import foreign
from shoestring.core.errors import ConfigError, RunError
from shoestring.core.files import atomic_folder, cache_dir
from shoestring.models.resolve import Say

TRANSFORMERS, TRANSFORMERS_VERSION = "@huggingface/transformers", "4.3.1"
ONNXRUNTIME = "onnxruntime-web"  # of the version that transformers.js is built with
# Name on the page -> where it lies in which package. The asyncify build has both WebGPU and WebAssembly.
_OF_TRANSFORMERS = {"transformers.min.js": "dist/transformers.min.js", "transformers.LICENSE": "LICENSE"}
_OF_ONNXRUNTIME = {
    "ort.mjs": "dist/ort-wasm-simd-threaded.asyncify.mjs",
    "ort.wasm": "dist/ort-wasm-simd-threaded.asyncify.wasm",
}
FILES = (*_OF_TRANSFORMERS, *_OF_ONNXRUNTIME)
_SECONDS = 600
_LARGEST = 100 * 2**20  # of a file


def packages(say: Say | None = None) -> Path:
    """A folder with `FILES`. Raises ConfigError where npm is not there, RunError where it cannot fetch them."""
    place = cache_dir() / "npm" / f"transformers-{TRANSFORMERS_VERSION}"
    if all((place / name).is_file() for name in FILES):
        return place
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("--to web needs npm, which is not installed", hint="install Node.js, which brings it")
    if say is not None:
        say(f"fetching {TRANSFORMERS} {TRANSFORMERS_VERSION} and {ONNXRUNTIME} with npm")
    with atomic_folder(place, replace=True) as temporary, tempfile.TemporaryDirectory() as packed:
        first = _pack(npm, f"{TRANSFORMERS}@{TRANSFORMERS_VERSION}", Path(packed) / "1")
        _copy(first, _OF_TRANSFORMERS, temporary)
        second = _pack(npm, f"{ONNXRUNTIME}@{_version(first)}", Path(packed) / "2")
        _copy(second, _OF_ONNXRUNTIME, temporary)
    return place


def _pack(npm: str, package: str, folder: Path) -> Path:
    """The package's archive, alone in a new folder."""
    folder.mkdir()
    command = [npm, "pack", package, "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"npm could not fetch {package}: {error}") from error
    if run.returncode:
        lines = [line.strip() for line in run.stderr.splitlines() if line.startswith("npm error")]
        raise RunError(
            f"npm could not fetch {package}: {(lines or [str(run.returncode)])[-1][:300]}",
            hint="the first page needs the network, or npm's cache",
        )
    return next(folder.glob("*.tgz"))


def _version(archive: Path) -> str:
    """Of onnxruntime, as the package asks for it."""
    try:
        return str(foreign.parse_json(_member(archive, "package.json"))["dependencies"][ONNXRUNTIME])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the npm package {archive.name} does not say which {ONNXRUNTIME} it needs") from error


def _copy(archive: Path, files: dict[str, str], folder: Path) -> None:
    for name, inside in files.items():
        (folder / name).write_bytes(_member(archive, inside))


def _member(archive: Path, name: str) -> bytes:
    try:
        with tarfile.open(archive) as tar:
            found = tar.getmember(f"package/{name}")
            content = tar.extractfile(found) if found.size <= _LARGEST else None
            if content is None:
                raise KeyError(name)
            return content.read()
    except (KeyError, OSError, tarfile.TarError) as error:
        raise RunError(f"the npm package {archive.name} has no {name}") from error
