"""How much a server takes: bodies, long inputs between the steps of texts, and memory."""

import asyncio
import json

import numpy as np
import pytest
import torch

from shoestring.core.units import format_bytes
from shoestring.kernels import allocator
from shoestring.serve.http import sizes
from shoestring.serve.http.body import Body, Room
from shoestring.serve.http.errors import ApiError
from shoestring.serve.http.limits import BESIDE, Limits
from tests.generate.tiny import tiny_model
from tests.serve.served import Exchange, Slow, client_of, error_of, running, tiny_app, until


def parts_of(*parts):
    """What a client sends, in parts, and then nothing more."""
    left = list(parts)

    async def receive():
        if not left:
            await asyncio.sleep(100)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return receive, left


JSON = {"content-type": "application/json"}


def test_all_bodies_together_have_so_much_room_and_it_is_given_back():
    async def test():
        room, limits = Room(10), Limits(body=8)
        first, second = Body(limits, room), Body(limits, room)
        assert await first.read(JSON, parts_of(b"[1,", b"23]")[0]) == b"[1,23]" and room.free == 4
        with pytest.raises(ApiError) as refused:
            await second.read(JSON, parts_of(b"[1,23]")[0])
        assert refused.value.status_code == 503 and refused.value.code == "overloaded"
        second.close()
        first.close()
        first.close()
        assert room.free == 10
        assert await second.read(JSON, parts_of(b"[1,23]")[0]) == b"[1,23]"

    asyncio.run(test())


@pytest.mark.parametrize("length", [None, "50"])
def test_whoever_sends_too_much_is_heard_out_and_told(length):
    """A client that is still sending does not read an answer."""

    async def test():
        receive, left = parts_of(*[b"x" * 10] * 5)
        headers = JSON if length is None else JSON | {"content-length": length}
        with pytest.raises(ApiError) as refused:
            await Body(Limits(body=8), Room(100)).read(headers, receive)
        assert refused.value.status_code == 413 and not left

    asyncio.run(test())


def test_a_body_that_is_only_announced_is_not_waited_for():
    async def test():
        receive, left = parts_of(b"x" * 50)
        headers = JSON | {"content-length": "50", "expect": "100-continue"}
        with pytest.raises(ApiError, match="more than 8 bytes"):
            await Body(Limits(body=8), Room(100)).read(headers, receive)
        assert left

    asyncio.run(test())


def test_a_body_that_does_not_come_is_told():
    async def test():
        with pytest.raises(ApiError, match="did not come within 0.01 seconds"):
            await Body(Limits(body_seconds=0.01), Room(100)).read(JSON, parts_of()[0])

    asyncio.run(test())


# Vectors


def test_a_long_input_is_read_in_parts_and_its_vector_is_the_same():
    model = tiny_model(context=700)
    text = "a long text " * 50
    with torch.no_grad():
        hidden_TD = model.decoder(torch.tensor([model.encode_prompt(text, "text")]))[0][0].double()
    with client_of(tiny_app(model)) as client:
        for pooling, wanted_D in (("mean", hidden_TD.mean(0)), ("last", hidden_TD[-1])):
            body = {"model": "tiny", "input": text, "pooling": pooling}
            found = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
            np.testing.assert_allclose(found, wanted_D / wanted_D.norm(), atol=1e-5)


def test_texts_go_on_between_the_parts_of_a_long_input():
    model = tiny_model(context=700)
    head = Slow(model, 0.002)
    app = tiny_app(model)
    calls = []

    async def test(front):
        text = Exchange(app, "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 300, "temperature": 0})
        await until(lambda: head.calls > 3)
        forward = model.decoder.forward
        model.decoder.forward = lambda tokens, **others: (
            calls.append((tokens.shape[1], head.calls)), forward(tokens, **others)
        )[1]  # fmt: skip
        vector = Exchange(app, "/v1/embeddings", {"model": "tiny", "input": "x" * 600})
        await vector.task
        assert vector.status == 200
        text.leave()
        await text.task

    running(app, test)
    parts = [(count, steps) for count, steps in calls if count > 1]
    assert [count for count, _ in parts] == [256, 256, 88]
    assert parts[0][1] < parts[1][1] < parts[2][1]


def test_vectors_that_are_computed_when_the_server_closes_are_refused():
    model = tiny_model(context=700)
    Slow(model, 0.05)
    app = tiny_app(model, limits=Limits(grace=0.05))

    async def test(front):
        text = Exchange(app, "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 300, "temperature": 0})
        await until(lambda: front.lanes[0].busy)
        vector = Exchange(app, "/v1/embeddings", {"model": "tiny", "input": ["x" * 600] * 20})
        await until(lambda: front.pending(front.lanes[0]) == 2)
        front.begin_closing()
        await asyncio.gather(text.task, vector.task)
        assert vector.status == 503 and json.loads(vector.text)["error"]["code"] == "shutting_down"

    running(app, test)


# Memory


def test_within_a_budget_what_is_predicted_is_kept_and_what_passes_it_is_an_error():
    assert allocator.install()
    model = tiny_model(context=400)
    found = sizes.sizes_within(model, 64 * 10**9, 1, 3, 200)
    assert found[:2] == (3, 200) and BESIDE < found.memory < 64 * 10**9
    more = sizes.sizes_within(model, 64 * 10**9, 2, 3, 200)
    cache = model.decoder.new_cache(1, 1).bytes_per_token()
    assert more.memory - found.memory == pytest.approx(3 * 200 * cache, abs=1_000_000)
    least = found.memory + 1_000_000
    sizes.keep_within(least)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(least)
        with client_of(tiny_app(model, slots=3)) as client:
            good = model.decoder.head

            class Hungry(torch.nn.Module):
                def forward(self, hidden_BD):
                    return torch.zeros(hidden_BD.shape[0], least)

            model.decoder.head = Hungry()
            body = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "temperature": 0}
            assert error_of(client.post("/v1/completions", json=body), 503)["code"] == "out_of_memory"
            model.decoder.head = good
            assert client.post("/v1/completions", json=body).status_code == 200
    finally:
        sizes.keep_within(None)
    assert torch.empty(least).numel() == least


def test_a_budget_is_told_with_what_is_predicted(tmp_path, capsys, monkeypatch):
    from shoestring.cli.main import main
    from shoestring.models.folder import save_model
    from shoestring.serve.http import server
    from tests.generate.tiny import byte_tokenizer, tiny_decoder

    save_model(tiny_decoder(context=600), tmp_path / "model", byte_tokenizer(None))
    limits = []

    def run(app, listener, ready):
        ready()
        limits.append(app.state.front.limits)

    monkeypatch.setattr(server, "run", run)
    assert main(["serve", str(tmp_path / "model"), "--port", "0", "--memory", "8GB", "--slots", "2"]) == 0
    said = capsys.readouterr().err
    assert f"memory    {format_bytes(8e9)} for the process, of which at most " in said
    assert " are predicted to be used" in said
    assert "2 texts at once, of 600 tokens each" in said
    assert "/v1/completions" in said and "/v1/chat" not in said  # it has no chat template
    assert limits[0].body == 1_000_000 and limits[0].bodies < BESIDE


def test_what_would_do_counts_what_is_kept_for_requests(monkeypatch, capsys):
    from shoestring.cli.main import main
    from shoestring.core.errors import BudgetError
    from shoestring.offload import load

    given = []

    def refused(model, device, dtype, memory, **others):
        given.append(memory)
        raise BudgetError("too little", hint="900MB would do")

    monkeypatch.setattr(load, "load", refused)
    assert main(["serve", "smollm2-135m", "--port", "0", "--memory", "500MB"]) == 2
    assert given == [500_000_000 - BESIDE]
    assert "900MB would do, and 48 MB more for requests and answers" in capsys.readouterr().err
