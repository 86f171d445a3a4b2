"""What is wrong is told in OpenAI's form with the field's name, before anything is written; nothing is ignored."""

import hashlib

import pytest

from shoestring.core.errors import ConfigError, DataError
from shoestring.serve.http.limits import Access, Limits, access, read_keys
from tests.generate.tiny import tiny_model
from tests.serve.served import MESSAGES, client_of, error_of, tiny_app

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def client():
    with client_of(tiny_app(limits=Limits(body=20_000))) as client:
        yield client


def chat(**fields):
    return {"model": "tiny", "messages": MESSAGES, **fields}


def text(**fields):
    return {"model": "tiny", "prompt": "abc", **fields}


@pytest.mark.parametrize(
    "path, body, param, said",
    [
        (CHAT, chat(temprature=1), "temprature", "there is no field temprature"),
        (CHAT, chat(functions=[]), "functions", "not supported by this server: they are called tools now"),
        (CHAT, chat(audio={}), "audio", "not supported"),
        (CHAT, chat(reasoning_effort="low"), "reasoning_effort", "not supported"),
        (CHAT, chat(store=True), "store", "store"),
        (CHAT, chat(service_tier="flex"), "service_tier", "service_tier"),
        (CHAT, chat(modalities=["audio"]), "modalities.0", "modalities"),
        (CHAT, chat(temperature="warm"), "temperature", "found 'warm'"),
        (CHAT, chat(temperature=3), "temperature", "less than or equal to 2"),
        (CHAT, chat(n=0), "n", "greater than or equal to 1"),
        (CHAT, chat(seed=1.5), "seed", "seed"),
        (CHAT, chat(stream="yes"), "stream", "stream"),
        (CHAT, chat(stop=["a", ""]), "stop.1", "at least 1 character"),
        (CHAT, chat(logit_bias={"999": 1}), "logit_bias", "names token 999"),
        (CHAT, chat(top_logprobs=2), None, "top_logprobs needs logprobs"),
        (CHAT, chat(stream_options={"include_usage": True}), None, "stream_options are of a stream"),
        (CHAT, chat(stream=True, stream_options={"other": 1}), "stream_options.other", "there is no field"),
        (CHAT, chat(max_tokens=3, max_completion_tokens=4), None, "say different things"),
        (CHAT, {"model": "tiny"}, "messages", "messages is missing"),
        (CHAT, {"messages": MESSAGES}, "model", "model is missing"),
        (CHAT, chat(messages=[]), "messages", "messages"),
        (CHAT, chat(messages=[{"role": "robot", "content": ""}]), "messages.0.role", "role"),
        (CHAT, chat(messages=[{"role": "user", "content": "a", "mood": 1}]), "messages.0.mood", "there is no field"),
        (CHAT, chat(messages=[{"role": "user", "content": "a", "name": "Ada"}]), "messages.0", "name is not read"),
        (CHAT, chat(messages=[{"role": "user"}]), "messages.0", "a message has content"),
        (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
         "messages.0.content.0.image_url", "there is no field"),
        (CHAT, chat(messages=[{"role": "tool", "content": "3"}]), "messages.0", "tool_call_id"),
        (CHAT, chat(messages=[{"role": "user", "content": "x" * 400}]), "messages", "the model's context is 400"),
        (CHAT, chat(response_format={"type": "xml"}), "response_format.type", "response_format"),
        (CHAT, chat(response_format={"type": "json_schema"}), "response_format", "json_schema belongs to"),
        (CHAT, chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "odd"}}}),
         "response_format", "JSON schema cannot be used"),
        (CHAT, chat(regex="(a"), "regex", "regular expression cannot be used"),
        (CHAT, chat(regex="a", response_format={"type": "json_object"}), None, "cannot be combined"),
        (CHAT, chat(tools=[TOOL, TOOL]), None, "two tools have the same name"),
        (CHAT, chat(tool_choice="required"), None, "there are no tools"),
        (CHAT, chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
         None, "none of the tools"),
        (CHAT, chat(tools=[{"type": "web"}]), "tools.0.type", "tools.0.type"),
        (CHAT, chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools.0.function.name", "pattern"),
        (TEXT, text(best_of=3), "best_of", "not supported"),
        (TEXT, text(suffix="x"), "suffix", "not supported"),
        (TEXT, text(max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (TEXT, text(echo=True, logprobs=1), None, "echo cannot be combined with logprobs"),
        (TEXT, text(prompt=[]), "prompt", "prompt"),
        (TEXT, text(prompt=[[999]]), "prompt", "holds token 999"),
        (TEXT, text(prompt="x" * 400), "prompt", "the model's context is 400"),
        (TEXT, text(prompt=["a"] * 100, n=2), None, "more than 128 texts"),
        (TEXT, text(n=100), "n", "more than this server takes"),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "dimensions": 3}, "dimensions", "not supported"),
        ("/v1/embeddings", {"model": "tiny", "input": ["a", ""], "encoding_format": "hex"}, "encoding_format", "float"),
        ("/v1/embeddings", {"model": "tiny", "input": "x" * 400}, "input", "the model's context is 400"),
        ("/tokenize", {"model": "tiny"}, None, "give one of prompt and messages"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(client, path, body, param, said):
    error = error_of(client.post(path, json=body), 400)
    assert error["type"] == "invalid_request_error" and said in error["message"] and error["param"] == param


def test_null_is_not_given(client):
    body = chat(max_tokens=2, audio=None, stop=None, tools=None, response_format=None, temperature=0)
    assert client.post(CHAT, json=body).status_code == 200


def test_what_asks_for_nothing_is_taken(client):
    body = chat(max_tokens=2, user="u", store=False, service_tier="auto", modalities=["text"], metadata={"a": "b"})
    assert client.post(CHAT, json=body).status_code == 200


def test_codes_are_those_that_clients_look_for(client):
    assert error_of(client.post(CHAT, json=chat(model="gpt")), 404)["code"] == "model_not_found"
    long = chat(messages=[{"role": "user", "content": "x" * 400}])
    assert error_of(client.post(CHAT, json=long), 400)["code"] == "context_length_exceeded"
    assert error_of(client.post(CHAT, json=chat(foo=1)), 400)["code"] == "unknown_parameter"
    assert error_of(client.post(CHAT, json=chat(audio={})), 400)["code"] == "unsupported_parameter"
    assert "tiny" in error_of(client.get("/v1/models/other"), 404)["message"]
    assert "/nowhere" in error_of(client.get("/nowhere"), 404)["message"]
    assert "method not allowed" in error_of(client.get(CHAT), 405)["message"]


@pytest.mark.parametrize(
    "content, status, said",
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 200 + b"]" * 200, 400, "nested more than 100 times"),
        (b'{"model": "tiny", "messages": "\\ud800"}', 400, "not JSON"),
        (b"[]", 400, "the body"),
        (b'"' + b"x" * 30_000 + b'"', 413, "more than 20,000 bytes"),
    ],
)
def test_a_body_that_cannot_be_read_is_told(client, content, status, said):
    response = client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert said in error_of(response, status)["message"]


def test_a_body_that_does_not_say_that_it_is_json_is_refused(client):
    response = client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert "Content-Type" in error_of(response, 415)["message"]


def test_a_model_without_a_chat_template_says_what_to_ask():
    with client_of(tiny_app(tiny_model(context=100, chat_template=None))) as client:
        error = error_of(client.post(CHAT, json=chat()), 400)
        assert "/v1/completions" in error["message"] and error["param"] == "model"


def test_a_template_that_refuses_a_conversation_is_a_refusal():
    template = "{{ raise_exception('no') }}"
    with client_of(tiny_app(tiny_model(context=100, chat_template=template))) as client:
        assert error_of(client.post(CHAT, json=chat()), 400)["param"] == "messages"


# Who may ask


def test_a_strangers_name_for_this_machine_and_a_strangers_page_are_refused(client):
    stranger = client.get("/v1/models", headers={"host": "evil.example"})
    assert "names of this machine" in error_of(stranger, 403)["message"]
    page = {"origin": "https://evil.example"}
    assert "web pages of" in error_of(client.post(CHAT, json=chat(), headers=page), 403)["message"]
    for own in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "app.localhost"):
        assert client.get("/v1/models", headers={"host": own}).status_code == 200
    own_page = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    assert client.get("/v1/models", headers=own_page).status_code == 200
    assert "access-control-allow-origin" not in client.get("/v1/models").headers


def test_a_page_that_was_named_may_ask():
    origin = "https://mine.example"
    with client_of(tiny_app(access=Access(origins=(origin,)))) as client:
        answer = client.get("/v1/models", headers={"origin": origin})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        assert client.options(CHAT, headers={"origin": origin, **asks}).status_code == 200
        assert client.get("/v1/models", headers={"origin": "https://other.example"}).status_code == 403


def test_a_server_with_keys_opens_to_each_of_them_and_to_no_other(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# mine\nfirst-key-1\n\nsecond-key-2\n")
    with client_of(tiny_app(access=access("0.0.0.0", file, False))) as client:
        for key in ("first-key-1", "second-key-2"):
            headers = {"authorization": f"Bearer {key}", "host": "any.example"}
            assert client.get("/v1/models", headers=headers).status_code == 200
        for given in (None, "Bearer no", "Basic first-key-1", "Bearer "):
            wrong = {} if given is None else {"authorization": given}
            response = client.get("/v1/models", headers=wrong)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/health").status_code == 200 and client.get("/metrics").status_code == 401


def test_keys_are_kept_as_digests(tmp_path):
    file = tmp_path / "keys"
    file.write_text("first-key-1\n")
    assert read_keys(file) == (hashlib.sha256(b"first-key-1").digest(),)
    assert "first-key-1" not in repr(access("0.0.0.0", file, False))


@pytest.mark.parametrize(
    "content, said", [("", "it holds 0 keys"), ("# no\n", "0 keys"), ("good-key-1\nshort\n", "keys:2")]
)
def test_a_file_of_keys_that_cannot_be_used_is_told(tmp_path, content, said):
    (tmp_path / "keys").write_text(content)
    with pytest.raises(DataError, match=said):
        read_keys(tmp_path / "keys")
    with pytest.raises(DataError, match="No such file"):
        read_keys(tmp_path / "nothing")


def test_an_address_that_others_reach_asks_for_keys_or_a_word():
    for host in ("0.0.0.0", "192.168.0.7", "::", "example.org"):
        with pytest.raises(ConfigError, match="lets other machines ask"):
            access(host, None, False)
        assert access(host, None, True).keys == ()
    for host in ("127.0.0.1", "localhost", "::1", "127.3.4.5"):
        assert access(host, None, False).loopback
    with pytest.raises(ConfigError, match="say different things"):
        access("0.0.0.0", "keys", True)
    for origin in ("*", "example.org", "https://a.example/path", "file://x"):
        with pytest.raises(ConfigError, match="origin"):
            access("127.0.0.1", None, False, (origin,))
