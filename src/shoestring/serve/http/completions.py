"""/v1/completions: texts continued, streamed or whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from shoestring.serve.http.catalog import Served
from shoestring.serve.http.completion_request import CompletionRequest
from shoestring.serve.http.errors import ApiError
from shoestring.serve.http.front import Answer
from shoestring.serve.http.lane import Piece
from shoestring.serve.http.plans import Plan
from shoestring.serve.http.replies import DONE, CompletionLogprobs, Usage, event, finish_reason, head


class CompletionReply:
    """What becomes of an answer's pieces. Choices stand in the order of prompts, n of each."""

    def __init__(self, served: Served, body: CompletionRequest, plan: Plan):
        self._served, self._body = served, body
        self._usage = Usage(plan.prompt_tokens, body.n)
        tokenizer, top = served.language.tokenizer, body.logprobs
        self._logprobs = [None if top is None else CompletionLogprobs(tokenizer, top) for _ in plan.requests]
        self._begins = [self._begin(request.prompt, index) for index, request in enumerate(plan.requests)]

    def _begin(self, prompt: list[int], index: int) -> str:
        """What a text shows before it is written: with echo its prompt, as it was given."""
        if not self._body.echo:
            return ""
        given = self._body.prompts[index // self._body.n]
        return given if isinstance(given, str) else self._served.language.tokenizer.decode(prompt)

    def _count(self, index: int, piece: Piece) -> None:
        self._usage.add(index, piece.token, piece.held)
        logprobs = self._logprobs[index]
        if logprobs is not None and piece.chances is not None and piece.token is not None:
            logprobs.add(piece.token, piece.chances)

    def _choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs[index]
        end: dict[str, Any] = {"finish_reason": None}
        if reason is not None:
            end = {"finish_reason": finish_reason(reason), "stop_reason": reason}
        return {"index": index, "text": text, "logprobs": None if logprobs is None else logprobs.take(), **end}

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one object. Raises ApiError."""
        texts = list(self._begins)
        reasons: list[str | None] = [None] * len(texts)
        async for index, piece in answer:
            self._count(index, piece)
            texts[index] += piece.text
            reasons[index] = piece.reason
        choices = [self._choice(index, text, reasons[index]) for index, text in enumerate(texts)]
        return head("text_completion", "cmpl", self._served.name) | {
            "choices": choices, "usage": self._usage.body(),
        }  # fmt: skip

    async def stream(self, answer: Answer) -> AsyncIterator[bytes]:
        """The same as events."""
        common = head("text_completion", "cmpl", self._served.name)
        if self._body.with_usage:
            common["usage"] = None
        for index, text in enumerate(self._begins):
            if text:
                choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
                yield event(common | {"choices": [choice]})
        try:
            async for index, piece in answer:
                self._count(index, piece)
                if piece.text or piece.reason is not None or piece.chances is not None:
                    yield event(common | {"choices": [self._choice(index, piece.text, piece.reason)]})
        except ApiError as error:
            yield event(error.body)
        else:
            if self._body.with_usage:
                yield event(common | {"choices": [], "usage": self._usage.body()})
        yield DONE
