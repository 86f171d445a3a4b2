"""Which of several options a model thinks the likeliest reply: log-likelihoods, by the number of their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shoestring.generate.language_model import LanguageModel

_TOKENS = 4096  # computed together


@torch.no_grad()
def likeliest(
    model: LanguageModel, prompts: Sequence[list[int]], options: Sequence[Sequence[str]]
) -> list[int | None]:
    """For each prompt the number of its likeliest option, None where it has none.

    Log-likelihoods are divided by the bytes of an option, or a longer one would always be the less likely (as lm-eval's
    acc_norm does).
    """
    rows = [
        (number, option, [*prompt, *model.tokenizer.encode(text)], len(prompt), len(text.encode()))
        for number, (prompt, texts) in enumerate(zip(prompts, options, strict=True))
        for option, text in enumerate(texts)
    ]
    best: list[tuple[float, int] | None] = [None] * len(prompts)
    rows.sort(key=lambda row: -len(row[2]))
    first = 0
    while first < len(rows):
        count = max(_TOKENS // len(rows[first][2]), 1)
        some = rows[first : first + count]
        first += count
        for (number, option, _, _, size), value in zip(some, _scores(model, some), strict=True):
            scored = value / max(size, 1), -option
            if best[number] is None or scored > best[number]:  # type: ignore[operator]
                best[number] = scored
    return [None if one is None else -one[1] for one in best]


def _scores(model: LanguageModel, rows: Sequence[tuple[int, int, list[int], int, int]]) -> list[float]:
    """Σ log p of what follows the prompt, in nats."""
    decoder, device = model.decoder, next(model.decoder.parameters()).device
    width = max(len(ids) for _, _, ids, _, _ in rows)
    tokens_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, (_, _, ids, _, _) in enumerate(rows):
        tokens_BT[row, : len(ids)] = torch.tensor(ids)
    hidden_BTD, _ = decoder(tokens_BT.to(device))  # padding stands behind: causal attention does not see it
    found = []
    for row, (_, _, ids, begin, _) in enumerate(rows):
        logits = decoder.head(hidden_BTD[row, begin - 1 : len(ids) - 1]).float()
        wanted = tokens_BT[row, begin : len(ids)].to(device)
        found.append(float(torch.log_softmax(logits, -1).gather(1, wanted.unsqueeze(1)).sum()))
    return found
