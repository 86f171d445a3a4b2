"""Vectors, tokens, models, health, figures, the description; how much a server has room for; the verb's mistakes."""

import base64
import re
import struct

import numpy as np
import pytest
import torch

from shoestring.cli.main import main
from shoestring.core.errors import BudgetError, ConfigError
from shoestring.models.folder import save_model
from shoestring.serve.http.metrics import Metrics
from shoestring.serve.http.sizes import CONTEXT, SLOTS, free_sizes, sizes_within
from tests.generate.tiny import byte_tokenizer, tiny_decoder, tiny_model
from tests.serve.served import MESSAGES, client_of, tiny_app


@pytest.fixture(scope="module")
def model():
    return tiny_model(context=400)


@pytest.fixture(scope="module")
def client(model):
    with client_of(tiny_app(model)) as client:
        yield client


def vectors(client, **body):
    response = client.post("/v1/embeddings", json={"model": "tiny", **body})
    assert response.status_code == 200, response.text
    return response.json()


def expected(model, text, last=False):
    with torch.no_grad():
        hidden_TD = model.decoder(torch.tensor([model.encode_prompt(text, "text")]))[0][0]
    vector = (hidden_TD[-1] if last else hidden_TD.mean(0)).double().numpy()
    return vector / np.linalg.norm(vector)


def test_a_vector_is_the_mean_of_the_hidden_states_of_unit_length(model, client):
    found = vectors(client, input=["abc", "another text"])
    assert [one["index"] for one in found["data"]] == [0, 1] and found["object"] == "list"
    for one, text in zip(found["data"], ("abc", "another text"), strict=True):
        assert one["embedding"] == pytest.approx(expected(model, text), abs=1e-5)
        assert np.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-5)
    assert found["usage"] == {"prompt_tokens": 15, "total_tokens": 15}


def test_the_last_hidden_state_may_be_asked_for_and_ids_are_their_text(model, client):
    found = vectors(client, input=model.tokenizer.encode("abc"), pooling="last")["data"]
    assert len(found) == 1 and found[0]["embedding"] == pytest.approx(expected(model, "abc", last=True), abs=1e-5)


def test_base64_is_float32_little_endian(client):
    floats = vectors(client, input="abc")["data"][0]["embedding"]
    raw = base64.b64decode(vectors(client, input="abc", encoding_format="base64")["data"][0]["embedding"])
    assert struct.unpack(f"<{len(floats)}f", raw) == pytest.approx(floats, abs=1e-7)


def test_a_special_tokens_name_in_an_input_is_text(model, client):
    assert vectors(client, input="a<|end|>")["usage"]["prompt_tokens"] == len("a<|end|>")


def test_texts_and_conversations_are_tokenized_as_they_would_be_read(model, client):
    found = client.post("/tokenize", json={"model": "tiny", "prompt": "a<|end|>"}).json()
    assert found == {"tokens": model.encode_prompt("a<|end|>"), "count": 2, "max_model_len": 400}
    found = client.post("/tokenize", json={"model": "tiny", "messages": MESSAGES}).json()
    assert found["tokens"] == model.encode_chat(MESSAGES)


def test_models_are_listed_and_described(client):
    (listed,) = client.get("/v1/models").json()["data"]
    assert listed == client.get("/v1/models/tiny").json()
    assert listed["id"] == "tiny" and listed["object"] == "model" and listed["max_model_len"] == 400
    assert client.get("/health").json() == {"status": "ok"}


def test_figures_are_in_prometheus_form_and_count(model):
    with client_of(tiny_app(model)) as client:
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 5, "temperature": 0, "logit_bias": {"257": -100}}
        for _ in range(2):
            client.post("/v1/completions", json=body)
        client.post("/v1/completions", json={})
        client.get("/nowhere/at/all")
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples['shoestring_requests_total{path="/v1/completions",status="200"}'] == "2"
    assert samples['shoestring_requests_total{path="/v1/completions",status="400"}'] == "1"
    assert samples['shoestring_requests_total{path="other",status="404"}'] == "1"
    assert samples['shoestring_generated_tokens_total{model="tiny"}'] == "8"
    assert samples['shoestring_texts_running{model="tiny"}'] == samples['shoestring_texts_waiting{model="tiny"}'] == "0"
    assert samples["shoestring_first_token_seconds_count"] == "2"
    assert samples['shoestring_first_token_seconds_bucket{le="+Inf"}'] == "2"
    names = {re.match(r"\w+", name)[0] for name in samples}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} == typed


def test_a_bucket_counts_all_that_do_not_exceed_it_and_labels_are_escaped():
    metrics = Metrics()
    for seconds in (0.005, 0.01, 0.3, 1000):
        metrics.duration.add(seconds)
    metrics.requests['/a"b\\c\n', 200] += 1
    text = metrics.text({}, {})
    assert 'shoestring_request_seconds_bucket{le="0.01"} 2' in text
    assert 'shoestring_request_seconds_bucket{le="0.5"} 3' in text
    assert 'shoestring_request_seconds_bucket{le="+Inf"} 4' in text
    assert 'path="/a\\"b\\\\c\\n"' in text


def test_the_description_names_every_path_and_field(client):
    found = client.get("/openapi.json").json()
    paths = {
        "/v1/models", "/v1/models/{name}", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize",
        "/health", "/metrics",
    }  # fmt: skip
    assert set(found["paths"]) == paths
    fields = found["components"]["schemas"]["ChatRequest"]
    assert fields["additionalProperties"] is False and {"messages", "tools", "seed"} <= set(fields["properties"])
    assert fields["required"] == ["model", "messages"]
    assert client.get("/docs").status_code == 404


# Room


def test_without_a_budget_slots_are_as_long_as_the_model_can_up_to_a_limit():
    assert free_sizes(2048, None, None) == (SLOTS, 2048, None)
    assert free_sizes(100_000, None, None)[:2] == (SLOTS, CONTEXT) and free_sizes(100_000, 3, 9000)[:2] == (3, 9000)
    with pytest.raises(ConfigError, match="more than the model's context of 2,048"):
        free_sizes(2048, None, 4096)


def test_within_a_budget_there_is_what_fits_and_never_less_than_was_asked_for(model):
    large = sizes_within(model, 64 * 10**9, 1, None, None)
    assert large[:2] == (SLOTS, 400)
    with pytest.raises(BudgetError, match="too little to serve this model with 1 slots of 400 tokens"):
        sizes_within(model, 10**6, 1, None, None)
    with pytest.raises(BudgetError, match="1000000 slots"):
        sizes_within(model, 8 * 10**9, 1, 1_000_000, None)
    assert sizes_within(model, 64 * 10**9, 3, 2, 100)[:2] == (2, 100)


# The verb


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(tiny_decoder(context=100), folder, byte_tokenizer())
    return str(folder)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--host", "0.0.0.0"], "lets other machines ask"),
        (["--port", "70000"], "--port 70000 is not between"),
        (["--slots", "0"], "--slots 0 is below 1"),
        (["--context", "4096", "--port", "0"], "more than the model's context of 100"),
        (["--queue", "-1"], "--queue -1 is below 0"),
        (["--timeout", "soon"], "soon"),
        (["--adapter", "nowhere"], "is not NAME=FOLDER"),
        (["--adapter", "a=nowhere", "--port", "0"], "nowhere"),
        (["--cors", "*"], "no web page's origin"),
        (["--api-key-file", "nothing"], "the keys cannot be read"),
        (["other=nowhere", "--memory", "4GB"], "--memory plans for one model"),
        (["--weights", "int3"], "int3"),
    ],
)
def test_a_mistake_is_one_sentence(folder, capsys, flags, said):
    assert main(["serve", folder, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and said in captured.err


def test_the_verb_serves_says_where_and_ends(folder, capsys, monkeypatch):
    from shoestring.serve.http import server

    asked = []

    def run(app, listener, ready):
        ready()
        with client_of(app) as client:
            body = {"model": "mine", "prompt": "abc", "max_tokens": 4, "temperature": 0}
            asked.append(client.post("/v1/completions", json=body).json()["choices"][0]["text"])

    monkeypatch.setattr(server, "run", run)
    assert main(["serve", f"mine={folder}", "--port", "0", "--slots", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "mine: 3 texts at once, of 100 tokens each" in said and "stopped" in said
    assert re.search(r"page      http://127\.0\.0\.1:[1-9]\d+/\n", said) and "/v1/chat/completions" in said
    flags = ["--max-tokens", "4", "--temperature", "0", "--device", "cpu"]
    assert main(["generate", folder, "--prompt", "abc", *flags]) == 0
    assert capsys.readouterr().out == f"abc{asked[0]}\n"
