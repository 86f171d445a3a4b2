"""Text that `benchmarks.claims` calibrates a chat model with: Python's library, and talk that the model writes itself.

A chat model that is calibrated with code alone is made for code. No conversations come with Python, so the model writes
both sides of some: it goes on from where its chat template lets the user begin, and then answers (Xu et al., Magpie,
arXiv 2406.08464). Text that perplexity is measured on is of other files of the library.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

PIECE = 2000  # characters of a file of the library, some 500 tokens
_ASKED, _ANSWERED = 96, 256  # tokens at most


def write(model: str, calibration: Path, held_out: Path, pieces: int, conversations: int, held: int) -> int:
    """JSON lines of texts. The number of conversations that came to an end, of so many that were begun; none are of a
    model without a chat template."""
    texts = _pieces(pieces + held)
    talk = _conversations(model, conversations)
    mixed = texts[:pieces] + talk
    random.Random(1).shuffle(mixed)
    for file, rows in ((calibration, mixed), (held_out, texts[pieces:])):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return len(talk)


def _pieces(count: int) -> list[str]:
    """One of each of so many files."""
    from shoestring.data.sources import Source

    draw = random.Random(1)
    texts = sorted(
        document.text for document in Source("stdlib", validation=0.0).documents() if len(document.text) >= PIECE
    )
    starts = [(text, draw.randrange(len(text) - PIECE + 1)) for text in draw.sample(texts, count)]
    return [text[start : start + PIECE] for text, start in starts]


def _conversations(model: str, count: int) -> list[str]:
    from shoestring.offload.load import load

    language = load(model, "cpu")
    tokenizer = language.tokenizer
    if tokenizer.chat_template is None or not count:
        return []
    opening = tokenizer.render_chat([{"role": "user", "content": "@@"}], add_generation_prompt=False).split("@@")[0]
    sampling = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.0}
    asked = language.complete([opening], max_tokens=_ASKED, num_return_sequences=count, **sampling)
    questions = [one.text.strip() for one in asked if one.reason == "stop_token" and one.text.strip()]
    prompts = [language.encode_chat([{"role": "user", "content": question}]) for question in questions]
    answers = language.complete_ids(prompts, max_tokens=_ANSWERED, **sampling)
    return [
        tokenizer.render_chat(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}],
            add_generation_prompt=False,
        )
        for question, answer in zip(questions, answers, strict=True)
    ]
