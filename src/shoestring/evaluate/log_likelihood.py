"""log p of continuations: what multiple choice and lm-evaluation-harness ask of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from shoestring.generate.language_model import LanguageModel

_TOKENS = 4096  # computed together, where memory is not limited
_LOGITS = 1 << 23  # numbers at once, 32 MiB in float32


@torch.no_grad()
def log_likelihoods(language: LanguageModel, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    """(Σ log p of the last n tokens in nats, whether each was the likeliest) for each (ids, n), n below len(ids).

    Of tokens that are equally likely the one with the lowest id counts as the likeliest, as greedy decoding takes it.
    """
    found = dict.fromkeys(range(len(rows)), (0.0, True))  # of no tokens
    decoder, external = language.decoder, language.external_vectors()
    device = next(decoder.parameters()).device
    asked = [number for number, (_, count) in enumerate(rows) if count]
    for some in _batches(asked, rows, min(language.at_once or _TOKENS, _TOKENS)):
        width = max(len(rows[number][0]) for number in some) - 1  # what the last token would say is not asked
        tokens_BT = torch.zeros(len(some), width, dtype=torch.int64)
        external_BTE = None if external is None else torch.zeros(len(some), width, external.width)
        for row, number in enumerate(some):
            ids = rows[number][0][:-1]
            tokens_BT[row, : len(ids)] = torch.tensor(ids)
            if external is not None and external_BTE is not None:
                external_BTE[row, : len(ids)] = torch.from_numpy(external.vectors(ids, 0, len(ids)))
        vectors = None if external_BTE is None else external_BTE.to(device)
        # Padding stands behind: causal attention does not see it.
        hidden_BTD, _ = decoder(tokens_BT.to(device), external_BTE=vectors)
        for row, number in enumerate(some):
            ids, count = rows[number]
            wanted = torch.tensor(ids[len(ids) - count :], device=device)
            found[number] = _sum(language, hidden_BTD[row, len(ids) - count - 1 : len(ids) - 1], wanted)
    return [found[number] for number in range(len(rows))]


def _sum(language: LanguageModel, hidden_TD: torch.Tensor, wanted_T: torch.Tensor) -> tuple[float, bool]:
    """Over a few tokens at a time, so that logits of a long text are never there all together."""
    total, greedy = 0.0, True
    each = max(_LOGITS // language.decoder.config.vocabulary, 1)
    for hidden, wanted in zip(hidden_TD.split(each), wanted_T.split(each), strict=True):
        logits = language.decoder.head(hidden).float()
        total += float(torch.log_softmax(logits, -1).gather(1, wanted.unsqueeze(1)).sum())
        greedy = greedy and bool((logits.argmax(-1) == wanted).all())
    return total, greedy


def _batches(numbers: Sequence[int], rows: Sequence[tuple[list[int], int]], tokens: int) -> Iterator[list[int]]:
    """Numbers of rows of like lengths, the longest first; of `tokens` tokens together at most, or one row."""
    order = sorted(numbers, key=lambda number: -len(rows[number][0]))
    first = 0
    while first < len(order):
        count = max(tokens // len(rows[order[first]][0]), 1)
        yield order[first : first + count]
        first += count
