"""What stands before the server: who may ask, from where, and how much. Pure ASGI, so that streams pass untouched.

A server that asks nobody for a key is for this machine alone, and a browser on it runs scripts of strangers: so a
request must name a host of this machine (no other name that a stranger's DNS leads here), and one that a web page sends
must come from this server's own page or from one that was named. Bodies are read here (`body`), before anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoestring.serve.http.body import Body, Room
from shoestring.serve.http.errors import ApiError
from shoestring.serve.http.limits import Access, Limits, is_loopback
from shoestring.serve.http.metrics import Metrics
from shoestring.serve.http.page import is_of_page

OPEN_PATHS = ("/health",)  # to everyone, as the web page is
_OTHER = "other"  # paths that are not there, in the figures


class Guard:
    """known: whether a path is one of the server's, for the figures."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, metrics: Metrics, known: Callable[[str], bool]):
        self._app, self._access, self._limits, self._metrics, self._known = app, access, limits, metrics, known
        self._inside = 0  # requests
        self._room = Room(limits.bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, path = time.monotonic(), scope["path"]
        status = 499  # nobody was there to be answered
        body = Body(self._limits, self._room)

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._inside += 1
        try:
            try:
                self._check(scope)
                inner = await _with_body(scope, receive, body)
            except ApiError as error:
                response = JSONResponse(error.body, error.status_code, error.headers)
                await response(scope, receive, counted)
            else:
                if inner is not None:
                    await self._app(scope, inner, counted)
        except Exception:
            status = 500
            raise
        finally:
            self._inside -= 1
            body.close()
            self._metrics.requests[path if self._known(path) else _OTHER, status] += 1
            self._metrics.duration.add(time.monotonic() - begun)

    def _check(self, scope: Scope) -> None:
        """Raises ApiError for whom this server is not there."""
        headers, access = Headers(scope=scope), self._access
        if self._inside > self._limits.requests and scope["path"] not in OPEN_PATHS:
            raise ApiError(503, "too many requests at once", None, "overloaded", {"retry-after": "1"})
        own = host_of(headers.get("host", ""))
        if not access.keys and access.loopback and not (is_loopback(own) or own.endswith(".localhost")):
            raise ApiError(403, f"this server answers to the names of this machine, and not to {own!r:.100}")
        origin = headers.get("origin")
        if origin is not None and origin not in access.origins and not _same(origin, headers.get("host", "")):
            raise ApiError(403, f"web pages of {origin!r:.100} may not ask this server (--cors allows some)")
        open_to_all = scope["path"] in OPEN_PATHS or is_of_page(scope["path"]) or scope["method"] == "OPTIONS"
        if access.keys and not open_to_all:
            kind, _, key = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not access.opens(key.strip()):
                what = "this is not a key of this server" if key else "a key is asked for: Authorization: Bearer KEY"
                raise ApiError(401, what, None, "invalid_api_key", {"www-authenticate": "Bearer"})


async def _with_body(scope: Scope, receive: Receive, body: Body) -> Receive | None:
    """A request's messages once its body has been read; None where the client has left. Raises ApiError."""
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return receive
    content = await body.read(Headers(scope=scope), receive)
    if content is None:
        return None
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": content, "more_body": False}

    return again


def host_of(header: str) -> str:
    """The name or address in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _same(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this server."""
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and bool(host)
    except ValueError:
        return False
