"""/v1/chat/completions: an answer to a conversation, streamed or whole. Both are the same deltas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from shoestring.data.tokenizer import Tokenizer
from shoestring.serve.http.catalog import Served
from shoestring.serve.http.chat_request import ChatRequest
from shoestring.serve.http.errors import ApiError
from shoestring.serve.http.front import Answer
from shoestring.serve.http.lane import Piece
from shoestring.serve.http.plans import Plan
from shoestring.serve.http.replies import DONE, Usage, chat_logprob, event, finish_reason, head, joined
from shoestring.serve.http.tool_stream import ToolStream


class Choice:
    """One text of an answer: pieces in, deltas out. logprobs: whether those of its tokens are given."""

    def __init__(self, tokenizer: Tokenizer, tools: ToolStream | None, logprobs: bool):
        self.reason: str | None = None
        self._tokenizer, self._tools, self._logprobs = tokenizer, tools, logprobs

    def add(self, piece: Piece) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """-> deltas, and log-probabilities if they are asked for."""
        if self._tools is None:
            deltas: list[dict[str, Any]] = [{"content": piece.text}] if piece.text else []
        else:
            deltas = self._tools.add(piece.text)
        if piece.reason is not None:
            self.reason = piece.reason
            deltas += self._tools.finish() if self._tools is not None else []
        chances: list[dict[str, Any]] | None = [] if self._logprobs else None
        if chances is not None and piece.chances is not None and piece.token is not None:
            chances.append(chat_logprob(self._tokenizer, piece.token, piece.chances))
        return deltas, chances

    def end(self) -> dict[str, Any]:
        """Why it ended, as a choice has it."""
        assert self.reason is not None
        called = self._tools is not None and self._tools.calls > 0
        return {"finish_reason": finish_reason(self.reason, called), "stop_reason": self.reason}


class ChatReply:
    """What becomes of an answer's pieces."""

    def __init__(self, served: Served, body: ChatRequest, plan: Plan):
        self._served, self._body = served, body
        self._choices = [self._choice(served, body, plan) for _ in plan.requests]
        self._usage = Usage(plan.prompt_tokens, body.n)

    @staticmethod
    def _choice(served: Served, body: ChatRequest, plan: Plan) -> Choice:
        tools = ToolStream(served.tool_form, plan.calls, plan.must) if plan.calls else None
        return Choice(served.language.tokenizer, tools, body.logprobs)

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one object. Raises ApiError."""
        deltas: list[list[dict[str, Any]]] = [[] for _ in self._choices]
        logprobs: list[list[dict[str, Any]]] = [[] for _ in self._choices]
        async for index, piece in answer:
            self._usage.add(index, piece.token, piece.held)
            more, chances = self._choices[index].add(piece)
            deltas[index] += more
            logprobs[index] += chances or []
        choices = [
            {
                "index": index,
                "message": joined(deltas[index]),
                "logprobs": {"content": logprobs[index], "refusal": None} if self._body.logprobs else None,
                **choice.end(),
            }
            for index, choice in enumerate(self._choices)
        ]
        return head("chat.completion", "chatcmpl", self._served.name) | {
            "choices": choices, "usage": self._usage.body(),
        }  # fmt: skip

    async def stream(self, answer: Answer) -> AsyncIterator[bytes]:
        """The same as events: of each choice its role, what it says, its end; then the counts, if they are wanted."""
        common = head("chat.completion.chunk", "chatcmpl", self._served.name)
        if self._body.with_usage:
            common["usage"] = None

        def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, end: dict[str, Any] | None = None) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, **(end or {"finish_reason": None})}
            return event(common | {"choices": [choice]})

        role = {"role": "assistant", "content": None if self._body.may_call else "", "refusal": None}
        for index in range(len(self._choices)):
            yield chunk(index, role)
        try:
            async for index, piece in answer:
                self._usage.add(index, piece.token, piece.held)
                choice = self._choices[index]
                deltas, chances = choice.add(piece)
                if chances and not deltas:
                    deltas = [{"content": ""}]
                for number, delta in enumerate(deltas):
                    told = {"content": chances, "refusal": None} if chances and number == 0 else None
                    yield chunk(index, delta, told)
                if choice.reason is not None:
                    yield chunk(index, {}, None, choice.end())
        except ApiError as error:
            yield event(error.body)
        else:
            if self._body.with_usage:
                yield event(common | {"choices": [], "usage": self._usage.body()})
        yield DONE
