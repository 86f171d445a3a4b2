"""Requests that come, wait and leave: slots, queues, clients that go away, time, failures, and how a server stops."""

import asyncio
import http.client
import json
import os
import signal
import threading
import time

import pytest
import torch

from shoestring.core.errors import ConfigError
from shoestring.generate.language_model import LanguageModel
from shoestring.serve.http.limits import Limits
from shoestring.serve.http.names import Named, all_named
from shoestring.serve.http.server import address_of, bind, run
from tests.generate.tiny import byte_tokenizer, tiny_decoder, tiny_model
from tests.serve.served import MESSAGES, Exchange, Slow, chunks, client_of, error_of, running, tiny_app, until
from tests.serve.test_commands import adapter_folder

TEXT = "/v1/completions"


def text(**fields):
    return {"model": "tiny", "prompt": "abc", "temperature": 0, "max_tokens": 300, **fields}


def slow(seconds=0.004, context=400):
    model = tiny_model(context=context)
    return model, Slow(model, seconds)


def idle(front):
    return all(not lane.busy for lane in front.lanes) and all(front.pending(lane) == 0 for lane in front.lanes)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_written_for_a_client_that_leaves_is_ended(stream, n):
    model, head = slow()
    app = tiny_app(model)

    async def test(front):
        exchange = Exchange(app, TEXT, text(stream=stream, n=n))
        await until(lambda: head.calls > 3)
        exchange.leave()
        await exchange.task
        await until(lambda: idle(front))
        calls = head.calls
        await asyncio.sleep(0.1)
        assert head.calls == calls < 100 and front.metrics.left == 1
        assert "[DONE]" not in exchange.text

    running(app, test)


def test_a_client_that_leaves_while_it_waits_is_never_begun():
    model, head = slow()
    app = tiny_app(model, slots=1)

    async def test(front):
        first = Exchange(app, TEXT, text(max_tokens=100))
        await until(lambda: head.calls > 2)
        second = Exchange(app, TEXT, text(prompt="zz", max_tokens=100))
        await until(lambda: front.pending(front.lanes[0]) == 2)
        second.leave()
        await second.task
        await first.task
        await until(lambda: idle(front))
        assert json.loads(first.text)["choices"][0]["text"] == "x" * 100 and head.calls == 100

    running(app, test)


def test_requests_join_between_two_tokens_and_leave_when_they_are_done():
    model, head = slow()
    app = tiny_app(model)

    async def test(front):
        long = Exchange(app, TEXT, text(max_tokens=120))
        await until(lambda: head.calls > 5)
        short = Exchange(app, TEXT, text(max_tokens=5))
        await short.task
        assert not long.task.done() and json.loads(short.text)["choices"][0]["text"] == "xxxxx"
        await long.task
        assert json.loads(long.text)["choices"][0]["text"] == "x" * 120
        assert head.calls < 124  # they were in the same passes

    running(app, test)


def test_more_than_run_and_wait_gets_429_and_what_waits_gets_its_turn():
    model, head = slow()
    app = tiny_app(model, slots=1, limits=Limits(queue=1))

    async def test(front):
        asked = [Exchange(app, TEXT, text(max_tokens=40)) for _ in range(4)]
        await asyncio.gather(*(one.task for one in asked))
        assert sorted(one.status for one in asked) == [200, 200, 429, 429]
        error = json.loads(next(one.text for one in asked if one.status == 429))["error"]
        assert error["type"] == "rate_limit_error" and error["code"] == "rate_limit_exceeded"
        assert front.metrics.refused == 2 and head.calls == 80
        await until(lambda: idle(front))
        again = Exchange(app, TEXT, text(max_tokens=2))
        await again.task
        assert again.status == 200

    running(app, test)


def test_time_cuts_a_text_and_refuses_one_that_waited_for_nothing():
    model, head = slow(0.02)
    app = tiny_app(model, slots=1, limits=Limits(seconds=0.5))

    async def test(front):
        first = Exchange(app, TEXT, text())
        await until(lambda: head.calls > 0)
        second = Exchange(app, TEXT, text())
        await asyncio.gather(first.task, second.task)
        choice = json.loads(first.text)["choices"][0]
        assert choice["finish_reason"] == "length" and choice["stop_reason"] == "time"
        assert choice["text"].strip("x") == ""
        assert second.status == 503 and json.loads(second.text)["error"]["code"] == "timeout"
        await until(lambda: idle(front))

    running(app, test)


def test_a_step_that_fails_ends_its_texts_with_an_error_and_no_later_ones():
    model = tiny_model(context=400)
    good = model.decoder.head

    class Broken(torch.nn.Module):
        def forward(self, hidden_BD):
            raise RuntimeError("a mistake of ours, with secrets in it")

    model.decoder.head = Broken()
    with client_of(tiny_app(model)) as client:
        error = error_of(client.post(TEXT, json=text()), 500)
        assert error["type"] == "server_error" and "secrets" not in error["message"]
        events = client.post(TEXT, json=text(stream=True)).text.split("\n\n")
        assert json.loads(events[0].removeprefix("data: "))["error"]["code"] == "internal_error"
        assert events[-2] == "data: [DONE]"
        model.decoder.head = good
        assert client.post(TEXT, json=text(max_tokens=3)).status_code == 200


def test_a_model_whose_numbers_are_broken_is_told_in_a_sentence():
    model = tiny_model(context=400)

    class Nothing(torch.nn.Module):
        def forward(self, hidden_BD):
            return torch.full((hidden_BD.shape[0], 260), float("nan"))

    model.decoder.head = Nothing()
    with client_of(tiny_app(model)) as client:
        assert "not finite" in error_of(client.post(TEXT, json=text()), 500)["message"]


# Stopping


def test_a_server_that_closes_ends_streams_properly_and_lets_nobody_in():
    model, _ = slow(0.02)
    app = tiny_app(model, limits=Limits(grace=0.2))

    async def test(front):
        stream, whole = Exchange(app, TEXT, text(stream=True)), Exchange(app, TEXT, text(prompt="z"))
        await stream.begun.wait()
        front.begin_closing()
        late = Exchange(app, TEXT, text())
        await asyncio.gather(stream.task, whole.task, late.task)
        last = chunks(stream.text)[-1]["choices"][0]
        assert last["finish_reason"] == "length" and last["stop_reason"] == "shutdown"
        assert json.loads(whole.text)["choices"][0]["stop_reason"] == "shutdown"
        assert late.status == 503 and json.loads(late.text)["error"]["code"] == "shutting_down"

    running(app, test)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_real_server_and_its_streams(number):
    model, _ = slow(0.02)
    app = tiny_app(model, limits=Limits(grace=0.3))
    found = {}

    def ask(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"content-type": "application/json"}
        connection.request("GET", "/health")
        found["health"] = connection.getresponse().read()
        connection.request("POST", TEXT, json.dumps(text(stream=True)), headers)
        response = connection.getresponse()
        found["first"] = response.readline()
        begun = time.monotonic()
        os.kill(os.getpid(), number)
        found["rest"] = response.read().decode()
        found["seconds"] = time.monotonic() - begun
        connection.close()

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number)
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        client = threading.Thread(target=ask, args=[port])
        run(app, listener, client.start)
    client.join()
    assert json.loads(found["health"]) == {"status": "ok"} and found["first"].startswith(b"data: ")
    assert found["rest"].endswith("data: [DONE]\n\n") and '"stop_reason":"shutdown"' in found["rest"]
    assert found["seconds"] < 5 and signal.getsignal(number) == before


def test_an_address_in_use_is_a_sentence():
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConfigError, match="cannot be listened on.*"):
        bind("127.0.0.1", listener.getsockname()[1])


# Adapters


def test_adapters_are_models_of_their_own_over_one_base(tmp_path):
    decoders = {"tiny": tiny_decoder(400)}
    for seed, name in enumerate(("one", "two"), 1):
        decoders[name] = adapter_folder(tmp_path / name, seed)
    adapters = tuple(Named(name, str(tmp_path / name)) for name in ("one", "two"))
    app = tiny_app(tiny_model(context=400), adapters)
    settings = {"temperature": 1.0, "seed": 4, "max_tokens": 12}
    expected = {
        name: LanguageModel(decoder, byte_tokenizer()).chat(MESSAGES, **settings) for name, decoder in decoders.items()
    }
    assert len(set(expected.values())) == 3
    with client_of(app) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(one["id"], one["parent"]) for one in listed] == [("tiny", None), ("one", "tiny"), ("two", "tiny")]
        found = {}
        threads = [
            threading.Thread(target=lambda name=name: found.update({name: said(client, name, settings)}))
            for name in (*decoders, *reversed(decoders))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected
        assert said(client, "tiny", settings) == expected["tiny"]


def said(client, name, settings):
    response = client.post("/v1/chat/completions", json={"model": name, "messages": MESSAGES, **settings})
    return response.json()["choices"][0]["message"]["content"]


def test_names_come_from_folders_or_are_given():
    bases, adapters = all_named(["runs/mine/latest", "a=smollm2-135m", "models/x.gguf", "hf:Owner/Name"], ["b=runs/b"])
    assert [one.name for one in bases] == ["mine", "a", "x", "Name"] and bases[1].what == "smollm2-135m"
    assert adapters == [Named("b", "runs/b")]
    for models, others, said in (
        (["a/x", "b/x"], [], "two models would be called x"),
        (["x"], ["runs/x"], "is not NAME=FOLDER"),
        (["a b=x"], [], "is not NAME=MODEL"),
    ):
        with pytest.raises(ConfigError, match=said):
            all_named(models, others)
