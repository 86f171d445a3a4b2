"""The server under many streams, beside llama.cpp on the same file, and under clients that misbehave.

    python -m benchmarks.serve [--quick] [--llama-python PYTHON] [--model MODEL] [--weights file] [--streams 16]
        [--rounds N] [--peer "llama-server -m FILE.gguf -np 16 -c 16384 --port {port}"]

PYTHON: an interpreter that has llama-cpp-python, best built from source with native flags; `llama_server.py` then
writes many texts at once as llama.cpp's own server does, from the model's file and from the same in Q4_0. --peer: the
command of any OpenAI-compatible server, {port} its port. Servers are processes of their own and are asked in turn: one
stream, then many at once, each of 16 to 48 words and 128 new tokens, drawn with temperature 0.8, top_k 40, top_p 0.95.
Tables show medians of rounds. throughput_ratio: tokens a second of all streams together over the first peer's
(single_ratio: over those of one stream of ours; throughput_ratio_best: over the fastest peer's); p99_ratio: the 99th
percentile of the time to the first token over the first peer's.

Then 1,000 requests from 64 clients, of which some leave, send no JSON, too much of it or unknown fields. errors:
answers of 500 and above but 503, and those that never came; memory_growth: of the process over their second half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, finish, show

STREAMS, NEW, STORM, CLIENTS = 16, 128, 1000, 64
PATIENCE = 300.0  # seconds that an answer may take
LEFT = -1  # instead of a status, of a client that went away
WORDS = "river stone evening letter garden winter music street window bread".split()


@dataclass
class Server:
    """One process that serves. more: fields that let no text end early, as this server has them."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    model: str
    more: dict[str, Any]


@dataclass
class Asked:
    """What one request got. status: 0 where no answer came. first: seconds until its first event."""

    status: int = 0
    first: float | None = None
    tokens: int = 0


@dataclass
class Figures:
    """Of one server, a number for each round."""

    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)  # of all requests


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start(name: str, command: Sequence[str], port: int, **more: Any) -> Server:
    """Exits with a sentence where the server does not come."""
    log = tempfile.TemporaryFile()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT)
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"error: {name} ended: {log.read()[-2000:].decode(errors='replace')}")
        try:
            models = asyncio.run(get(port, "/v1/models"))
            return Server(name, process, port, json.loads(models)["data"][0]["id"], more)
        except (OSError, ValueError, KeyError, IndexError):
            time.sleep(0.2)
    process.kill()
    raise SystemExit(f"error: {name} did not come within 300 seconds")


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode(errors="replace").partition("\r\n\r\n")
    writer.close()
    if " 200 " not in head.partition("\r\n")[0]:
        raise ValueError(head[:200])
    return body


async def ask(port: int, body: bytes, leave_after: float | None = None) -> Asked:
    """One request for a completion. leave_after: seconds until the client goes away. Tokens are those that the usage in
    the last event counts, else the events."""
    found, begun = Asked(), time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)

    async def read() -> None:
        found.status = int((await reader.readline()).split()[1])
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                found.first = found.first or time.perf_counter() - begun
                counted = re.search(rb'"completion_tokens": ?(\d+)', line)
                found.tokens = int(counted[1]) if counted else found.tokens + 1

    try:
        await asyncio.wait_for(read(), leave_after or PATIENCE)
    except asyncio.TimeoutError:
        found.status = 0 if leave_after is None else LEFT
    except (ConnectionError, IndexError, ValueError):
        pass
    finally:
        writer.close()
    return found


def prompt(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(16, 48)))


def asking(server: Server, draw: random.Random, new: int, **more: Any) -> bytes:
    body = {
        "model": server.model, "prompt": prompt(draw), "max_tokens": new, "stream": True, "temperature": 0.8,
        "top_k": 40, "top_p": 0.95, "seed": draw.randrange(1000), "stream_options": {"include_usage": True}, **more,
    }  # fmt: skip
    return json.dumps(body).encode()


async def together(server: Server, streams: int, draw: random.Random, new: int) -> list[Asked]:
    bodies = [asking(server, draw, new, **{name: new if of is int else of for name, of in server.more.items()})
              for _ in range(streams)]  # fmt: skip
    return await asyncio.gather(*(ask(server.port, body) for body in bodies))


def measure(server: Server, figures: Figures, streams: int, new: int, seed: int) -> None:
    """One round: the same requests for each server."""
    draw = random.Random(seed)
    for count, into in ((1, figures.one), (streams, figures.many)):
        begun = time.perf_counter()
        found = asyncio.run(together(server, count, draw, new))
        if any(one.tokens != new for one in found):
            told = [(one.status, one.tokens) for one in found]
            raise SystemExit(f"error: {server.name} did not write {new} tokens for each request: {told}")
        into.append(count * new / (time.perf_counter() - begun))
        if count > 1:
            figures.firsts += [one.first for one in found if one.first is not None]


async def storm(server: Server, requests: int, clients: int) -> tuple[Counter[int], list[float]]:
    """-> statuses, and the bytes of the process before, in the middle and at the end."""
    statuses, memory, left, draw = Counter[int](), [], iter(range(requests)), random.Random(7)
    memory.append(await resident(server))

    async def client() -> None:
        for number in left:
            if number == requests // 2:
                memory.append(await resident(server))
            kind, leave = draw.random(), None
            body = asking(server, draw, 16)
            if kind < 0.1:
                body = body[: len(body) // 2]  # no JSON
            elif kind < 0.15:
                body = b'{"prompt": "' + b"x" * 5_000_000 + b'"}'
            elif kind < 0.25:
                body = asking(server, draw, 16, unknown=1)
            elif kind < 0.5:
                leave = draw.random()
            statuses[(await ask(server.port, body, leave)).status] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    memory.append(await resident(server))
    return statuses, memory


async def resident(server: Server) -> float:
    found = re.search(r"^shoestring_resident_bytes (\d+)", await get(server.port, "/metrics"), re.MULTILINE)
    assert found is not None
    return float(found[1])


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def peers(options: argparse.Namespace) -> list[tuple[str, list[str], int, dict[str, Any]]]:
    """Name, command, port and fields of each."""
    found = []
    if options.llama_python is not None:
        import torch

        from benchmarks.decode import llama_python
        from benchmarks.gguf_models import in_format
        from shoestring.models.get import gguf_file

        python, file = llama_python(options.llama_python), gguf_file(options.model)
        if file is None:
            raise SystemExit(f"error: {options.model} is no GGUF file, which llama.cpp reads")
        for path in dict.fromkeys((Path(file), in_format(Path(file), "Q4_0"))):
            port = free_port()
            told = [str(port), str(options.streams), str(torch.get_num_threads())]
            command = [python, str(Path(__file__).with_name("llama_server.py")), str(path), *told]
            found.append((f"llama.cpp, {path.stem}", command, port, dict[str, Any]()))
    if options.peer is not None:
        port = free_port()
        found.append(("peer", shlex.split(options.peer.format(port=port)), port, {"ignore_eos": True}))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens, rounds and requests")
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--weights", default="file", help="of ours: file, the GGUF file's own 4 bits, or int4, ...")
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--rounds", type=int, help="[5, or 2 with --quick]")
    parser.add_argument("--peer", help="the command of another server, with {port}")
    options = parser.parse_args(arguments)
    rounds, new = options.rounds or (2 if options.quick else 5), 32 if options.quick else NEW
    servers: list[Server] = []
    try:
        port = free_port()
        command = [sys.executable, "-m", "shoestring", "serve", options.model, "--weights", options.weights]
        command += ["--slots", str(options.streams), "--context", "1024", "--port", str(port)]
        servers.append(start("shoestring", command, port, min_tokens=int))
        servers += [start(name, command, port, **more) for name, command, port, more in peers(options)]
        figures = [Figures() for _ in servers]
        for round_ in range(rounds + 1):
            for server, found in zip(servers, figures, strict=True):
                print(f"round {round_}/{rounds}: {server.name}", file=sys.stderr, flush=True)
                measure(server, Figures() if round_ == 0 else found, options.streams, new, round_)  # the first warms up
        requests = STORM // 10 if options.quick else STORM
        statuses, memory = asyncio.run(storm(servers[0], requests, CLIENTS))
    finally:
        for server in servers:
            server.process.terminate()
        for server in servers:
            server.process.wait(30)
    report(servers, figures, options.streams, statuses, memory)


def report(
    servers: Sequence[Server], figures: Sequence[Figures], streams: int, statuses: Counter[int], memory: Sequence[float]
) -> None:
    rows, result = [], dict[str, Any]()
    for server, found in zip(servers, figures, strict=True):
        rows.append([
            server.name, f"{statistics.median(found.one):.1f}", f"{statistics.median(found.many):.1f}",
            f"{ratio(found.many, found.one):.2f}", f"{1000 * statistics.median(found.firsts):.0f}",
            f"{1000 * percentile(found.firsts, 0.99):.0f}",
        ])  # fmt: skip
    columns = ["", "one stream, tokens/s", f"{streams} streams", "ratio", "first token, ms", "its p99"]
    show(f"{streams} streams at once", columns, rows)
    ours, others = figures[0], figures[1:]
    result["single_ratio"] = ratio(ours.many, ours.one)
    if others:
        result["throughput_ratio"] = ratio(ours.many, others[0].many)
        result["throughput_ratio_best"] = min(ratio(ours.many, theirs.many) for theirs in others)
        result["p99_ratio"] = percentile(ours.firsts, 0.99) / percentile(others[0].firsts, 0.99)
    told = ", ".join(f"{'left' if status == LEFT else status}: {count}" for status, count in sorted(statuses.items()))
    show("clients that misbehave", ["answers", "MB before, in the middle, at the end"],
         [[told, ", ".join(f"{size / 1e6:.0f}" for size in memory)]])  # fmt: skip
    result["errors"] = sum(n for status, n in statuses.items() if status == 0 or (status >= 500 and status != 503))
    result["memory_growth"] = memory[-1] / memory[1]
    finish(result)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
