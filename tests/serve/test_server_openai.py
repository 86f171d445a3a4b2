"""OpenAI's own client over a real socket, and its schema beside what the server takes and gives."""

import json

import numpy as np
import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model, completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel

from shoestring.serve.http.chat_request import ChatRequest
from shoestring.serve.http.completion_request import CompletionRequest, EmbeddingRequest
from shoestring.serve.http.errors import NOT_DONE
from shoestring.serve.http.limits import Access, digest_of
from tests.generate.tiny import tiny_model
from tests.serve.served import MESSAGES, Slow, listening, tiny_app, until_now

SETTINGS = {"model": "tiny", "temperature": 1.0, "seed": 3}
KINDS = {
    "chat": (ChatRequest, chat_params.CompletionCreateParamsBase),
    "completion": (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
    "embedding": (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(context=1500)


@pytest.fixture(scope="module")
def client(model):
    with listening(tiny_app(model)) as address, made(address) as client:
        yield client


def made(address, key="none"):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_openais_schema_is_a_field_or_is_refused_by_its_name(client, kind):
    ours, theirs = KINDS[kind]
    names = set(theirs.__annotations__)
    assert {"model", "user"} <= names
    assert names - set(ours.model_fields) <= set(NOT_DONE)
    for name in names - set(ours.model_fields):
        with pytest.raises(openai.BadRequestError) as caught:
            asked = {"extra_body": {name: "x"}, "model": "tiny"}
            if kind == "chat":
                client.chat.completions.create(messages=MESSAGES, **asked)
            elif kind == "completion":
                client.completions.create(prompt="a", **asked)
            else:
                client.embeddings.create(input="a", **asked)
        assert caught.value.param == name and caught.value.code == "unsupported_parameter"


def test_answers_are_what_openais_schema_says(client):
    raw = client.with_raw_response
    answers = {
        ChatCompletion: raw.chat.completions.create(
            messages=MESSAGES, max_completion_tokens=5, logprobs=True, top_logprobs=2, n=2, **SETTINGS
        ),
        Completion: raw.completions.create(prompt="ab", max_tokens=5, logprobs=2, **SETTINGS),
        CreateEmbeddingResponse: raw.embeddings.create(model="tiny", input="ab", encoding_format="float"),
        Model: raw.models.retrieve("tiny"),
    }
    for kind, answer in answers.items():
        kind.model_validate_json(answer.content)
        with pytest.raises(ValueError):  # it does say what must be there
            kind.model_validate({})


def test_a_streamed_answer_is_the_whole_one_and_each_chunk_as_the_schema_says(client):
    asked = {"messages": MESSAGES, "max_completion_tokens": 12, "n": 2, "logprobs": True, **SETTINGS}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    texts = ["", ""]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True))
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_an_answer_in_a_given_form_is_parsed(client):
    class Switch(BaseModel):
        on: bool

    found = client.chat.completions.parse(messages=MESSAGES, response_format=Switch, **SETTINGS)
    assert isinstance(found.choices[0].message.parsed, Switch)


def test_a_call_is_put_together_from_its_pieces(client):
    class Weather(BaseModel):
        warm: bool

    asked = {"messages": MESSAGES, "tools": [openai.pydantic_function_tool(Weather)], "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False, **SETTINGS}
    with client.chat.completions.stream(**asked) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    (whole,) = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert call.function.name == whole.function.name == "Weather" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == json.loads(whole.function.arguments)
    assert isinstance(call.function.parsed_arguments, Weather)


def test_vectors_come_as_the_client_asks_for_them(client):
    """It asks for base64 by itself, and gives floats."""
    found = client.embeddings.create(model="tiny", input=["ab", "cd"]).data
    plain = client.embeddings.create(model="tiny", input=["ab", "cd"], encoding_format="float").data
    assert [one.index for one in found] == [0, 1]
    np.testing.assert_allclose([one.embedding for one in found], [one.embedding for one in plain], rtol=1e-6)


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.NotFoundError, match="there is no model") as missing:
        client.chat.completions.create(model="gpt", messages=MESSAGES)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="a", temperature=3)
    assert [one.id for one in client.models.list()] == ["tiny"]


def test_a_key_is_the_clients_key():
    app = tiny_app(access=Access(keys=(digest_of("right-key"),)))
    with listening(app) as address, made(address, "right-key") as right, made(address, "wrong-key") as wrong:
        assert right.models.retrieve("tiny").id == "tiny"
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()


def test_a_stream_that_is_closed_ends_its_text():
    model = tiny_model(context=1500)
    head = Slow(model, 0.005)
    app = tiny_app(model)
    with listening(app) as address, made(address) as client:
        with client.completions.create(model="tiny", prompt="a", max_tokens=1000, stream=True) as stream:
            assert next(stream).choices[0].text == "x"
        front = app.state.front
        until_now(lambda: all(not front.pending(lane) for lane in front.lanes))
        assert head.calls < 200
