"""A server over tiny models, in this process, and what a client reads from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from starlette.testclient import TestClient

from shoestring.generate.language_model import LanguageModel
from shoestring.serve.http.app import make_app
from shoestring.serve.http.catalog import open_catalog, with_adapters
from shoestring.serve.http.limits import Access, Limits
from shoestring.serve.http.names import Named
from shoestring.serve.http.server import address_of, bind, server_of
from tests.generate.tiny import tiny_model

HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]
MESSAGES = [{"role": "user", "content": "Hello"}]


def tiny_app(
    language: LanguageModel | None = None,
    adapters: tuple[Named, ...] = (),
    slots: int = 4,
    access: Access | None = None,
    limits: Limits | None = None,
) -> Any:
    catalog = open_catalog(with_adapters([("tiny", language or tiny_model(context=400))], adapters), slots)
    return make_app(catalog, access, limits)


@contextlib.contextmanager
def client_of(app: Any, **options: Any) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://localhost", **options) as client:
        yield client


def chunks(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which ends as OpenAI's do."""
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: ") for event in events[:-1])
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def error_of(response: Any, status: int) -> dict[str, Any]:
    """What an answer that is an error says; its form is OpenAI's."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


class Slow(torch.nn.Module):
    """A head that takes its time, and never ends a text."""

    def __init__(self, model: LanguageModel, seconds: float):
        super().__init__()
        self.calls, self._seconds = 0, seconds
        model.decoder.head = self  # type: ignore[assignment]

    def forward(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        time.sleep(self._seconds)
        logits = torch.zeros(hidden_BD.shape[0], 260)
        logits[:, ord("x")] = 100.0
        return logits


class Exchange:
    """One request to an ASGI application whose client may leave. status and text: of the answer so far."""

    def __init__(self, app: Any, path: str, body: Any, headers: list[tuple[bytes, bytes]] = HEADERS):
        self.status, self.text = 0, ""
        self.begun = asyncio.Event()  # something of the answer's body has come
        self._left = asyncio.Event()
        self._asked = False
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
            "root_path": "", "scheme": "http", "query_string": b"", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("localhost", 80), "state": {},
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    def leave(self) -> None:
        self._left.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.text += message["body"].decode()
            self.begun.set()


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """A real server in a thread of this process -> its address."""
    ready = threading.Event()
    server = server_of(app, ready.set)
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(10), "the server did not come"
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join(10)


def until_now(condition: Any, seconds: float = 5.0) -> None:
    """`until`, where nothing else is to run in this thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def running(app: Any, test: Any) -> None:
    """Run an asynchronous test with the server open; it is given the front."""

    async def inside() -> None:
        async with app.router.lifespan_context(app):
            await test(app.state.front)

    asyncio.run(inside())
