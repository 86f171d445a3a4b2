"""Both ends of a connection in one process, for tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from shoestring.laptops.handshake import admit, ask
from shoestring.laptops.wire import Wire

TOKEN = "correct-horse-battery-staple"


def pair() -> tuple[Wire, Wire, socket.socket, socket.socket]:
    """Two wires, and the sockets below them."""
    one, other = socket.socketpair()
    return Wire(one), Wire(other), one, other


def both(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """What each returns, or raises, run at the same time."""
    found: list[Any] = [None, None]

    def run(place: int, call: Callable[[], Any]) -> None:
        try:
            found[place] = call()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=[i, call]) for i, call in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found[0], found[1]


def trusted() -> tuple[Wire, Wire, socket.socket, socket.socket]:
    """Host and joiner that have proved the token."""
    host, joiner, *sockets = pair()
    assert both(lambda: admit(host, TOKEN), lambda: ask(joiner, TOKEN)) == (None, None)
    return host, joiner, *sockets
