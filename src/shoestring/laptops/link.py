"""How quick the way between two machines is: round trips of small messages, and how fast large ones arrive.

Both over the authenticated connection, before anything else goes over it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from shoestring.laptops.wire import MOST_BYTES, LinkError, Wire
from shoestring.plan.split import Link

_TRIPS = 9
_CHUNKS = 24  # of MOST_BYTES at most, each way
_ENOUGH = 0.5  # seconds that the measurement of bandwidth takes, each way
_SECONDS = 30.0  # for one answer


def measured(wire: Wire) -> Link:
    """By the host. latency: half of the median round trip; bandwidth: the slower of both ways. Raises LinkError."""
    trips = []
    for _ in range(_TRIPS):
        started = time.perf_counter()
        wire.send("ping", {"back": 0})
        _pong(wire)
        trips.append(time.perf_counter() - started)
    latency = statistics.median(trips[1:]) / 2
    there = _rate(wire, bytes(MOST_BYTES), 0, latency)
    back = _rate(wire, b"", MOST_BYTES, latency)
    return Link(latency, min(there, back))


def _rate(wire: Wire, content: bytes, back: int, latency: float) -> float:
    """Bytes per second. One is on its way while the one before is answered, so that the way is never empty."""
    started, done, asked = time.perf_counter(), 0, 0
    while done < _CHUNKS:
        while asked < min(done + 2, _CHUNKS):
            wire.send("ping", {"back": back}, content)
            asked += 1
        _pong(wire)
        done += 1
        if time.perf_counter() - started > _ENOUGH:
            break
    seconds = max(time.perf_counter() - started - 2 * latency, 1e-6)
    rate = done * MOST_BYTES / seconds
    for _ in range(asked - done):
        _pong(wire)
    return rate


def _pong(wire: Wire) -> None:
    """The next message that is no sign of life, which come at any time."""
    while (message := wire.receive(_SECONDS)).kind == "alive":
        pass
    if message.kind != "pong":
        raise LinkError(f"{message.kind[:40]!r} came where the link was measured")


def answer(wire: Wire, fields: dict[str, Any]) -> None:
    """By the joiner, to a ping. Raises LinkError."""
    back = fields.get("back")
    if not isinstance(back, int) or not 0 <= back <= MOST_BYTES:
        raise LinkError("a ping asks for more than is sent")
    wire.send("pong", {}, bytes(back))

