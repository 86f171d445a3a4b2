"""Which of several options a model thinks the likeliest reply: log-likelihoods, by the number of their bytes."""

from __future__ import annotations

from collections.abc import Sequence

from shoestring.evaluate.log_likelihood import log_likelihoods
from shoestring.generate.language_model import LanguageModel


def likeliest(model: LanguageModel, prompts: Sequence[list[int]], options: Sequence[Sequence[str]]) -> list[int | None]:
    """For each prompt the number of its likeliest option, None where it has none.

    Log-likelihoods are divided by the bytes of an option, or a longer one would always be the less likely (as lm-eval's
    acc_norm does).
    """
    asked = [(number, text) for number, texts in enumerate(options) for text in texts]
    ids = [model.tokenizer.encode(text) for _, text in asked]
    rows = [([*prompts[number], *own], len(own)) for (number, _), own in zip(asked, ids, strict=True)]
    values = iter(log_likelihoods(model, rows))
    best: list[int | None] = []
    for texts in options:
        found = [next(values)[0] / max(len(text.encode()), 1) for text in texts]
        best.append(max(range(len(found)), key=found.__getitem__) if found else None)
    return best
