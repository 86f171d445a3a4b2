"""The server's paths: each reads a body that is valid already, asks the front, and answers.

Bodies are checked by their classes (`chat_request`, `completion_request`), which are the server's OpenAPI description
too, at /openapi.json. FastAPI's own pages of documentation load scripts from elsewhere, so there are none.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from shoestring import __version__
from shoestring.core.errors import ShoestringError
from shoestring.serve.http import page
from shoestring.serve.http.catalog import Catalog, Served
from shoestring.serve.http.chat import ChatReply
from shoestring.serve.http.chat_request import ChatRequest
from shoestring.serve.http.completion_request import CompletionRequest, EmbeddingRequest, TokenizeRequest
from shoestring.serve.http.completions import CompletionReply
from shoestring.serve.http.embeddings import embed, plan_embeddings
from shoestring.serve.http.errors import ApiError, body_of, of_validation, refusal
from shoestring.serve.http.front import Answer, Front
from shoestring.serve.http.guard import Guard
from shoestring.serve.http.leaving import ClientLeft, EventStream, unless_gone
from shoestring.serve.http.limits import Access, Limits
from shoestring.serve.http.metrics import MEDIA_TYPE, Metrics
from shoestring.serve.http.plans import Plan, encode_messages, plan_chat, plan_completion

_LEFT = 499  # what web servers note of a client that is no longer there


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    error: ErrorBody


router = APIRouter(responses={"4XX": {"model": Failure}, "5XX": {"model": Failure}})


def make_app(catalog: Catalog, access: Access | None = None, limits: Limits | None = None) -> FastAPI:
    """The server as an ASGI application; its lifespan starts and ends the thread that owns the models."""
    access, limits, metrics = access or Access(), limits or Limits(), Metrics()
    front = Front(catalog.lanes, limits, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        front.open()
        try:
            yield
        finally:
            front.close()

    app = FastAPI(title="Shoestring", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.front, app.state.catalog = front, catalog
    app.include_router(router)
    app.include_router(page.router)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    paths = frozenset(app.openapi()["paths"]) | {"/openapi.json", "/"}
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    app.add_middleware(Guard, access=access, limits=limits, metrics=metrics, known=paths.__contains__)
    return app


def front_of(request: Request) -> Front:
    return request.app.state.front


def served_by(request: Request, name: str) -> Served:
    return request.app.state.catalog.find(name)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    catalog: Catalog = request.app.state.catalog
    return JSONResponse({"object": "list", "data": [_described(one) for one in catalog.models.values()]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    return JSONResponse(_described(served_by(request, name)))


@router.post("/v1/chat/completions")
async def chat(request: Request, body: ChatRequest) -> Response:
    front, served = front_of(request), served_by(request, body.model)
    plan = await front.prepare(functools.partial(plan_chat, served, body))
    return await _answer(request, served, plan, ChatReply(served, body, plan), body.stream)


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    front, served = front_of(request), served_by(request, body.model)
    plan = await front.prepare(functools.partial(plan_completion, served, body))
    return await _answer(request, served, plan, CompletionReply(served, body, plan), body.stream)


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    front, served = front_of(request), served_by(request, body.model)
    inputs = await front.prepare(functools.partial(plan_embeddings, served, body))
    try:
        return JSONResponse(await unless_gone(request.receive, embed(front, served, body, inputs)))
    except ClientLeft:
        front.metrics.left += 1
        return Response(status_code=_LEFT)


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    front, served = front_of(request), served_by(request, body.model)

    def ids() -> list[int]:
        if body.messages is not None:
            return encode_messages(served, body.messages)
        return served.language.encode_prompt(body.prompt or "")

    tokens = await front.prepare(ids)
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": served.lane.capacity})


@router.get("/health")
async def health(request: Request) -> Response:
    healthy = front_of(request).healthy
    return JSONResponse({"status": "ok" if healthy else "closing"}, 200 if healthy else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    front, catalog = front_of(request), request.app.state.catalog
    lanes = {name: one.lane for name, one in catalog.models.items()}
    pending = {name: front.pending(lane) for name, lane in lanes.items()}
    return PlainTextResponse(front.metrics.text(lanes, pending), media_type=MEDIA_TYPE)


async def _answer(
    request: Request, served: Served, plan: Plan, reply: ChatReply | CompletionReply, stream: bool
) -> Response:
    """What is asked, written; as a stream it goes on while the answer is sent."""
    answer: Answer = front_of(request).answer(served.lane, plan.requests)
    if stream:
        return EventStream(answer, reply.stream(answer))
    with answer:
        try:
            return JSONResponse(await unless_gone(request.receive, reply.whole(answer)))
        except ClientLeft:
            answer.abandon()
            return Response(status_code=_LEFT)


def _described(served: Served) -> dict[str, Any]:
    """As OpenAI has a model; below, what there is to say about one here."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "shoestring",
        "parent": served.parent,
        "converses": served.converses,
        "max_model_len": served.lane.capacity,
        "slots": served.lane.slots,
    }


async def _api_error(request: Request, error: Any) -> Response:
    return JSONResponse(error.body, error.status_code, error.headers)


async def _http_error(request: Request, error: Any) -> Response:
    what = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
    return JSONResponse(body_of(error.status_code, what), error.status_code, error.headers)


async def _invalid(request: Request, error: Any) -> Response:
    return await _api_error(request, of_validation(error.errors()))


async def _refused(request: Request, error: Any) -> Response:
    return await _api_error(request, refusal(error))


async def _mistake(request: Request, error: Exception) -> Response:
    return JSONResponse(body_of(500, "the server made a mistake: its log says which", None, "internal_error"), 500)


_HANDLERS: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
    ApiError: _api_error,
    RequestValidationError: _invalid,
    ShoestringError: _refused,
    HTTPException: _http_error,
    Exception: _mistake,
}
