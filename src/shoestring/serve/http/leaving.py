"""Clients that go away before they have their answer: what is done for them is ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from shoestring.serve.http.front import Answer

T = TypeVar("T")


class ClientLeft(Exception):
    """Nobody is there to read an answer."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the client leaves. receive: of a request whose body has been read.

    Raises ClientLeft.
    """
    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientLeft
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """The events of an answer, as they come. It owns the answer: whatever happens, what nobody reads is cancelled."""

    def __init__(self, answer: Answer, events: AsyncIterator[bytes]):
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answer:
            try:
                await unless_gone(receive, self.stream_response(send))
            except ClientLeft:
                self._answer.abandon()
