"""Which of several options a model thinks the likeliest reply: log-likelihoods, by the number of their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shoestring.evaluate.log_likelihood import log_likelihoods
from shoestring.generate.language_model import LanguageModel
from shoestring.nn.context import PADDING

_TOKENS = 4096  # of prompts that are read together, where memory is not limited


def likeliest(model: LanguageModel, prompts: Sequence[list[int]], options: Sequence[Sequence[str]]) -> list[int | None]:
    """For each prompt the number of its likeliest option, None where it has none.

    Log-likelihoods are divided by the bytes of an option, or a longer one would always be the less likely (as lm-eval's
    acc_norm does).
    """
    asked = [number for number, texts in enumerate(options) if texts]
    ids = {number: [model.tokenizer.encode(text) for text in options[number]] for number in asked}
    values: dict[int, list[float]] = {}
    longest = max((len(prompts[number]) + max(map(len, ids[number])) for number in asked), default=1)
    together = max(min(model.at_once or _TOKENS, _TOKENS) // longest, 1)
    for first in range(0, len(asked), together):
        some = asked[first : first + together]
        found = _read_once(model, [prompts[number] for number in some], [ids[number] for number in some], longest)
        values |= zip(some, found, strict=True)
    best: list[int | None] = []
    for number, texts in enumerate(options):
        by_bytes = [
            value / max(len(text.encode()), 1) for value, text in zip(values.get(number, []), texts, strict=True)
        ]
        best.append(max(range(len(by_bytes)), key=by_bytes.__getitem__) if by_bytes else None)
    return best


@torch.inference_mode()
def _read_once(
    model: LanguageModel, prompts: list[list[int]], options: list[list[list[int]]], longest: int
) -> list[list[float]]:
    """Σ log p of each option behind its prompt, in nats.

    A prompt is read once, its options one after another behind it in a cache that is cut back; with a model whose cache
    cannot be cut, or that takes external vectors, every one is read with its prompt.
    """
    if model.external_vectors() is not None:
        return _read_each(model, prompts, options)
    cache = model.decoder.new_cache(len(prompts), longest)
    counts = [len(prompt) for prompt in prompts]
    last_BV = _passed(model, prompts, cache)
    log_BV = torch.stack([states[-1] for states in last_BV]).log_softmax(-1)
    values = [[float(log_BV[row, option[0]]) if option else 0.0 for option in own] for row, own in enumerate(options)]
    for place in range(max(map(len, options))):
        tails = [own[place][:-1] if place < len(own) else [] for own in options]
        if not any(tails):
            continue
        for row, logits_TV in enumerate(_passed(model, tails, cache)):
            if len(tails[row]):
                wanted = torch.tensor(options[row][place][1:], device=logits_TV.device)
                values[row][place] += float(logits_TV.log_softmax(-1).gather(1, wanted.unsqueeze(1)).sum())
        if cache.truncatable(counts) != counts:
            return _read_each(model, prompts, options)
        cache.truncate(counts)
    return values


def _passed(model: LanguageModel, rows: list[list[int]], cache) -> list[torch.Tensor]:
    """Logits [T, V] behind the tokens of each row, which go on in its slot.

    Of prompts, which come first, only those behind the last token.
    """
    device = next(model.decoder.parameters()).device
    width = max(map(len, rows))
    tokens_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    segments_BT = torch.full((len(rows), width), PADDING)
    for row, ids in enumerate(rows):
        tokens_BT[row, : len(ids)] = torch.tensor(ids)
        segments_BT[row, : len(ids)] = 0
    first = not any(cache.lengths)
    hidden_BTD, _ = model.decoder(tokens_BT.to(device), segments_BT=segments_BT.to(device), cache=cache)
    parts = [hidden_BTD[row, max(len(ids) - 1, 0) if first else 0 : len(ids)] for row, ids in enumerate(rows)]
    return [model.decoder.head(part).float() for part in parts]


def _read_each(model: LanguageModel, prompts: list[list[int]], options: list[list[list[int]]]) -> list[list[float]]:
    rows = [([*prompt, *option], len(option)) for prompt, own in zip(prompts, options, strict=True) for option in own]
    values = iter(log_likelihoods(model, rows))
    return [[next(values)[0] for _ in own] for own in options]
