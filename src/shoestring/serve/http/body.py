"""The body of a request: read whole, within limits of size and time, and looked through before anyone parses it.

All bodies together have so much room and no more: each may be large, and many may come at once. Whoever sends more than
is taken is heard out for a while, since a client that is still sending does not read the answer that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from starlette.datastructures import Headers
from starlette.types import Receive

from shoestring.core.foreign import parse_json
from shoestring.serve.http.errors import ApiError
from shoestring.serve.http.limits import Limits

_HEARD = 16  # of the limit, so much of a body that is too large is taken and thrown away
_HEARD_SECONDS = 5.0


class Room:
    """Bytes that bodies may still take together."""

    def __init__(self, free: int):
        self.free = free


class Body:
    """One request's; it has its room until `close`."""

    def __init__(self, limits: Limits, room: Room):
        self._limits, self._room = limits, room
        self._taken = 0

    async def read(self, headers: Headers, receive: Receive) -> bytes | None:
        """JSON that can be parsed; None where the client has left. Raises ApiError."""
        length, most = headers.get("content-length", ""), self._limits.body
        if length.isdecimal() and (len(length) > 15 or int(length) > most):
            if "expect" not in headers:  # else nothing is sent before it is asked for
                await _hear_out(receive, _HEARD * most)
            raise _too_large(most)
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "a body is JSON, and says so: Content-Type: application/json")
        try:
            body = await asyncio.wait_for(self._parts(receive), self._limits.body_seconds)
        except asyncio.TimeoutError:
            seconds = self._limits.body_seconds
            raise ApiError(408, f"the body did not come within {seconds:g} seconds", None, "timeout") from None
        if body is not None:
            _look_through(body)
        return body

    def close(self) -> None:
        self._room.free += self._taken
        self._taken = 0

    async def _parts(self, receive: Receive) -> bytes | None:
        parts, most = [], self._limits.body
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            self._take(len(parts[-1]))
            if self._taken > most:
                await _hear_out(receive, _HEARD * most)
                raise _too_large(most)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _take(self, count: int) -> None:
        if count > self._room.free:
            raise ApiError(503, "too much is being answered at once", None, "overloaded", {"retry-after": "1"})
        self._room.free -= count
        self._taken += count


async def _hear_out(receive: Receive, most: int) -> None:
    """Take what still comes, and keep nothing."""

    async def all_parts() -> None:
        size = 0
        while size < most:
            message = await receive()
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(all_parts(), _HEARD_SECONDS)


def _look_through(body: bytes) -> None:
    """Raises ApiError for what is no JSON, or JSON that goes too far."""
    try:
        value = parse_json(body)
        if b"\\ud" in body.lower():  # half of a surrogate pair could never be written again
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON that is read here: {error}", None, "invalid_json") from None


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most:,} bytes", None, "request_too_large", {"connection": "close"})
