"""`perplexity(model, data)`: how surprised a model is by text it has not seen, per token and per byte.

Perplexity is exp of the mean loss in nats over the scored tokens. On text every token is scored (see `text`), on
conversations what fine-tuning would learn: the assistant's words and their end token, under the model's own template.
Perplexities compare only between models of one tokenizer; bits per byte compare between all, and with compressors.
The batches and the sums are those that training measures with.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.machine import peak_rss_bytes
from shoestring.core.units import counted, format_bytes, format_count, format_seconds
from shoestring.data.batch import IGNORED, Batch
from shoestring.data.supervised.batches import SupervisedPass
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.supervised.supervise import ModelSide, build_dataset
from shoestring.evaluate.text import rows_of, text_windows, texts_of
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.receipts import of_scoring
from shoestring.kernels import allocator
from shoestring.models.resolve import Say
from shoestring.plan.receipt import Receipt
from shoestring.train.evaluation import HeldOutText, measure

CONTEXT = 2048  # tokens, or what the model can or has room for; also the tokens computed together
_PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class Perplexity:
    """loss: nats per scored token; perplexity = exp(loss). bits_per_byte: None where ids do not stand for bytes.

    tokens, bytes: scored, and the UTF-8 text they stand for. documents: texts or examples. context, stride: tokens.
    peak_memory: the process's largest resident set, in bytes. receipt: time, and memory inside a budget, beside what
    was predicted.
    """

    perplexity: float
    loss: float
    bits_per_byte: float | None
    form: str
    tokens: int
    bytes: int
    documents: int
    context: int
    stride: int
    seconds: float
    peak_memory: int
    receipt: Receipt | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        receipt = None if self.receipt is None else self.receipt.to_json()
        return {**asdict(self), "tokens_per_second": self.tokens_per_second, "receipt": receipt}

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f" · {self.bits_per_byte:.3f} bits per byte"
        what, how = "text", f"windows of {self.context:,}, {self.stride:,} apart"
        if self.form != "text":
            what, how = "example", f"{self.form}, cut at {self.context:,}; only what the assistant says is scored"
        return (
            f"perplexity {self.perplexity:.3f} · {self.loss:.4f} nats per token{bits}\n"
            f"on {counted(self.tokens, 'token')} of {counted(self.documents, what)}, {how}\n"
            f"{format_count(self.tokens_per_second)} tok/s · {format_seconds(self.seconds)}"
            f" · peak {format_bytes(self.peak_memory)}"
        )


def perplexity(
    model: str | Path | LanguageModel,
    data: str | Path,
    context: int | None = None,
    stride: int | None = None,
    examples: int | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    on_bad_line: OnBadLine = "stop",
    say: Say | None = None,
    columns: Mapping[str, str] | None = None,
) -> Perplexity:
    """The perplexity of `model` on a text file, a folder, "stdlib", or rows of text or conversations (JSONL, Parquet).

    context: tokens that the model sees at most (2,048, or what it can). stride: tokens between the windows of a long
    text, half the context if not given; smaller is exacter and slower. examples: only the first so many texts, or so
    many rows. columns: what the fields of rows are called, as {"prompt": "Q"}. Names of special tokens are read as them
    in rows of text, as fine-tuning reads them, and are letters in a text. In a budget: perplexity(load(MODEL,
    memory="2GB", scoring=True), data). Progress goes to stderr. Raises ConfigError, DataError and ModelFileError.
    """
    check_windows(context, stride, examples)
    allocator.install()
    language = model if isinstance(model, LanguageModel) else LanguageModel.load(model, device, dtype, say)
    longest, largest = language.decoder.config.context, language.at_once or CONTEXT
    if context is not None and language.at_once is not None and context > largest:
        raise ConfigError(
            f"inside a memory budget at most {largest:,} tokens are read at once, and the context is {context:,}"
        )
    if context is not None and context > longest:
        raise ConfigError(f"a context of {context:,} tokens is longer than the model's ({longest:,})")
    context = context or min(longest, largest)
    stride, at_once = stride or max(context // 2, 1), max(largest // context, 1)
    external = language.external_vectors()
    rows = rows_of(str(data), on_bad_line, say, columns)
    if rows is None or rows.form == "text":
        some = itertools.islice(texts_of(str(data), rows, on_bad_line), examples)
        read = rows is not None
        dataset, documents = text_windows(some, language.tokenizer, str(data), context, stride, specials=read)
        batches = SupervisedPass(dataset, "train", context, at_once, external=external)
    else:
        settings = {
            "format": rows.form, "validation": 0.0, "on_bad_line": on_bad_line, "columns": dict(columns or {}),
        }  # fmt: skip
        dataset = build_dataset(data, ModelSide.of(language.tokenizer), context, say, **settings)
        batches = SupervisedPass(dataset, "train", context, at_once, max_examples=examples, external=external)
        documents = batches.documents
    started = time.perf_counter()
    with _Progress(batches) as watched, frozen(language.decoder):  # so that the loss goes by blocks of the vocabulary
        held_out = measure(language.decoder, watched, next(language.decoder.parameters()).dtype)
    seconds = time.perf_counter() - started
    return Perplexity(
        perplexity=math.exp(held_out.loss) if held_out.loss < 700 else math.inf,
        loss=held_out.loss,
        bits_per_byte=held_out.bits_per_byte if held_out.bytes else None,
        form=dataset.form,
        tokens=held_out.tokens,
        bytes=held_out.bytes,
        documents=documents,
        context=context,
        stride=stride,
        seconds=seconds,
        peak_memory=peak_rss_bytes(),
        receipt=of_scoring(language, at_once, context, watched.padded, seconds),
    )


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for a gradient."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def check_windows(context: int | None, stride: int | None, examples: int | None) -> None:
    """Raises ConfigError for numbers that no text can be measured with."""
    for name, value in (("context", context), ("stride", stride), ("examples", examples)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, found {value}")
    if context is not None and stride is not None and stride > context:
        raise ConfigError(f"a stride of {stride:,} tokens leaves out text between windows of {context:,}")


class _Progress:
    """A text that is being measured, with a line on stderr: tokens, speed, time left."""

    def __init__(self, text: HeldOutText) -> None:
        self._text = text
        self.tokens, self.bytes, self.documents = text.tokens, text.bytes, text.documents
        self.padded = 0  # tokens that were computed
        self._live = console.progress()
        self._task = self._live.add_task("perplexity", total=text.tokens)

    def __enter__(self) -> _Progress:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __iter__(self) -> Iterator[Batch]:
        started = told = time.monotonic()
        done = 0
        for batch in self._text:
            self.padded += batch.tokens_BT.numel()
            yield batch  # what follows is what the batch took
            done += int((batch.labels_BT != IGNORED).sum())
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)
            self._live.update(self._task, completed=done, description=f"perplexity  {format_count(rate)} tok/s")
            if not console.err.is_terminal and now - told >= _PLAIN_EVERY and done < self.tokens:
                told = now
                left = format_seconds((self.tokens - done) / rate)
                console.err.print(f"{done:,} of {self.tokens:,} tokens  {format_count(rate)} tok/s  {left} left")
