"""Packages that are not always there: the extras of pyproject.toml, and how to get one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from shoestring.core.errors import ConfigError


def install_hint(extra: str) -> str:
    """The command that brings an extra: in a clone, of the clone itself."""
    clone = (Path(__file__).parents[3] / "pyproject.toml").is_file()
    return "install it with: pip install " + (f'-e ".[{extra}]"' if clone else f'"shoestring[{extra}]"')


def need(package: str, setting: str, extra: str) -> None:
    """Raises ConfigError where `package`, which `setting` asks for, is not installed. Imports nothing."""
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{setting} needs the package {package}", hint=install_hint(extra))
