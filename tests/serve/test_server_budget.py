"""`serve --memory` inside a cgroup of that size, where the kernel says whether it is kept."""

import asyncio
import json
import sys

import pytest

from benchmarks.cgroup import memory_group, why_not
from benchmarks.serve import LEFT, free_port, get, start, storm


async def post(port: int, path: str, body: dict) -> int:
    """-> the status of the answer, which is read to its end."""
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\nconnection: close\r\n\r\n".encode() + content)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def heavy(port: int, room: int, count: int) -> list[int]:
    """Prompts as long as there is room for, and vectors of such inputs, all at once."""
    prompt = [300 + number % 50 for number in range(room - 20)]
    texts = [
        post(port, "/v1/completions", {"model": "smollm2-135m", "prompt": [number, *prompt], "max_tokens": 10})
        for number in range(count)
    ]
    vectors = [post(port, "/v1/embeddings", {"model": "smollm2-135m", "input": prompt}) for _ in range(count // 2)]
    return list(await asyncio.gather(*texts, *vectors))


@pytest.mark.long
@pytest.mark.parametrize(("memory", "requests", "count"), [(700, 12, 1), (1300, 60, 3)])
def test_a_server_keeps_its_budget_under_load(memory, requests, count):
    """With 700 MB its layers are read from disk for every token."""
    assert why_not() is None, why_not()
    port = free_port()
    with memory_group(memory * 1_000_000) as group:
        command = [sys.executable, "-m", "shoestring", "serve", "smollm2-135m", "--memory", f"{memory}MB"]
        server = start("shoestring", group.command([*command, "--port", str(port)]), port)
        try:
            (model,) = json.loads(asyncio.run(get(port, "/v1/models")))["data"]
            statuses, sizes = asyncio.run(storm(server, requests, 32))
            found = asyncio.run(heavy(port, model["max_model_len"], count))
            assert server.process.poll() is None
        finally:
            server.process.terminate()
            server.process.wait(30)
        assert group.kills == 0 and max(sizes) <= memory * 1_000_000
    assert set(statuses) <= {200, 400, 413, 429, 503, LEFT} and statuses[200] > 0
    assert set(found) <= {200, 429, 503} and 200 in found
