"""Messages between two machines: a header of fixed size, JSON of a bounded size, perhaps bytes of a bounded size.

    magic 4 | version 2 | bytes of the JSON 4 | bytes after it 4 | HMAC-SHA256 32

Once both have proved the token (`handshake`), each message carries a MAC over its number, header and content, under a
key that is of this connection and this direction: what a stranger changes, repeats or leaves out is refused. Nothing is
hidden: whoever listens on the way reads along. No size is believed before it is compared with a limit, nothing is
parsed before its MAC is right, nothing is unpickled, and every wait has an end. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import select
import socket
import struct
import threading
import time
from typing import Any, NamedTuple

from shoestring.core.errors import NetworkError
from shoestring.core.foreign import parse_json

VERSION = 1
MAGIC = b"SHOE"
HEADER = struct.Struct("!4sHII32s")
MOST_BEFORE = 4096  # bytes of JSON from someone who has proved nothing
MOST_JSON = 4 * 2**20  # a list of 30,000 tensors with their hashes
MOST_BYTES = 2**20  # after the JSON of one message
MOST_ITEMS = 400_000
_NO_MAC = bytes(32)


class LinkError(NetworkError):
    """The other end sent what this one does not take, or has gone."""


class Gone(LinkError):
    """The connection has ended."""


class Late(LinkError):
    """Nothing came in time."""


class Message(NamedTuple):
    """kind: what it is. fields: the rest of its JSON. content: the bytes after it."""

    kind: str
    fields: dict[str, Any]
    content: bytes = b""


class Wire:
    """One connection. Any thread may send; one receives. Closed for good by the first error. there: the address of the
    other end, for a person."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):  # not of all families
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.there = ":".join(map(str, connection.getpeername()[:2]))
        except OSError:
            self.there = "a machine that has gone"
        self._sending = threading.Lock()
        self._keys: tuple[bytes, bytes] | None = None  # of what is sent, and of what comes
        self._sent = self._received = 0
        self._come = bytearray()  # of a message that is not whole yet: Ctrl-C between two parts of it loses nothing
        self.bytes_sent = self.bytes_received = 0

    @property
    def here(self) -> str:
        """The address of this end."""
        return str(self._socket.getsockname()[0])

    def trust(self, sending: bytes, receiving: bytes) -> None:
        """From here on every message has a MAC under these keys."""
        self._keys = (sending, receiving)

    def send(self, kind: str, fields: dict[str, Any] | None = None, content: bytes = b"", seconds: float = 20) -> None:
        """Raises Gone, or Late where the other end takes nothing for so long."""
        text = json.dumps({"kind": kind, **(fields or {})}).encode()
        assert len(text) <= MOST_JSON and len(content) <= MOST_BYTES, (kind, len(text), len(content))
        with self._sending:
            header = HEADER.pack(MAGIC, VERSION, len(text), len(content), _NO_MAC)
            if self._keys is not None:
                mac = _mac(self._keys[0], self._sent, header, text, content)
                header = HEADER.pack(MAGIC, VERSION, len(text), len(content), mac)
            self._sent += 1
            self._write(header + text + content, seconds)

    def receive(self, seconds: float) -> Message:
        """The next message, whole within `seconds`. Raises LinkError, after which the connection is closed."""
        until = time.monotonic() + seconds
        try:
            self._fill(HEADER.size, until)
            magic, version, size, more, mac = HEADER.unpack_from(self._come)
            if magic != MAGIC:
                raise LinkError("what came is no message of shoestring")
            if version != VERSION:
                raise LinkError(f"it speaks version {version} of the protocol, and this is version {VERSION}")
            trusted = self._keys is not None
            if size > (MOST_JSON if trusted else MOST_BEFORE) or more > (MOST_BYTES if trusted else 0):
                raise LinkError(f"a message of {size:,} + {more:,} bytes is more than is taken")
            self._fill(HEADER.size + size + more, until)
            whole = bytes(self._come)
            self._come = bytearray()
            text, content = whole[HEADER.size : HEADER.size + size], whole[HEADER.size + size :]
            if self._keys is not None:
                bare = HEADER.pack(magic, version, size, more, _NO_MAC)
                if not hmac.compare_digest(mac, _mac(self._keys[1], self._received, bare, text, content)):
                    raise LinkError("a message was changed on its way")
            self._received += 1
            return _parsed(text, content)
        except LinkError:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _write(self, data: bytes, seconds: float) -> None:
        until, rest = time.monotonic() + seconds, memoryview(data)
        try:
            while rest:
                try:
                    count = self._socket.send(rest[: 2**18])
                except BlockingIOError:
                    if not self._ready(until, writing=True):
                        raise Late("the other end takes nothing") from None
                    continue
                rest = rest[count:]
                self.bytes_sent += count
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            self.close()
            raise Gone(f"the connection has ended: {getattr(error, 'strerror', None) or error}") from None
        except LinkError:
            self.close()
            raise

    def _fill(self, count: int, until: float) -> None:
        """Until so many bytes of a message have come."""
        try:
            while (missing := count - len(self._come)) > 0:
                try:
                    part = self._socket.recv(min(missing, 2**18))
                except BlockingIOError:
                    if not self._ready(until, writing=False):
                        raise Late("nothing came in time") from None
                    continue
                if not part:
                    raise Gone("the other end has left")
                self._come += part
                self.bytes_received += len(part)
        except (OSError, ValueError) as error:
            raise Gone(f"the connection has ended: {getattr(error, 'strerror', None) or error}") from None

    def _ready(self, until: float, writing: bool) -> bool:
        """Wait for room or for bytes; False at the end of the time."""
        left = until - time.monotonic()
        if left <= 0:
            return False
        one = [self._socket]
        found = select.select([] if writing else one, one if writing else [], [], left)
        return bool(found[0] or found[1])


def _mac(key: bytes, number: int, header: bytes, text: bytes, content: bytes) -> bytes:
    made = hmac.new(key, struct.pack("!Q", number) + header, hashlib.sha256)
    made.update(text)
    made.update(content)
    return made.digest()


def _parsed(text: bytes, content: bytes) -> Message:
    try:
        value = parse_json(text, most_items=MOST_ITEMS)
    except ValueError as error:
        raise LinkError(f"a message holds no JSON: {error}") from None
    kind = value.pop("kind", None) if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise LinkError("a message does not say what it is")
    return Message(kind, value, content)
