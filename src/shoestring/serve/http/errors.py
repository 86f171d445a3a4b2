"""What is wrong, as OpenAI's clients read it: {"error": {"message", "type", "param", "code"}}, and the HTTP status.

`param` names the field at fault, dotted where it stands inside another. A sentence of ours (`ShoestringError`) becomes
a refusal of what was asked; whatever else goes wrong is told without its insides, which stand in the server's log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import HTTPException

from shoestring.core.errors import ShoestringError

# Fields of OpenAI's API that are known and do nothing here, with what to do instead.
NOT_DONE = {
    "audio": "nothing is spoken here",
    "best_of": "ask for n texts and choose among them",
    "dimensions": "a vector has the model's width",
    "function_call": "it is called tool_choice now",
    "functions": "they are called tools now",
    "moderation": "nothing is moderated here",
    "prediction": "start the server with --speculate lookup, which guesses for every text",
    "prompt_cache_options": "what begins alike is read once without being asked",
    "prompt_cache_retention": "what begins alike is read once without being asked",
    "reasoning_effort": "say how to think in a message",
    "suffix": "no text is put between two others here",
    "verbosity": "say how long an answer shall be in a message, or give max_completion_tokens",
    "web_search_options": "nothing is searched here",
}
_TYPES = {401: "invalid_request_error", 403: "invalid_request_error", 429: "rate_limit_error"}
_SHOWN = 200  # characters of what was sent, in a message


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers) if headers else None)
        self.param, self.code = param, code

    @property
    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        return body_of(self.status_code, str(self.detail), self.param, self.code)


def body_of(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The form of every error."""
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(error: ShoestringError, param: str | None = None) -> ApiError:
    """A sentence of ours as an answer."""
    message = error.message if not error.hint else f"{error.message} ({'; '.join(error.hint.splitlines())})"
    too_long = "the model's context is" in error.message
    return ApiError(400, message, param, "context_length_exceeded" if too_long else None)


@contextlib.contextmanager
def blaming(param: str | None) -> Iterator[None]:
    """Inside, a ShoestringError is the fault of this field."""
    try:
        yield
    except ShoestringError as error:
        raise refusal(error, param) from None


def of_validation(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's findings about a request's body."""
    found = min(errors, key=_weight)
    place = [str(part) for part in found["loc"] if part != "body"]
    kind = found["type"]
    param = ".".join(_without_kinds(place)) or None
    if kind == "extra_forbidden":
        name = place[-1][:_SHOWN]
        param = ".".join([*_without_kinds(place[:-1]), name])
        why = NOT_DONE.get(name) if len(place) == 1 else None
        if why is not None:
            return ApiError(400, f"{name} is not supported by this server: {why}", param, "unsupported_parameter")
        return ApiError(400, f"there is no field {param}", param, "unknown_parameter")
    if kind == "missing":
        what = f"{param} is missing" if param else "there is no body, or it is not JSON"
        return ApiError(400, what, param, "missing_required_parameter")
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {found.get('ctx', {}).get('error', found['msg'])}")
    said = found["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return ApiError(400, said, param, "invalid_value")
    shown = repr(found.get("input"))
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
    return ApiError(400, f"{param or 'the body'}: {said[:1].lower()}{said[1:]}, found {shown}", param, "invalid_value")


def _weight(error: Any) -> tuple[int, int]:
    """Of several findings about one union the one that came deepest is meant; an unknown field says most."""
    return (0 if error["type"] == "extra_forbidden" else 1, -len(error["loc"]))


def _without_kinds(place: list[str]) -> list[str]:
    """A place without the names of types that pydantic adds for the members of a union."""
    named = (part for part in place if part.isdigit() or (part.isidentifier() and part[0].islower()))
    return [part for part in named if part not in _KINDS]


_KINDS = ("str", "int", "float", "bool", "list", "dict", "tuple", "constrained")
