"""Units that people type: bytes ("4GB"), durations ("1h30m") and the way back to short text.

MB is 10^6 bytes and MiB is 2^20, as IEC 80000-13 says: budgets are compared with /proc, which counts exactly,
so the difference of 5 to 10 percent matters. `Bytes` and `Seconds` are the pydantic types for recipe fields.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from shoestring.core.errors import ConfigError

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SECOND_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "sec": 1.0, "ms": 0.001}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|min|sec|d|h|m|s)")


def parse_bytes(value: str | int | float) -> int:
    """Bytes in "4GB", "512 MiB", "1.5g" or a bare number.

    Raises ConfigError for anything else, negatives included.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]*)\s*", value)
        unit = _BYTE_UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise ConfigError(
                f"{value!r} is not a size in bytes", hint='write it like "4GB", "600MB" or "512MiB"'
            )
        return round(float(match.group(1)) * unit) if "." in match.group(1) else int(match.group(1)) * unit
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise ConfigError(
            f"{value!r} is not a size in bytes", hint='write it like "4GB", "600MB" or "512MiB"'
        )
    return int(value)


def parse_seconds(value: str | int | float) -> float:
    """Seconds in "3h", "2m", "90s", "1h30m", "1.5h" or a bare number.

    Raises ConfigError for anything else.
    """
    if isinstance(value, str):
        text = value.strip().lower().replace(" ", "")
        if re.fullmatch(r"\d+(?:\.\d+)?", text):
            return float(text)
        parts = _DURATION_PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sum(float(number) * _SECOND_UNITS[unit] for number, unit in parts)
        raise ConfigError(f"{value!r} is not a duration", hint='write it like "2m", "90s", "3h" or "1h30m"')
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise ConfigError(f"{value!r} is not a duration", hint='write it like "2m", "90s", "3h" or "1h30m"')
    return float(value)


def format_bytes(count: int | float) -> str:
    """Decimal bytes with about two significant digits: 880000000 -> "0.88 GB", 98362432 -> "98 MB"."""
    count = float(count)
    if abs(count) < 1e3:
        return f"{count:.0f} B"
    if abs(count) < 1e6:
        return f"{_digits(count / 1e3)} kB"
    if abs(count) < 5e8:
        return f"{_digits(count / 1e6)} MB"
    if abs(count) < 1e12:
        return f"{count / 1e9:.2f} GB" if abs(count) < 1e10 else f"{_digits(count / 1e9)} GB"
    return f"{_digits(count / 1e12)} TB"


def format_seconds(seconds: float) -> str:
    """A clock people read: 79 -> "1:19", 3725 -> "1:02:05", 0.25 -> "0.2 s"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def parse_count(value: str | int) -> int:
    """A whole number in "2.5B", "300k", "1_000" or as it is.

    Raises ConfigError for anything else, zero and negatives included.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt]?)", str(value).strip().lower().replace("_", "").replace(",", ""))
    count = round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[match[2]]) if match else 0
    if count < 1:
        raise ConfigError(f"{value!r} is not a number of things", hint='write it like "2.5B", "300M", "40k" or "812"')
    return count


def format_count(count: int | float) -> str:
    """A count in short form: 41230 -> "41k", 2900000 -> "2.9M", 812 -> "812"."""
    size = abs(count)
    for limit, unit, suffix in (
        (999.5, 1, ""),
        (999.5e3, 1e3, "k"),
        (999.5e6, 1e6, "M"),
        (999.5e9, 1e9, "B"),
    ):
        if size < limit:
            return f"{count:.0f}" if not suffix else f"{_digits(count / unit)}{suffix}"
    return f"{_digits(count / 1e12)}T"


def counted(count: int, noun: str) -> str:
    """A number of things: 1 step, 1,200 steps."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _digits(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 9.95 else f"{value:.0f}"


def _bytes_field(value: Any) -> int:
    try:
        return parse_bytes(value)
    except ConfigError as error:
        raise ValueError(f"expected a size such as 4GB, 600MB or 512MiB, found {value!r}") from error


def _seconds_field(value: Any) -> float:
    try:
        return parse_seconds(value)
    except ConfigError as error:
        raise ValueError(f"expected a duration such as 2m, 90s or 1h30m, found {value!r}") from error


Bytes = Annotated[int, BeforeValidator(_bytes_field)]
Seconds = Annotated[float, BeforeValidator(_seconds_field)]
