"""Calls of functions: the form that a template means, answers that are calls, and their pieces."""

import json

import pytest

from shoestring.generate.language_model import LanguageModel
from shoestring.serve.http.replies import joined
from shoestring.serve.http.tool_form import ToolForm, tool_form, with_tools
from shoestring.serve.http.tool_stream import ToolStream
from tests.data import families, templates
from tests.generate.tiny import Script, byte_tokenizer, tiny_decoder, tiny_model
from tests.serve.served import MESSAGES, chunks, client_of, error_of, tiny_app

CITY = {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of today", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
QWEN = ToolForm(native=True)


def test_a_template_that_knows_tools_says_in_which_form_calls_are_written():
    assert tool_form(families.chatml(families.QWEN25)) == QWEN
    assert tool_form(families.chatml(templates.QWEN)) == QWEN
    llama = tool_form(families.llama(templates.LLAMA))
    assert llama.native and llama.call("f", "{}") == '{"name": "f", "parameters": {}}'
    assert llama.trigger == '{"name": "'


def test_a_template_that_knows_none_gets_the_usual_form():
    for tokenizer in (families.chatml(templates.CHATML), byte_tokenizer(), families.llama(families.LLAMA3)):
        assert tool_form(tokenizer) == ToolForm() and not tool_form(tokenizer).native


def test_tools_calls_and_results_are_text_where_a_template_knows_none():
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "warm", "tool_call_id": "call_1"},
    ]  # fmt: skip
    told = with_tools(messages, TOOLS, ToolForm())
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert '"weather"' in told[0]["content"] and "<tool_call>" in told[0]["content"]
    assert told[2]["content"] == CALL and told[3]["content"] == "<tool_response>\nwarm\n</tool_response>"
    system = [{"role": "system", "content": "Be brief."}, *messages]
    assert with_tools(system, TOOLS, ToolForm())[0]["content"].startswith("Be brief.\n\nThese functions")


def parsed(text, must=False, size=1):
    """-> the message that a text makes, given in pieces of so many characters, without ids."""
    stream = ToolStream(ToolForm(), ["weather", "time"], must)
    deltas = [delta for at in range(0, len(text), size) for delta in stream.add(text[at : at + size])]
    message = joined([*deltas, *stream.finish()])
    calls = message.get("tool_calls", [])
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return message["content"], [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "text, expected",
    [
        ("plain words", ("plain words", [])),
        ("a < b and <tool", ("a < b and <tool", [])),
        (CALL, (None, [("weather", '{"city": "Rome"}')])),
        (f"I look.\n\n{CALL}", ("I look.", [("weather", '{"city": "Rome"}')])),
        (f"{CALL}\n{CALL.replace('Rome', 'Oslo')}",
         (None, [("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')])),
        ('<tool_call>\n{"name": "time", "arguments": {"a": [{"b": "}\\\\\\"]"}]}}\n</tool_call>',
         (None, [("time", '{"a": [{"b": "}\\\\\\"]"}]}')])),
        (f"{CALL} and so on", (" and so on", [("weather", '{"city": "Rome"}')])),
    ],
)  # fmt: skip
def test_pieces_of_a_text_become_words_and_calls_wherever_they_are_cut(text, expected, size):
    assert parsed(text, size=size) == expected


def test_a_call_that_was_cut_keeps_what_there_is_of_its_arguments():
    assert parsed(CALL[:-18]) == (None, [("weather", '{"city": "Ro')])
    assert parsed(CALL[:20], must=True) == ("", [])


# The server, with a model that says what the grammar lets it


@pytest.fixture(scope="module")
def client():
    with client_of(tiny_app(tiny_model(context=1500))) as client:
        yield client


def ask(client, **body):
    response = client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, "tools": TOOLS, **body})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_an_answer_that_must_call_calls_with_arguments_that_obey(client, choice, seed):
    body = {"tool_choice": choice, "parallel_tool_calls": False, "temperature": 1.5, "top_p": 1.0, "seed": seed}
    found = ask(client, **body).json()["choices"][0]
    (call,) = found["message"]["tool_calls"]
    assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments["city"] in ("Rome", "Oslo") and set(arguments) == {"city"}
    else:
        assert choice == "required" and call["function"]["name"] == "time" and arguments == {}
    events = chunks(ask(client, stream=True, **body).text)
    deltas = [event["choices"][0]["delta"] for event in events]
    streamed = joined([delta for delta in deltas if delta.get("tool_calls")])
    assert [one["function"] for one in streamed["tool_calls"]] == [call["function"]]
    (delta,) = next(delta["tool_calls"] for delta in deltas if delta.get("tool_calls"))
    assert set(delta) == {"index", "id", "type", "function"} and delta["function"]["arguments"] == ""
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_that_may_call_does_so_where_the_text_begins_a_call():
    model = tiny_model(context=1500)
    Script(model, b"I look.\n" + CALL.encode())
    with client_of(tiny_app(model)) as client:
        found = ask(client, temperature=0).json()["choices"][0]
        assert found["message"]["content"] == "I look." and found["finish_reason"] == "tool_calls"
        assert found["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    model = tiny_model(context=1500)
    Script(model, b"No call.")
    with client_of(tiny_app(model)) as client:
        found = ask(client, temperature=0).json()["choices"][0]
        assert found["message"] == {"role": "assistant", "content": "No call.", "refusal": None}
        assert found["finish_reason"] == "stop"


def test_a_call_cannot_be_begun_and_then_disobey():
    """What the model would rather say, a city that there is not, is not among what it may."""
    model = tiny_model(context=1500)
    Script(model, CALL.replace("Rome", "Ross").encode())
    with client_of(tiny_app(model)) as client:
        found = ask(client, temperature=0, max_tokens=80).json()["choices"][0]["message"]
        assert found["tool_calls"][0]["function"]["arguments"].startswith('{"city": "Rome"')


def test_without_a_choice_to_call_tools_are_not_told(client):
    plain = client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, "max_tokens": 2})
    none = ask(client, tool_choice="none", max_tokens=2)
    assert none.json()["usage"]["prompt_tokens"] == plain.json()["usage"]["prompt_tokens"]
    assert ask(client, max_tokens=2).json()["usage"]["prompt_tokens"] > plain.json()["usage"]["prompt_tokens"]


def test_results_of_calls_are_read(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "warm"},
    ]  # fmt: skip
    assert ask(client, messages=messages, max_tokens=2).json()["usage"]["prompt_tokens"] > 200
    call["function"]["arguments"] = "{"
    response = client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert error_of(response, 400)["param"] == "messages.1.tool_calls"


def test_a_template_that_knows_tools_is_given_them():
    tokenizer = families.chatml(families.QWEN25)
    model = LanguageModel(tiny_decoder(1500, tokenizer.vocabulary_size), tokenizer)
    with client_of(tiny_app(model)) as client:
        found = ask(client, tool_choice="required", parallel_tool_calls=False, temperature=1.0, seed=1).json()
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    told = [TOOLS[0], {"type": "function", "function": {"name": "time", "parameters": nothing}}]
    assert found["usage"]["prompt_tokens"] == len(model.encode_chat(MESSAGES, told)) > len(model.encode_chat(MESSAGES))
    (call,) = found["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] in ("weather", "time")

def test_a_schema_that_cannot_be_obeyed_is_the_fault_of_tools(client):
    parameters = {"type": "object", "properties": {"a": {"type": "odd"}}}
    bad = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    response = client.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, "tools": [bad]})
    assert error_of(response, 400)["param"] == "tools"
