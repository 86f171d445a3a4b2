"""Compiles a C++ file of this folder at first use, for this processor, and loads it with ctypes.

The library is kept in the cache folder under a key of its source, its headers, flags and processor. Without a compiler
there is none, and callers use their plain-torch twin. Its OpenMP calls are answered by the library that torch has
loaded: a second one would bring a second pool of threads.
SHOESTRING_KERNELS=off leaves the twins to do it all (for comparisons).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch  # its OpenMP library must be there before a kernel is loaded

from shoestring.core.errors import ShoestringError
from shoestring.core.files import atomic_write, cache_dir
from shoestring.core.machine import cpu_identity

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_FOLDER = Path(__file__).parent
_PATIENCE = 300  # seconds for a compiler that needs three


def compiler() -> str | None:
    """The program that compiles kernels, None where they cannot be had."""
    if sys.platform != "linux" or os.environ.get("SHOESTRING_KERNELS", "") == "off":
        return None
    return shutil.which("g++") if hasattr(ctypes.CDLL(None), "GOMP_parallel") else None


@functools.cache
def kernel(name: str, *macros: str, with_torch: bool = False) -> ctypes.CDLL | None:
    """The functions of NAME.cpp, None where they cannot be had.

    macros: defined, for forms that tests compare. with_torch: it uses torch's C++ interface (c10), so there is one
    build for each version of torch.
    """
    command = compiler()
    if command is None:
        return None
    flags, places, libraries = [*_FLAGS, *(f"-D{macro}" for macro in macros)], ["-iquote", str(_FOLDER)], []
    if with_torch:
        of_torch = Path(torch.__file__).parent
        flags += ["-std=c++20", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        places += ["-isystem", str(of_torch / "include")]
        libraries += ["-L", str(of_torch / "lib"), "-lc10"]
    sources = _with_headers(f"{name}.cpp")
    built_for = [*flags, cpu_identity(), *([torch.__version__] if with_torch else [])]
    key = hashlib.sha256(b"\0".join([*sources, *(word.encode() for word in built_for)])).hexdigest()[:16]
    try:
        file = cache_dir() / "kernels" / f"{name}-{key}.so"
        if not file.exists():
            _compile([command, *flags, *places], sources[0], libraries, file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError, ShoestringError):
        return None


def _with_headers(file: str) -> list[bytes]:
    """The content of a file of this folder, and of all those that it includes from here."""
    content = (_FOLDER / file).read_bytes()
    included = re.findall(rb'^#include "(.+)"', content, re.MULTILINE)
    return [content, *(part for header in included for part in _with_headers(header.decode()))]


def _compile(command: list[str], source: bytes, libraries: list[str], file: Path) -> None:
    """Object and link apart: linking with -fopenmp would name the compiler's own OpenMP library."""
    with atomic_write(file, "wb") as out:
        built = Path(f"{out.name}.o")
        linked = Path(f"{out.name}.so")
        try:
            made = [*command, "-x", "c++", "-c", "-", "-o", str(built)]
            subprocess.run(made, input=source, check=True, capture_output=True, timeout=_PATIENCE)
            together = [command[0], "-shared", str(built), "-o", str(linked), *libraries]
            subprocess.run(together, check=True, capture_output=True, timeout=_PATIENCE)
            out.write(linked.read_bytes())
        except subprocess.CalledProcessError:
            pass  # an empty file says that it was tried
        finally:
            built.unlink(missing_ok=True)
            linked.unlink(missing_ok=True)
