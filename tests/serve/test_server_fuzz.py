"""Whatever a body holds, an answer or a refusal in OpenAI's form comes, never a mistake of the server's."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.serve.http.chat_request import ChatRequest
from shoestring.serve.http.completion_request import CompletionRequest, EmbeddingRequest, TokenizeRequest
from tests.generate.tiny import tiny_model
from tests.serve.served import MESSAGES, client_of, tiny_app

BODIES = {
    "/v1/chat/completions": (ChatRequest, {"messages": MESSAGES}),
    "/v1/completions": (CompletionRequest, {"prompt": "abc"}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "abc"}),
    "/tokenize": (TokenizeRequest, {"prompt": "abc"}),
}
EDGES = [0, 1, -1, 2, 0.5, 1e-300, 1e300, 2**63, -(2**63), 10**40, 100, -100]
NUMBERS = st.one_of(st.sampled_from(EDGES), st.floats(0, 2), st.integers(0, 9))
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["text", "user", "a", "257"]))
WORDS = ["role", "content", "type", "text", "name", "function", "parameters", "schema", "json_schema", "97"]
KEYS = st.sampled_from(WORDS)
VALUES = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=6
)


@pytest.fixture(scope="module")
def client():
    with client_of(tiny_app(tiny_model(context=100))) as client:
        yield client


@pytest.mark.parametrize("path", BODIES)
def test_no_body_is_a_mistake_of_the_servers(client, path):
    kind, least = BODIES[path]
    names = st.one_of(st.sampled_from(sorted(kind.model_fields)), st.sampled_from(["audio", "x", "schema"]))
    statuses = set()

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(names, VALUES, max_size=2))
    def ask(fields):
        fields.pop("model", None)
        body = {"model": "tiny", **least, **fields}
        if path.endswith("completions"):
            body.setdefault("max_tokens", 1)
            body["stop_tokens"] = body.get("stop_tokens", [97])
        content = json.dumps(body).encode()
        response = client.post(path, content=content, headers={"content-type": "application/json"})
        statuses.add(response.status_code)
        assert response.status_code in (200, 400), (body, response.text)
        if response.status_code == 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    ask()
    assert statuses == {200, 400}
