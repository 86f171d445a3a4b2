"""The body of /v1/chat/completions: messages, tools, and the form that the answer must have.

What is valid is decided here; how messages become a prompt is `chat_prompt`'s affair.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shoestring.serve.http.fields import Asking, Body, Name

MOST_MESSAGES = 4096
MOST_TOOLS = 128  # as OpenAI has it
_FUNCTION = r"^[a-zA-Z0-9_.-]{1,64}$"  # its names, which stand in a grammar

FunctionName = Annotated[str, Field(pattern=_FUNCTION)]


class Part(Body):
    """A part of a message; text alone is read here."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: FunctionName
    arguments: str = Field(description="JSON, as text")


class Call(Body):
    """A call of a tool that an earlier answer made."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[Part, ...] | None = None
    tool_calls: Annotated[tuple[Call, ...], Field(min_length=1)] | None = None
    tool_call_id: Name | None = None
    name: Name | None = None
    refusal: str | None = None
    annotations: Annotated[tuple[Any, ...], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("a message has content; that of an assistant may have tool_calls instead")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls are an assistant's")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a tool's message names the call that it answers in tool_call_id, and no other does")
        if self.name is not None and self.role != "tool":
            raise ValueError("name is not read by chat templates: say in the content who speaks")
        if self.refusal is not None:
            raise ValueError("refusal is not read by chat templates: give it as content")
        return self

    @property
    def text(self) -> str:
        """The content; its parts stand on lines of their own."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content)


class Function(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="a JSON schema; none: no arguments")
    strict: bool | None = Field(default=None, description="arguments always obey their schema")

    @model_validator(mode="after")
    def _takes_an_object(self) -> Function:
        if self.parameters is not None and self.parameters.get("type", "object") != "object":
            raise ValueError("the parameters of a function are a schema of the type object")
        return self


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: FunctionName


class NamedChoice(Body):
    type: Literal["function"]
    function: NamedFunction


class SchemaFormat(Body):
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(default=None, description="the text always obeys")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema belongs to the type json_schema, and to no other")
        return self

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The schema that the text must obey."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(Asking):
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="new tokens at most; not given: what there is room for"
    )
    max_tokens: int | None = Field(default=None, ge=1, description="the older name of max_completion_tokens")
    logprobs: bool = Field(default=False, description="whether log-probabilities of the tokens are given")
    top_logprobs: int | None = Field(default=None, ge=0, le=20, description="and of so many of the likeliest")
    response_format: ResponseFormat | None = None
    tools: Annotated[tuple[Tool, ...], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool = Field(default=True, description="whether an answer may call several times")

    # What asks for nothing
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    modalities: tuple[Literal["text"], ...] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Annotated[str, Field(max_length=1000)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1000)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens say different things")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tool_choice asks for a call, and there are no tools")
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name}, which is none of the tools")
        given = [name for name in ("regex", "grammar") if getattr(self, name) is not None]
        given += ["response_format"] if self.response_format is not None and self.response_format.wanted else []
        given += ["tools"] if self.may_call else []
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined: a text obeys one of them")
        return self

    @property
    def may_call(self) -> bool:
        """Whether the answer can be a call."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def offered(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        if not self.may_call:
            return ()
        if isinstance(self.tool_choice, NamedChoice):
            return tuple(tool for tool in self.tools or () if tool.function.name == self.tool_choice.function.name)
        return self.tools or ()
