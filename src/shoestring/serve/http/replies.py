"""What answers are made of in OpenAI's form: ids, reasons, counts of tokens, log-probabilities, events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from shoestring import __version__
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate.sampling import Chances

FINGERPRINT = f"shoestring-{__version__}"
DONE = b"data: [DONE]\n\n"
_FINISHED = {"stop_token": "stop", "stop_string": "stop", "complete": "stop"}  # what the text's end was by itself


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What every answer and every chunk of it begins with. kind: its `object`."""
    return {
        "id": f"{prefix}-{secrets.token_hex(16)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def finish_reason(reason: str, called: bool = False) -> str:
    """stop, tool_calls, or length where a limit cut the text (`stop_reason` says which)."""
    finished = _FINISHED.get(reason, "length")
    return "tool_calls" if called and finished == "stop" else finished


def usage(prompt_tokens: int, new_tokens: int, held: int) -> dict[str, Any]:
    """held: tokens of prompts that were not read again."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "prompt_tokens_details": {"cached_tokens": held},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


class Usage:
    """Counts the tokens of a request's texts. Several texts of one prompt count it once."""

    def __init__(self, prompt_tokens: int, texts_of_prompt: int):
        self._prompt_tokens, self._texts = prompt_tokens, texts_of_prompt
        self._new = 0
        self._held: dict[int, int] = {}  # by prompt, of its first text

    def add(self, index: int, token: int | None, held: int) -> None:
        self._new += token is not None
        if index % self._texts == 0 and token is not None:
            self._held.setdefault(index // self._texts, held)

    def body(self) -> dict[str, Any]:
        return usage(self._prompt_tokens, self._new, sum(self._held.values()))


def event(chunk: dict[str, Any]) -> bytes:
    """A chunk as an event of a stream (html.spec.whatwg.org, server-sent events)."""
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def token_text(tokenizer: Tokenizer, token: int) -> tuple[str, list[int]]:
    """A token's text and bytes. Half a character is text only in its bytes; a special token has its name."""
    if token in tokenizer.special_ids or not tokenizer.is_byte_level:
        text = tokenizer.decode([token], skip_specials=False)
        return text, list(text.encode())
    raw = tokenizer.token_bytes()[token]
    return raw.decode("utf-8", "replace"), list(raw)


def chat_logprob(tokenizer: Tokenizer, token: int, chances: Chances) -> dict[str, Any]:
    """Of one token, as chat completions have it."""

    def entry(id: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(tokenizer, id)
        return {"token": text, "logprob": finite(logprob), "bytes": raw}

    return entry(token, chances.logprob) | {"top_logprobs": [entry(*pair) for pair in chances.top]}


class CompletionLogprobs:
    """Of the tokens so far, as completions have them: lists beside each other, emptied by `take`."""

    def __init__(self, tokenizer: Tokenizer, top: int):
        self._tokenizer, self._top = tokenizer, top
        self._offset = 0
        self._entries: list[tuple[str, float, dict[str, float], int]] = []

    def add(self, token: int, chances: Chances) -> None:
        text = token_text(self._tokenizer, token)[0]
        top = {token_text(self._tokenizer, id)[0]: finite(logprob) for id, logprob in reversed(chances.top)}
        self._entries.append((text, finite(chances.logprob), dict(reversed(top.items())), self._offset))
        self._offset += len(text)

    def take(self) -> dict[str, Any]:
        entries, self._entries = self._entries, []
        return {
            "tokens": [text for text, _, _, _ in entries],
            "token_logprobs": [logprob for _, logprob, _, _ in entries],
            "top_logprobs": [top for _, _, top, _ in entries] if self._top else None,
            "text_offset": [offset for _, _, _, offset in entries],
        }


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI's number for a token that cannot come."""
    return logprob if logprob > -9999.0 else -9999.0


def joined(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's deltas make, put together as a client does it."""
    words: list[str] = []
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        words += [delta["content"]] if delta.get("content") else []
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(words), "refusal": None}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return message
