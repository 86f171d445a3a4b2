"""The first machine's door: one address, the token asked of whoever comes, before anything of the run is told.

A stranger, random bytes, a header that promises gigabytes, a connection that says nothing: each is refused with a line
in the log, and the run goes on. Each is heard in a thread of its own, few at a time, for ten seconds at most.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.laptops.config import Address
from shoestring.laptops.handshake import SECONDS, Versions, admit, expect
from shoestring.laptops.wire import LinkError, Message, Wire

MOST_UNPROVED = 8  # connections at once
_MOST_LINES = 20  # in the log, of refusals within a minute


class Listener:
    """Open from the start. came: told of each connection that proved the token and whose versions fit, in a thread of
    its own; what it raises as LinkError is the reason of a refusal. log: takes a line."""

    def __init__(
        self, address: Address, token: str, came: Callable[[Wire, Message], Any], log: Callable[[str], Any],
        versions: Versions | None = None,
    ):  # fmt: skip
        self._token, self._came, self._log = token, came, log
        self._versions = versions or Versions.here()
        self._door = bound(address)
        self.address = Address(address.host, self._door.getsockname()[1])
        self._room = threading.BoundedSemaphore(MOST_UNPROVED)
        self._told: list[float] = []
        self.refused = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._door.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    time.sleep(0.1)
                    continue
                return  # closed
            if not self._room.acquire(blocking=False):
                self._refusal(Wire(connection), "too many ask at once")
                continue
            threading.Thread(target=self._hear, args=[Wire(connection)], daemon=True).start()

    def _hear(self, wire: Wire) -> None:
        try:
            try:
                admit(wire, self._token)
                message = expect(wire, "join", SECONDS)
                theirs = Versions.of(message.fields.get("versions"))
            finally:
                self._room.release()
            if misfit := self._versions.misfit(theirs):
                raise LinkError(misfit)
            self._came(wire, message)
        except LinkError as error:
            with contextlib.suppress(LinkError):  # one that is gone already
                wire.send("refused", {"why": error.message}, seconds=1)
            self._refusal(wire, error.message)

    def _refusal(self, wire: Wire, why: str) -> None:
        there, now = wire.there, time.monotonic()
        wire.close()
        with self._lock:
            self.refused += 1
            self._told = [moment for moment in self._told if moment > now - 60]
            self._told.append(now)
            if len(self._told) > _MOST_LINES:
                return
        self._log(f"refused   {there}: {why}")


def bound(address: Address) -> socket.socket:
    """A socket that listens on this address and no other. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((address.host, address.port))
        door.listen(32)
    except OSError as error:
        door.close()
        hint = "another run may have it: choose another port" if error.errno == errno.EADDRINUSE else None
        if error.errno == errno.EADDRNOTAVAIL:
            hint = "name an address of this machine"
        raise ConfigError(f"cannot listen on {address}: {error.strerror}", hint=hint) from None
    return door


def connected(address: Address, seconds: float) -> Wire:
    """Raises LinkError."""
    try:
        return Wire(socket.create_connection((address.host, address.port), seconds))
    except OSError as error:
        raise LinkError(f"nobody answers at {address}: {error.strerror or error}") from None
