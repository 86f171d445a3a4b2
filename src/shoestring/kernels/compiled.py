"""Compiles a C++ file of this folder at first use, for this processor, and loads it with ctypes.

The library is kept in the cache folder under a key of its source, its headers (NAME_*.h), flags and processor. Without
a compiler there is none, and callers use their plain-torch twin. Its OpenMP calls are answered by the library that
torch has loaded: a second one would bring a second pool of threads.
SHOESTRING_KERNELS=off leaves the twins to do it all (for comparisons).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch  # noqa: F401  its OpenMP library must be there before a kernel is loaded

from shoestring.core.errors import ShoestringError
from shoestring.core.files import atomic_write, cache_dir
from shoestring.core.machine import cpu_model

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_FOLDER = Path(__file__).parent
_PATIENCE = 300  # seconds for a compiler that needs three


def compiler() -> str | None:
    """The program that compiles kernels, None where they cannot be had."""
    if sys.platform != "linux" or os.environ.get("SHOESTRING_KERNELS", "") == "off":
        return None
    return shutil.which("g++") if hasattr(ctypes.CDLL(None), "GOMP_parallel") else None


@functools.cache
def kernel(name: str, *macros: str) -> ctypes.CDLL | None:
    """The functions of NAME.cpp, None where they cannot be had. macros: defined, for forms that tests compare."""
    command = compiler()
    if command is None:
        return None
    source = (_FOLDER / f"{name}.cpp").read_bytes()
    headers = [header.read_bytes() for header in sorted(_FOLDER.glob(f"{name}_*.h"))]
    flags = [*_FLAGS, *(f"-D{macro}" for macro in macros)]
    made_of = [source, *headers, " ".join(flags).encode(), cpu_model().encode()]
    key = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
    try:
        file = cache_dir() / "kernels" / f"{name}-{key}.so"
        if not file.exists():
            _compile([command, *flags], source, file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError, ShoestringError):
        return None


def _compile(command: list[str], source: bytes, file: Path) -> None:
    """Object and link apart: linking with -fopenmp would name the compiler's own OpenMP library."""
    with atomic_write(file, "wb") as out:
        built = Path(f"{out.name}.o")
        linked = Path(f"{out.name}.so")
        try:
            made = [*command, "-iquote", str(_FOLDER), "-x", "c++", "-c", "-", "-o", str(built)]
            subprocess.run(made, input=source, check=True, capture_output=True, timeout=_PATIENCE)
            together = [command[0], "-shared", str(built), "-o", str(linked)]
            subprocess.run(together, check=True, capture_output=True, timeout=_PATIENCE)
            out.write(linked.read_bytes())
        except subprocess.CalledProcessError:
            pass  # an empty file says that it was tried
        finally:
            built.unlink(missing_ok=True)
            linked.unlink(missing_ok=True)
