"""What a server allows, and to whom. Torch-free, so that a wrong flag is told at once."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field, replace
from pathlib import Path

from shoestring.core.errors import ConfigError, DataError
from shoestring.plan.constants import SERVING

_LEAST_KEY = 8  # characters
_MOST_KEYS = 10_000
BESIDE = SERVING  # bytes of a budget that are for requests and answers
_SMALL_BODY = 1_000_000
_SMALL_BODIES = 8_000_000  # of JSON, which is several times as much once it is read


@dataclass(frozen=True)
class Limits:
    """queue: texts that wait beyond those that run, for each model. seconds: a request takes at most, waiting included.
    requests: at once, of any kind. body: bytes of one; bodies: of all that are answered at once. body_seconds: in which
    one must have come. grace: seconds that texts have left when the server is told to stop."""

    queue: int = 64
    seconds: float = 600.0
    requests: int = 512
    body: int = 4_000_000
    bodies: int = 64_000_000
    body_seconds: float = 30.0
    grace: float = 3.0

    def __post_init__(self) -> None:
        if self.queue < 0:
            raise ConfigError(f"--queue {self.queue} is below 0 (command line)")
        if self.seconds <= 0:
            raise ConfigError(f"--timeout {self.seconds:g} is not above 0 (command line)")

    def within_a_budget(self) -> Limits:
        """What fits into BESIDE."""
        return replace(self, body=_SMALL_BODY, bodies=_SMALL_BODIES)


@dataclass(frozen=True)
class Access:
    """host: the address that is listened on. keys: SHA-256 of each key that opens it; none: nobody is asked for one.
    origins: web pages, by scheme, host and port, whose scripts may ask from a browser."""

    host: str = "127.0.0.1"
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can ask."""
        return is_loopback(self.host)

    def opens(self, key: str) -> bool:
        """Whether a key is one of those. Takes the same time for each that is not."""
        digest, found = digest_of(key), False
        for known in self.keys:
            found |= hmac.compare_digest(digest, known)
        return found


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def access(host: str, key_file: str | Path | None, no_key: bool, origins: tuple[str, ...] = ()) -> Access:
    """Raises ConfigError for an address that others reach where nothing says who may ask, and for what is no web page;
    DataError for a file of keys that cannot be used."""
    if key_file is not None and no_key:
        raise ConfigError("--api-key-file and --no-key say different things (command line)")
    if key_file is None and not no_key and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines ask, and nothing says which (command line)",
            hint="--api-key-file FILE, with a key on each line, or --no-key if everyone may",
        )
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https") or not rest or set(rest) & set("/ *"):
            message = f"--cors {origin!r} is no web page's origin (command line)"
            raise ConfigError(message, hint="as https://example.org")
    return Access(host, () if key_file is None else read_keys(key_file), origins)


def read_keys(file: str | Path) -> tuple[bytes, ...]:
    """SHA-256 of the key on each line; empty lines and those that begin with # are none. Raises DataError."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the keys cannot be read: {error.strerror}", str(file)) from None
    except ValueError:
        raise DataError("the keys cannot be read: the file is not UTF-8", str(file)) from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys or len(keys) > _MOST_KEYS:
        raise DataError(f"it holds {len(keys)} keys", str(file), "write at least one, each on a line of its own")
    for number, line in enumerate(lines, 1):
        if line.strip() in keys and (len(line.strip()) < _LEAST_KEY or not line.strip().isprintable()):
            raise DataError(
                f"a key of fewer than {_LEAST_KEY} characters, or of some that cannot be sent", f"{file}:{number}",
                "openssl rand -hex 24 makes one",
            )  # fmt: skip
    return tuple(digest_of(key) for key in keys)


def check_sizes(slots: int | None, context: int | None) -> None:
    """Raises ConfigError for numbers that cannot be."""
    for name, value, least in (("slots", slots, 1), ("context", context, 2)):
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value} is below {least} (command line)")
