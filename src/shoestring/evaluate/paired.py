"""Two models on the same texts, text by text: what they differ by, and whether that is more than chance.

A text that is hard is hard for both, so the differences vary far less than the losses. The chance is that of a test of
sign flips (Fisher's randomization test for pairs): were the models alike, each text's difference might as well have had
the other sign. It asks for no distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shoestring.core.errors import ConfigError, DataError
from shoestring.core.waiting import waiting
from shoestring.evaluate.log_likelihood import log_likelihoods
from shoestring.evaluate.text import rows_of, texts_of, windows
from shoestring.generate.language_model import LanguageModel

_EXACT = 14  # texts, up to which every sign is tried: 16,384 of them
_FLIPS = 20_000  # of more texts, at random
_DRAWS = 4_000  # of the bootstrap
_CONTEXT = 1024  # tokens, or what the model can


@dataclass(frozen=True)
class TextLoss:
    """nats: of a whole text of so many UTF-8 bytes."""

    nats: float
    bytes: int


@dataclass(frozen=True)
class TextDifference:
    """In bits per byte over all texts. low, high: of the difference second - first, 95% by bootstrap over texts.
    chance: that models that are alike differ as much or more."""

    first: float
    second: float
    low: float
    high: float
    chance: float
    texts: int
    bytes: int

    @property
    def real(self) -> bool:
        return self.chance < 0.05

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "real": self.real}


def text_losses(
    language: LanguageModel, source: str, examples: int | None = None, context: int | None = None
) -> list[TextLoss]:
    """Of each text of a source, or of its first so many. Long ones are read in windows, half a window apart.

    Raises ConfigError for rows that are no texts, DataError where there is nothing.
    """
    rows = rows_of(source)
    if rows is not None and rows.form != "text":
        raise ConfigError(f"{source} holds {rows.form}, not texts", hint="shoestring perplexity measures those")
    tokenizer = language.tokenizer
    opening = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    context = context or min(language.decoder.config.context, _CONTEXT)
    texts = [text for text in itertools.islice(texts_of(source, rows), examples) if text]
    asked: list[tuple[list[int], int]] = []
    owner: list[int] = []
    for number, ids in enumerate(tokenizer.encode_batch(texts, rows is not None)):
        whole = [*([] if opening is None else [opening]), *ids]
        for begin, first, end in windows(len(whole) - 1, context, max(context // 2, 1)):
            asked.append((whole[begin : end + 1], end - first))
            owner.append(number)
    if not asked:
        raise DataError("no text of two tokens or more", source, "give a text file, a folder or rows with a text")
    nats = [0.0] * len(texts)
    each = 32
    with waiting("measuring texts, in windows", len(asked)) as told:
        for start in range(0, len(asked), each):
            found = log_likelihoods(language, asked[start : start + each])
            for number, (likelihood, _) in zip(owner[start : start + each], found, strict=True):
                nats[number] -= likelihood
            told.advance(len(found))
    return [TextLoss(loss, len(text.encode())) for loss, text in zip(nats, texts, strict=True)]


def text_difference(first: Sequence[TextLoss], second: Sequence[TextLoss], seed: int = 0) -> TextDifference:
    """Of the same texts in the same order."""
    if [one.bytes for one in first] != [one.bytes for one in second]:
        raise ValueError("the two are not of the same texts")
    nats_2N = np.array([[one.nats for one in side] for side in (first, second)])
    bytes_N = np.array([one.bytes for one in first], float)
    bits = nats_2N / math.log(2)
    means = bits.sum(1) / bytes_N.sum()
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(bytes_N), (_DRAWS, len(bytes_N)))
    differences = (bits[1] - bits[0])[drawn].sum(1) / bytes_N[drawn].sum(1)
    low, high = np.quantile(differences, [0.025, 0.975])
    return TextDifference(
        float(means[0]), float(means[1]), float(low), float(high), sign_flips(list(bits[1] - bits[0]), seed),
        len(bytes_N), int(bytes_N.sum()),
    )  # fmt: skip


def sign_flips(differences: Sequence[float], seed: int = 0) -> float:
    """The chance of a sum as far from zero when each sign is as likely as the other; exact for a few differences."""
    values_N = np.array(differences, float)
    values_N = values_N[values_N != 0]
    if not len(values_N):
        return 1.0
    reached = abs(values_N.sum()) * (1 - 1e-12)
    if len(values_N) <= _EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values_N))))
        return float((np.abs(signs @ values_N) >= reached).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (_FLIPS, len(values_N)))
    return float(((np.abs(signs @ values_N) >= reached).sum() + 1) / (_FLIPS + 1))
