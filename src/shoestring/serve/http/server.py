"""Listening, and stopping well: on TERM or Ctrl-C nobody is let in any more, texts have some seconds left, and each
stream gets a proper last event. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from shoestring.core.errors import ConfigError
from shoestring.serve.http.front import Front

_BEHIND = 1.5  # seconds beyond the grace, in which last events are sent
_HEADERS = 32_768  # bytes


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: any free one. Raises ConfigError where that cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{shown_host(host)}:{port} cannot be listened on: {why} (command line)",
            hint="--port takes another port, 0 any that is free",
        ) from None


def address_of(listener: socket.socket) -> str:
    """As a client writes it."""
    host, port = listener.getsockname()[:2]
    return f"http://{shown_host(host)}:{port}"


def shown_host(host: str) -> str:
    """A host as it stands in an address."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def run(app: FastAPI, listener: socket.socket, ready: Callable[[], Any] | None = None) -> None:
    """Serve until TERM or Ctrl-C. ready: called when requests are taken."""
    server_of(app, ready).run(sockets=[listener])


def server_of(app: FastAPI, ready: Callable[[], Any] | None = None) -> uvicorn.Server:
    """What `run` runs; its `should_exit` stops it as a signal does."""
    front: Front = app.state.front
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, h11_max_incomplete_event_size=_HEADERS,
        timeout_graceful_shutdown=max(round(front.limits.grace + _BEHIND), 1),
    )  # fmt: skip
    return _Server(config, front, ready)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, front: Front, ready: Callable[[], Any] | None):
        super().__init__(config)
        self._front, self._ready = front, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._front.begin_closing()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again once all is done, which would make an error of a proper end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
