"""From a request's body to what a scheduler takes: prompts, settings, and constraints. Runs beside the event loop.

All that can be wrong with a request is found here, before anything is answered, and told as the fault of a field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from shoestring.core.errors import ShoestringError
from shoestring.core.foreign import parse_json
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request, check_prompt
from shoestring.serve.http.catalog import Served
from shoestring.serve.http.chat_request import ChatRequest, Message, NamedChoice, Tool
from shoestring.serve.http.completion_request import CompletionRequest
from shoestring.serve.http.errors import ApiError, blaming, refusal
from shoestring.serve.http.fields import Asking
from shoestring.serve.http.tool_form import with_tools
from shoestring.serve.http.tool_grammar import call_grammar

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_OF_CONSTRAINTS = ("grammar", "JSON schema", "regular expression", "llguidance", "json_schema")


class Plan(NamedTuple):
    """requests: a text each. prompt_tokens: of all prompts, each counted once. calls: names of the functions that may
    be called; must: whether one has to be."""

    requests: list[Request]
    prompt_tokens: int
    calls: tuple[str, ...] = ()
    must: bool = False


def plan_chat(served: Served, body: ChatRequest) -> Plan:
    """Raises ApiError."""
    language, offered = served.language, body.offered()
    prompt = encode_messages(served, body.messages, offered)
    room = _room(served, prompt, "messages")
    options = body.options()
    must = bool(offered) and body.tool_choice not in (None, "auto")
    wanted = body.response_format.wanted if body.response_format is not None else None
    constraint = None
    if offered:
        several = body.parallel_tool_calls and not isinstance(body.tool_choice, NamedChoice)
        options["grammar"] = call_grammar(served.tool_form, [_schema(tool) for tool in offered], must, several)
        constraint = "tools"
    elif wanted is not None:
        options["json_schema"] = json.dumps(wanted)
        constraint = "response_format"
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = _sampling(language, body, options, constraint, max_tokens=body.limit or room, logprobs=logprobs)
    with blaming(constraint or _constraint_of(body)):
        requests = [language.request(prompt, sampling, row) for row in range(body.n)]
    return Plan(requests, len(prompt), tuple(tool.function.name for tool in offered), must)


def plan_completion(served: Served, body: CompletionRequest) -> Plan:
    """Raises ApiError. Rows are those of `LanguageModel.generate`: the texts of the first prompt first."""
    language = served.language
    prompts = [_ids(language, prompt) for prompt in body.prompts]
    for prompt in prompts:
        _room(served, prompt, "prompt")
    sampling = _sampling(language, body, body.options(), None, max_tokens=body.max_tokens, logprobs=body.logprobs)
    texts = [prompt for prompt in prompts for _ in range(body.n)]
    with blaming(_constraint_of(body)):
        requests = [language.request(prompt, sampling, row) for row, prompt in enumerate(texts)]
    return Plan(requests, sum(map(len, prompts)))


def encode_messages(served: Served, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """Ids of a conversation, with the tools that may be called, up to where the model is to answer. Raises ApiError."""
    told, schemas = [_plain(message, number) for number, message in enumerate(messages)], list(map(_schema, tools))
    if not served.converses:
        raise ApiError(400, f"{served.name} has no chat template: /v1/completions continues a text", "model")
    calls = bool(schemas) or any(message["role"] == "tool" or "tool_calls" in message for message in told)
    with blaming("messages"):
        if calls and not served.tool_form.native:
            return served.language.encode_chat(with_tools(told, schemas, served.tool_form))
        return served.language.encode_chat(told, schemas or None)


def _plain(message: Message, number: int) -> dict[str, Any]:
    """A message as chat templates have it."""
    role = "system" if message.role == "developer" else message.role
    told: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_calls is not None:
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {
                "name": call.function.name, "arguments": _arguments(call.function.arguments, number),
            }}
            for call in message.tool_calls
        ]  # fmt: skip
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        told["name"] = message.name
    return told


def _arguments(text: str, number: int) -> dict[str, Any]:
    try:
        value = parse_json(text or "{}")
    except ValueError as error:
        raise ApiError(400, f"the arguments of a call are not JSON: {error}", f"messages.{number}.tool_calls") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the arguments of a call are no object", f"messages.{number}.tool_calls")
    return value


def _schema(tool: Tool) -> dict[str, Any]:
    """A tool as templates and OpenAI have it."""
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    function["parameters"] = tool.function.parameters or _NO_ARGUMENTS
    return {"type": "function", "function": function}


def _ids(language: LanguageModel, prompt: str | tuple[int, ...]) -> list[int]:
    if isinstance(prompt, tuple):
        return list(prompt)
    with blaming("prompt"):
        return language.encode_prompt(prompt)


def _room(served: Served, prompt: list[int], field: str) -> int:
    """Tokens that an answer may have."""
    with blaming(field):
        check_prompt(prompt, served.lane.capacity, served.language.decoder.config.vocabulary)
    return served.lane.capacity - len(prompt)


def _sampling(
    language: LanguageModel, body: Asking, options: dict[str, Any], constraint: str | None, **more: Any
) -> SamplingConfig:
    """The settings; a fault is that of the field that its sentence names first, if it is one."""
    try:
        return language.sampling(**options, **more)
    except ShoestringError as error:
        if any(word in error.message for word in _OF_CONSTRAINTS):
            raise refusal(error, constraint or _constraint_of(body)) from None
        words, fields = error.message.replace(",", " ").split(), type(body).model_fields
        raise refusal(error, next((word for word in words if word in fields), None)) from None


def _constraint_of(body: Asking) -> str | None:
    return next((name for name in ("regex", "grammar") if getattr(body, name) is not None), None)
