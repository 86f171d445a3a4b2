"""What the server answers is what the model writes with the same seed and settings, whole or streamed."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoestring.serve.http.replies import joined
from tests.generate.tiny import Script, tiny_model
from tests.serve.served import MESSAGES, chunks, client_of, tiny_app

SETTINGS = {"temperature": 1.0, "top_p": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def model():
    return tiny_model(context=400)


@pytest.fixture(scope="module")
def client(model):
    with client_of(tiny_app(model)) as client:
        yield client


def ask(client, path="/v1/chat/completions", **body):
    asked = {"messages": MESSAGES} if "chat" in path else {}
    response = client.post(path, json={"model": "tiny", **asked, **body})
    assert response.status_code == 200, response.text
    return response


def alike(found, expected):
    """Equal, but for the last bits of log-probabilities: beginnings that are held are not read anew."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-4)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return found == expected


def test_a_completion_is_what_generate_writes(model, client):
    found = ask(client, "/v1/completions", prompt="abc", max_tokens=12, **SETTINGS).json()
    assert found["choices"][0]["text"] == model.generate("abc", max_tokens=12, **SETTINGS)
    assert found["object"] == "text_completion" and found["id"].startswith("cmpl-") and found["model"] == "tiny"
    done = model.complete(["abc"], max_tokens=12, **SETTINGS)[0]
    assert found["usage"]["prompt_tokens"] == 3 and found["usage"]["completion_tokens"] == len(done.tokens)
    assert found["choices"][0]["stop_reason"] == done.reason


def test_several_prompts_and_texts_stand_in_the_order_of_generate(model, client):
    found = ask(client, "/v1/completions", prompt=["abc", "x"], n=2, max_tokens=8, **SETTINGS).json()
    expected = model.generate(["abc", "x"], num_return_sequences=2, max_tokens=8, **SETTINGS)
    assert [choice["text"] for choice in found["choices"]] == expected
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"]["prompt_tokens"] == 4


def test_a_prompt_of_token_ids_is_its_text(model, client):
    ids = model.tokenizer.encode("abc")
    expected = model.generate("abc", max_tokens=8, **SETTINGS)
    for prompt, count in ((ids, 1), ([ids, ids], 2)):
        found = ask(client, "/v1/completions", prompt=prompt, max_tokens=8, **SETTINGS).json()["choices"]
        assert len(found) == count and found[0]["text"] == expected


def test_without_a_limit_a_completion_has_sixteen_tokens_and_a_conversation_what_there_is_room_for(client):
    found = ask(client, "/v1/completions", prompt="abc", temperature=0, logit_bias={"257": -100}).json()
    assert found["usage"]["completion_tokens"] == 16 and found["choices"][0]["finish_reason"] == "length"
    with client_of(tiny_app(tiny_model(context=80))) as small:
        found = ask(small, temperature=0, logit_bias={"257": -100}).json()
    assert found["usage"]["total_tokens"] == 80 and found["choices"][0]["finish_reason"] == "length"


def test_an_answer_is_what_chat_says(model, client):
    found = ask(client, max_completion_tokens=20, **SETTINGS).json()
    expected = model.chat(MESSAGES, max_tokens=20, **SETTINGS)
    message = found["choices"][0]["message"]
    assert message == {"role": "assistant", "content": expected, "refusal": None}
    assert found["object"] == "chat.completion" and found["choices"][0]["logprobs"] is None
    assert found["usage"]["prompt_tokens"] == len(model.encode_chat(MESSAGES))


def test_a_developer_is_the_system_and_parts_of_a_message_stand_on_lines(model, client):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "S"}, {"role": "user", "content": parts}]
    plain = [{"role": "system", "content": "S"}, {"role": "user", "content": "one\ntwo"}]
    found = ask(client, messages=messages, max_tokens=8, **SETTINGS).json()
    assert found["choices"][0]["message"]["content"] == model.chat(plain, max_tokens=8, **SETTINGS)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_the_whole_answer_in_pieces(client, n):
    asked = {"n": n, "max_tokens": 15, "logprobs": True, "top_logprobs": 2, **SETTINGS}
    whole = ask(client, **asked).json()
    response = ask(client, stream=True, stream_options={"include_usage": True}, **asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = chunks(response.text)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(event["usage"] is None for event in events) and len({event["id"] for event in events}) == 1
    for index, choice in enumerate(whole["choices"]):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant" and mine[-1]["delta"] == {}
        assert joined([part["delta"] for part in mine]) == choice["message"]
        assert [part["finish_reason"] for part in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        streamed = [one for part in mine for one in (part["logprobs"] or {"content": []})["content"]]
        assert alike(streamed, choice["logprobs"]["content"])


def test_a_streamed_completion_is_the_whole_one_in_pieces(client):
    asked = {"prompt": ["abc", "de"], "max_tokens": 12, "logprobs": 2, **SETTINGS}
    whole = ask(client, "/v1/completions", **asked).json()
    events = chunks(ask(client, "/v1/completions", stream=True, **asked).text)
    assert all("usage" not in event for event in events)
    for index, choice in enumerate(whole["choices"]):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in mine) == choice["text"]
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            assert alike([one for part in mine for one in part["logprobs"][name]], choice["logprobs"][name])


def test_log_probabilities_are_the_models_own(model, client):
    done = model.complete_ids([model.encode_chat(MESSAGES)], max_tokens=6, logprobs=3, **SETTINGS)[0]
    answer = ask(client, max_tokens=6, logprobs=True, top_logprobs=3, **SETTINGS).json()
    found = answer["choices"][0]["logprobs"]["content"]
    assert len(found) == len(done.tokens)
    for entry, token, chances in zip(found, done.tokens, done.chances, strict=True):
        assert entry["logprob"] == pytest.approx(chances.logprob, abs=1e-4)
        assert bytes(entry["bytes"]) == (bytes([token]) if token < 256 else entry["token"].encode())
        assert [one["logprob"] for one in entry["top_logprobs"]] == pytest.approx(
            [logprob for _, logprob in chances.top], abs=1e-4
        )


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"logit_bias": {"97": 5, "98": -100}},
        {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3},
        {"typical_p": 0.5, "no_repeat_ngram_size": 2},
        {"bad_words_ids": [[97], [98, 99]], "min_tokens": 4},
        {"stop_tokens": [101, 102]},
        {"regex": "[a-c]{3,5}"},
    ],
)
def test_every_setting_means_what_it_means_in_generate(model, client, options):
    found = ask(client, "/v1/completions", prompt="abc", max_tokens=10, **SETTINGS, **options).json()["choices"][0]
    ours = options | ({"logit_bias": {97: 5, 98: -100}} if "logit_bias" in options else {})
    assert found["text"] == model.generate("abc", max_tokens=10, **SETTINGS, **ours)


def test_a_request_without_a_seed_gets_another_text_each_time(client):
    answers = [ask(client, "/v1/completions", prompt="abc", max_tokens=20, temperature=1.5).json() for _ in range(4)]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 4


def test_a_stop_string_ends_the_text_before_it_and_echo_shows_the_prompt():
    model = tiny_model(context=400)
    Script(model, b"one two three", b"one two three")
    with client_of(tiny_app(model)) as client:
        found = ask(client, "/v1/completions", prompt="ab", max_tokens=30, temperature=0, stop=" tw", echo=True).json()
        assert found["choices"][0]["text"] == "abone" and found["choices"][0]["finish_reason"] == "stop"
        assert found["choices"][0]["stop_reason"] == "stop_string"
    model = tiny_model(context=400)
    Script(model, b"one two")
    with client_of(tiny_app(model)) as client:
        found = ask(client, temperature=0, stop=["zzz", "yyy"]).json()["choices"][0]
        assert found["message"]["content"] == "one two" and found["stop_reason"] == "stop_token"


def test_what_else_is_in_the_batch_changes_nothing(model, client):
    def one(number):
        asked = {"prompt": "a" * (number + 1), "max_tokens": 10 + number, "seed": number, "temperature": 1.0}
        return ask(client, "/v1/completions", **asked).json()["choices"][0]["text"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(10)))
    assert found == [
        model.generate("a" * (number + 1), max_tokens=10 + number, seed=number, temperature=1.0) for number in range(10)
    ]


def test_a_beginning_that_was_read_is_counted_as_cached(client):
    long = [{"role": "user", "content": "a long question, " * 8}]
    first = ask(client, messages=long, max_tokens=4, temperature=0).json()["usage"]
    again = ask(client, messages=long, max_tokens=4, temperature=0).json()["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] < 40
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1


def test_json_comes_out_where_it_is_asked_for(client):
    schema = {
        "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    found = ask(client, response_format=form, temperature=1.0).json()["choices"][0]
    assert json.loads(found["message"]["content"]) in ({"on": True}, {"on": False}) and found["finish_reason"] == "stop"
    found = ask(client, response_format={"type": "json_object"}, max_tokens=60, temperature=0).json()["choices"][0]
    assert found["message"]["content"].startswith("{")
    plain = ask(client, response_format={"type": "text"}, max_tokens=5, **SETTINGS).json()["choices"][0]
    assert plain["message"] == ask(client, max_tokens=5, **SETTINGS).json()["choices"][0]["message"]
