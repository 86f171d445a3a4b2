"""Who may take part: both ends prove that they know the token, which is never sent, and then compare their versions.

    joiner → host   hello      nonce of 32 bytes
    host → joiner   challenge  nonce of 32 bytes
    joiner → host   proof      HMAC(token, "join" + both nonces)
    host → joiner   welcome    HMAC(token, "host" + both nonces)

From then on every message carries a MAC under a key of the token and both nonces (`wire`). A host that does not know
the token cannot have a machine work for it either. Whoever listens could try tokens against a proof, so one that is not
drawn here must be long. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sys
from dataclasses import dataclass
from typing import Any

from shoestring import __version__
from shoestring.core.errors import ConfigError
from shoestring.laptops.wire import LinkError, Message, Wire

SECONDS = 10.0  # for all of it
LEAST_TOKEN = 16  # characters
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that looks like another


class Refused(LinkError):
    """One end does not let the other take part."""


@dataclass(frozen=True)
class Versions:
    """What must fit for two machines to compute together."""

    shoestring: str
    torch: str
    byteorder: str = sys.byteorder

    @classmethod
    def here(cls) -> Versions:
        from importlib.metadata import version

        return cls(__version__, version("torch"))

    @classmethod
    def of(cls, value: Any) -> Versions:
        """Raises LinkError."""
        names = tuple(cls.__dataclass_fields__)
        if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in names):
            raise LinkError("its versions are not told")
        return cls(**{name: value[name][:64] for name in names})

    def misfit(self, other: Versions) -> str | None:
        """Why they do not fit, with both; None where they do. Of torch the first two numbers matter: gloo's own
        messages and the pipeline's may change with them."""
        for name, mine, theirs in (
            ("shoestring", self.shoestring, other.shoestring),
            ("torch", _minor(self.torch), _minor(other.torch)),
            ("byte order", self.byteorder, other.byteorder),
        ):
            if mine != theirs:
                whole = (self.torch, other.torch) if name == "torch" else (mine, theirs)
                return f"{name} is {whole[0]} on the first machine and {whole[1]} on the one that joins"
        return None


def new_token() -> str:
    """Four groups of six characters, 118 bits, to be read out over a telephone."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(6)) for _ in range(4))


def check_token(token: str) -> str:
    """Raises ConfigError for one that could be guessed."""
    token = token.strip()
    if len(token) < LEAST_TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters, and with fewer than {LEAST_TOKEN} it could be guessed",
            hint="leave --token out on the first machine, and one is drawn",
        )
    return token


def admit(wire: Wire, token: str) -> None:
    """The host's side, before anything else. Raises LinkError: Refused where the token is another one."""
    hello = expect(wire, "hello", SECONDS)
    nonces = _nonce(hello), secrets.token_bytes(32)
    wire.send("challenge", {"nonce": nonces[1].hex()}, seconds=SECONDS)
    proof = _hex(expect(wire, "proof", SECONDS), "proof")
    if not hmac.compare_digest(proof, _proof(token, b"join", nonces)):
        wire.send("refused", {"why": "the token is not that of this run"}, seconds=SECONDS)
        wire.close()
        raise Refused("it does not know the token")
    wire.send("welcome", {"proof": _proof(token, b"host", nonces).hex()}, seconds=SECONDS)
    wire.trust(_proof(token, b"key of host", nonces), _proof(token, b"key of join", nonces))


def ask(wire: Wire, token: str) -> None:
    """The joiner's side. Raises LinkError: Refused where one of both does not know the token."""
    nonce = secrets.token_bytes(32)
    wire.send("hello", {"nonce": nonce.hex()}, seconds=SECONDS)
    nonces = nonce, _nonce(expect(wire, "challenge", SECONDS))
    wire.send("proof", {"proof": _proof(token, b"join", nonces).hex()}, seconds=SECONDS)
    proof = _hex(expect(wire, "welcome", SECONDS), "proof")
    if not hmac.compare_digest(proof, _proof(token, b"host", nonces)):
        wire.close()
        raise Refused("what answers there does not know the token")
    wire.trust(_proof(token, b"key of join", nonces), _proof(token, b"key of host", nonces))


def expect(wire: Wire, kind: str, seconds: float) -> Message:
    """The next message, which must be of this kind. Raises Refused with the reason that it holds instead, LinkError."""
    message = wire.receive(seconds)
    if message.kind == "refused":
        wire.close()
        raise Refused(str(message.fields.get("why", "no reason was given"))[:500])
    if message.kind != kind:
        wire.close()
        raise LinkError(f"{message.kind[:40]!r} came where {kind!r} was expected")
    return message



def _proof(token: str, role: bytes, nonces: tuple[bytes, bytes]) -> bytes:
    return hmac.new(token.encode(), b"shoestring laptops 1 " + role + b"".join(nonces), hashlib.sha256).digest()


def _nonce(message: Message) -> bytes:
    return _hex(message, "nonce")


def _hex(message: Message, name: str) -> bytes:
    text = message.fields.get(name)
    try:
        found = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        found = b""
    if len(found) != 32:
        raise LinkError(f"{message.kind} has no {name} of 32 bytes")
    return found


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
