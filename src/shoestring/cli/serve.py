"""`shoestring serve MODEL [MODEL ...]`: an OpenAI-compatible server on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from shoestring.cli.decoding import ANYWHERE, PlaceFlags
from shoestring.cli.verb import verb
from shoestring.core import console
from shoestring.core.errors import BudgetError, ConfigError
from shoestring.core.extras import need
from shoestring.core.units import format_bytes, parse_bytes, parse_seconds

app = verb(
    "serve",
    "Answer over HTTP as OpenAI's API does, to any of its clients: conversations, texts, vectors. Ctrl-C ends it.",
    (
        "shoestring serve smollm2-135m",
        "shoestring serve smollm2-135m --adapter sums=runs/sums --weights int8 --port 8080",
    ),
)

_PORT = 8000


@app.default
def serve(
    model: Annotated[str, Parameter(help="a model as chat takes it; NAME=MODEL gives it another name")],
    /,
    *more: Annotated[str, Parameter(help="further models")],
    adapter: Annotated[
        list[str] | None, Parameter(help="NAME=FOLDER, an adapter as a model of its own; may be given several times")
    ] = None,
    host: Annotated[
        str, Parameter(help="the address that is listened on; others than this machine's ask for a key")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0: any that is free")] = _PORT,
    slots: Annotated[
        int | None, Parameter(help="texts written at once, of each model [16, or what --memory has room for]")
    ] = None,
    context: Annotated[
        int | None, Parameter(help="tokens of a text, prompt and answer, at most [the model's, up to 4096]")
    ] = None,
    queue: Annotated[int, Parameter(help="texts that may wait for a slot; beyond, the answer is 429")] = 64,
    timeout: Annotated[str, Parameter(help="a request takes at most, as 10m; a text is then cut")] = "10m",
    api_key_file: Annotated[
        Path | None, Parameter(help="a file with a key on each line, one of which is asked for")
    ] = None,
    no_key: Annotated[bool, Parameter(help="let everyone ask who reaches --host")] = False,
    cors: Annotated[
        list[str] | None, Parameter(help="a web page's origin that may ask from a browser; may be given several times")
    ] = None,
    place: PlaceFlags = ANYWHERE,
) -> None:
    from shoestring.serve.http.limits import BESIDE, Limits, access, check_sizes
    from shoestring.serve.http.names import all_named

    models = [model, *more]
    allowed = access(host, api_key_file, no_key, tuple(cors or ()))
    limits = Limits(queue=queue, seconds=parse_seconds(timeout))
    if place.memory is not None and len(models) > 1:
        raise ConfigError("--memory plans for one model, and several are named (command line)")
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is not between 0 and 65535 (command line)")
    check_sizes(slots, context)
    budget = None if place.memory is None else parse_bytes(place.memory)
    bases, adapters = all_named(models, adapter or [])
    for package in ("fastapi", "uvicorn"):
        need(package, "serve", "serve")

    from shoestring.serve.http.app import make_app
    from shoestring.serve.http.catalog import open_catalog, with_adapters
    from shoestring.serve.http.server import address_of, bind, run
    from shoestring.serve.http.sizes import free_sizes, keep_within, sizes_within

    listener = bind(host, port)
    with listener:
        try:
            loaded = [(base.name, place.load(base.what, BESIDE)) for base in bases]
        except BudgetError as error:
            error.hint = f"{error.hint}, and {format_bytes(BESIDE)} more for requests and answers"
            raise
        members = with_adapters(loaded, adapters, console.say)
        if budget is None:
            sizes = free_sizes(max(one.decoder.config.context for _, one in loaded), slots, context)
        else:
            sizes = sizes_within(loaded[0][1], budget, len(members), slots, context)
            keep_within(budget)
            limits = limits.within_a_budget()
        try:
            catalog = open_catalog(members, sizes.slots, sizes.context)
            server = make_app(catalog, allowed, limits)
            run(server, listener, lambda: _tell(address_of(listener), catalog, allowed, sizes.memory, budget))
        finally:
            keep_within(None)
    console.say("stopped")


def _tell(address: str, catalog: Any, allowed: Any, memory: int | None, budget: int | None) -> None:
    """Where it is, what it has room for, and how to ask."""
    if budget is not None:
        predicted = "" if memory is None else f", of which at most {format_bytes(memory)} are predicted to be used"
        console.say(f"memory    {format_bytes(budget)} for the process{predicted}")
    for name, one in catalog.models.items():
        lane = one.lane
        of = f" (an adapter of {one.parent})" if one.parent else ""
        console.say(f"model     {name}{of}: {lane.slots} texts at once, of {lane.capacity:,} tokens each")
    first = next(iter(catalog.models))
    path, body = _example(catalog.models[first])
    key = "-H 'Authorization: Bearer KEY' " if allowed.keys else ""
    console.say(f"page      {address}/")
    console.say(f"ask       curl {address}{path} {key}-H 'Content-Type: application/json' -d '{body}'")
    console.say(f"clients   OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={'KEY' if allowed.keys else 'none'}")


def _example(served: Any) -> tuple[str, str]:
    """A path and a body that it answers."""
    if served.converses:
        messages = [{"role": "user", "content": "Hello"}]
        return "/v1/chat/completions", json.dumps({"model": served.name, "messages": messages})
    return "/v1/completions", json.dumps({"model": served.name, "prompt": "Once upon a time"})
