"""From logits [B, V] to one token for each row.

Each row's random number is a hash of (seed, row, step) and nothing else, so a row sampled in a batch equals
the row sampled alone, whatever its neighbours do. It picks from the cumulative distribution, likeliest token
first when the tail is cut. `distribution` defines what is sampled; `choose` gets there without sorting the
vocabulary. It keeps nothing between steps: rows may have any settings, and come and go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.core.seeds import derive_seed
from shoestring.generate.config import SamplingConfig
from shoestring.generate.constraint import Guide

_FIRST_LOOK = 64  # a small model's 95% nucleus usually has fewer tokens
# How far below the highest logit is looked, in turn: that takes a row a tenth of the time of finding its 64 highest.
# Behind the last depth all weights are 0. Rows that are so flat that more than so many tokens are found are sorted.
_DEPTHS = (4.0, 8.0, 16.0, 110.0)
_MANY = 4096
_COLDEST = 1e-6  # of temperatures: a logit over a smaller one would not be finite


def penalize(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """CTRL's repetition penalty (arXiv 1909.05858, section 4.1): tokens seen lose a factor of `penalty`."""
    penalized = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, penalized, logits_BV)


def distribution(logits_BV: Tensor, config: SamplingConfig) -> Tensor:
    """The definition: probabilities [B, V] after temperature (above 0), top-k, top-p, min-p and typical. A full
    sort; the plain twin.

    A token stays in the nucleus when the tokens likelier than it have less than top_p together.
    """
    logits_BV = logits_BV.float() / max(config.temperature, _COLDEST)
    if 0 < config.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(config.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, float("-inf"))
    probabilities, ids = logits_BV.softmax(-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= config.top_p, 0.0) if config.top_p < 1 else probabilities
    kept = kept.masked_fill(kept < config.min_p * kept[:, :1], 0.0)
    kept = typical(kept, config.typical_p)
    return torch.zeros_like(kept).scatter(-1, ids, kept / kept.sum(-1, keepdim=True))


def typical(weights_BK: Tensor, mass: float) -> Tensor:
    """Typical sampling (arXiv 2202.00666): of unnormalized weights, 0 for what is out already, those whose surprise is
    nearest to the entropy, until they have `mass` together; the others become 0. Any order of tokens."""
    if mass >= 1:
        return weights_BK
    p_BK = weights_BK / weights_BK.sum(-1, keepdim=True)
    surprise_BK = -p_BK.log()
    entropy_B1 = (p_BK * surprise_BK).nan_to_num(0.0, 0.0, 0.0).sum(-1, keepdim=True)
    away_BK = (surprise_BK - entropy_B1).abs()
    sorted_BK, order_BK = away_BK.sort(dim=-1, stable=True)
    before_B1 = (p_BK.gather(-1, order_BK).cumsum(-1) < mass).sum(-1, keepdim=True)
    last_B1 = sorted_BK.gather(-1, before_B1.clamp(max=p_BK.shape[-1] - 1))
    return weights_BK.masked_fill(away_BK > last_B1, 0.0)


class Draw(NamedTuple):
    """A token to choose: the one number `step` of row `row` in its seed's stream, behind `tokens`, of which the latest
    `step` are new. ends: those that would end the text. guide: of the text's constraint."""

    config: SamplingConfig
    row: int
    step: int
    tokens: Sequence[int]
    ends: frozenset[int] = frozenset()
    guide: Guide | None = None

    @property
    def new(self) -> Sequence[int]:
        return self.tokens[max(len(self.tokens) - self.step, 0) :]


def choose(logits_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id for each row. Rows with the same settings are chosen together.

    Raises ModelFileError when a logit is not a number.
    """
    if logits_BV.device.type == "mps":
        logits_BV = logits_BV.cpu()  # has no float64
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, (config, *_) in enumerate(draws):
        alike.setdefault(tuple(getattr(config, name) for name in _TOGETHER), []).append(index)
    chosen = [0] * len(draws)
    for rows in alike.values():
        part_BV = logits_BV if len(alike) == 1 else logits_BV[rows]
        for index, token in zip(rows, _choose(part_BV, [draws[index] for index in rows]), strict=True):
            chosen[index] = token
    return chosen


# Rows that differ in these are chosen apart.
_TOGETHER = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias",
)  # fmt: skip


def _choose(logits_BV: Tensor, draws: list[Draw]) -> list[int]:
    """The same where all rows have the settings of the first."""
    config = draws[0].config
    logits_BV = adjusted(logits_BV, draws)
    best, chosen = likeliest(logits_BV)
    if not all(abs(value) < float("inf") for value in best):
        raise ModelFileError(
            "the model's output is not finite: its weights are broken or overflow this number format"
        )
    if config.temperature > 0:
        return _sample(logits_BV.float() / max(config.temperature, _COLDEST), draws).tolist()
    return chosen


def likeliest(logits_BV: Tensor) -> tuple[list[float], list[int]]:
    """The highest logit of each row and its place, the first of equals; NaN is above all."""
    if not (logits_BV.is_cpu and logits_BV.dtype == torch.float32):
        best_B, places_B = logits_BV.max(-1)
        return best_B.tolist(), places_B.tolist()
    rows = list(logits_BV.numpy())  # a row takes it a tenth of torch's time
    places = [int(row.argmax()) for row in rows]
    return [float(row[place]) for row, place in zip(rows, places, strict=True)], places


def adjusted(logits_BV: Tensor, draws: list[Draw]) -> Tensor:
    """Logits [B, V] after all that comes before the temperature; all rows have the penalties of the first. Copied
    where anything is done."""
    config = draws[0].config
    bias = [(token, value) for token, value in config.logit_bias if token < logits_BV.shape[1]]
    if bias or config.presence_penalty or config.frequency_penalty:
        logits_BV = logits_BV.float()
    if bias:
        ids, values = zip(*bias, strict=True)
        logits_BV = logits_BV.clone()
        logits_BV[:, list(ids)] += torch.tensor(values, device=logits_BV.device)
    if config.repetition_penalty != 1:
        logits_BV = penalize(logits_BV, _seen(logits_BV, draws), config.repetition_penalty)
    if config.presence_penalty or config.frequency_penalty:
        counts_BV = _counts(logits_BV, draws)
        logits_BV = logits_BV - config.presence_penalty * (counts_BV > 0) - config.frequency_penalty * counts_BV
    return _without_forbidden(logits_BV, draws)


def _seen(logits_BV: Tensor, draws: list[Draw]) -> Tensor:
    seen_BV = torch.zeros(logits_BV.shape, dtype=torch.bool, device=logits_BV.device)
    for row, draw in enumerate(draws):
        seen_BV[row, [token for token in draw.tokens if token < logits_BV.shape[1]]] = True
    return seen_BV


def _counts(logits_BV: Tensor, draws: list[Draw]) -> Tensor:
    """How often each token stands in the new text, [B, V]."""
    counts_BV = torch.zeros(logits_BV.shape)
    for row, draw in enumerate(draws):
        for token, count in Counter(draw.new).items():
            if token < logits_BV.shape[1]:
                counts_BV[row, token] = count
    return counts_BV.to(logits_BV.device)


def forbidden(draw: Draw) -> set[int]:
    """Tokens that may not come next."""
    config, tokens, found = draw.config, draw.tokens, set[int]()
    if draw.step < config.min_tokens or len(tokens) < config.min_length:
        found |= draw.ends
    for *before, last in config.bad_words_ids:
        if before == list(tokens[len(tokens) - len(before) :]) and (before or last not in draw.ends):
            found.add(last)
    if size := config.no_repeat_ngram_size:
        begun = list(tokens[max(len(tokens) - size + 1, 0) :])
        places = range(size - 1, len(tokens))
        found |= {tokens[i] for i in places if list(tokens[i - size + 1 : i]) == begun}
    return found


def _without_forbidden(logits_BV: Tensor, draws: list[Draw]) -> Tensor:
    size = logits_BV.shape[1]
    out: list[np.ndarray | list[int]] = []
    for draw in draws:
        tokens = [token for token in forbidden(draw) if token < size]
        if draw.guide is not None:
            out.append(_outside(draw.guide.allowed(draw.new, draw.ends, size), tokens))
        else:
            out.append(tokens if len(tokens) < size else [])  # something must come
    if not any(len(tokens) for tokens in out):
        return logits_BV
    logits_BV = logits_BV.clone()
    for row, barred in enumerate(out):
        logits_BV[row, barred] = float("-inf")
    return logits_BV


def _outside(allowed_V: np.ndarray, forbidden: list[int]) -> np.ndarray:
    """Ids that may not come: a constraint holds whatever else is asked, and something must come."""
    rest_V = allowed_V.copy()
    rest_V[forbidden] = False
    return np.flatnonzero(~(rest_V if rest_V.any() else allowed_V))


class Chances(NamedTuple):
    """Natural log-probabilities that the model itself gives, before any setting: of the token that came, and of the
    likeliest, (id, log-probability), likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def chances(logits_BV: Tensor, tokens: Sequence[int], counts: Sequence[int | None]) -> list[Chances | None]:
    """For each row, of the token that came, and counts[row] of the likeliest; None where that is None."""
    found: list[Chances | None] = [None] * len(tokens)
    for row, (token, count) in enumerate(zip(tokens, counts, strict=True)):
        if count is not None:
            logprobs_V = logits_BV[row].float().log_softmax(-1)
            values, ids = logprobs_V.topk(min(count, len(logprobs_V)))
            found[row] = Chances(float(logprobs_V[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
    return found


def _sample(logits_BV: Tensor, draws: list[Draw]) -> Tensor:
    places = [derive_seed(draw.config.seed, "sample", draw.row, draw.step) / 2**63 for draw in draws]
    draw_B1 = torch.tensor(places, dtype=torch.float64, device=logits_BV.device).unsqueeze(1)
    weights_BK, ids_BK = candidates(logits_BV, draws[0].config)
    cumulative_BK = weights_BK.double().cumsum(-1)
    total_B1 = cumulative_BK[:, -1:].contiguous()
    # right=True: never a candidate of weight 0; nor one behind the last, should a draw round up.
    index_B1 = torch.searchsorted(cumulative_BK, draw_B1 * total_B1, right=True)
    index_B1 = index_B1.minimum(torch.searchsorted(cumulative_BK, total_B1))
    return (index_B1 if ids_BK is None else ids_BK.gather(1, index_B1)).squeeze(1)


def candidates(logits_BV: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor | None]:
    """Of logits after temperature: unnormalized weights [B, K] and ids, likeliest first, where the tail is cut;

    ids None: the vocabulary in its order.
    """
    top_p, min_p, vocabulary = config.top_p, config.min_p, logits_BV.shape[-1]
    top_k = config.top_k if config.top_k < vocabulary else 0
    if not top_k and top_p >= 1 and min_p == 0:
        return typical(logits_BV.softmax(-1), config.typical_p), None
    peak_B1 = logits_BV.max(-1, keepdim=True).values
    mass_B1 = peak_B1 if top_k else top_p * (logits_BV - peak_B1).exp_().sum(-1, keepdim=True)  # of top_k: below
    for look in _looks(logits_BV, peak_B1):
        values_BK, ids_BK, rest_B1 = look
        weights_BK, rest_B1 = (values_BK - peak_B1).exp_(), (rest_B1 - peak_B1).exp_()
        done_B1 = (rest_B1 == 0) | (rest_B1 < min_p)
        if top_k:  # as in transformers, tokens level with the last one stay too
            least_B1 = weights_BK[:, top_k - 1 : top_k] if top_k <= weights_BK.shape[1] else torch.zeros_like(rest_B1)
            weights_BK = weights_BK.masked_fill(weights_BK < least_B1, 0.0)
            mass_B1 = top_p * weights_BK.sum(-1, keepdim=True)
            done_B1 |= least_B1 > rest_B1
        elif top_p < 1:
            done_B1 |= weights_BK.sum(-1, keepdim=True) >= mass_B1
        if bool(done_B1.all()):
            break
    if top_p < 1:
        before_BK = weights_BK.cumsum(-1) - weights_BK
        weights_BK = weights_BK.masked_fill(before_BK >= mass_B1, 0.0)
    return typical(weights_BK.masked_fill(weights_BK < min_p, 0.0), config.typical_p), ids_BK


def _looks(logits_BV: Tensor, peak_B1: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The highest logits of each row with their ids, [B, K], highest first, more of them each time, in the end all that
    can be drawn; and what nothing that is left is higher than. Rows may end in −inf, whatever the ids' logits are."""
    if logits_BV.is_cpu and logits_BV.dtype == torch.float32:
        rows = logits_BV.numpy()
        for depth in _DEPTHS:
            rest_B1 = peak_B1 - depth
            found = [np.flatnonzero(row >= least) for row, least in zip(rows, rest_B1.numpy(), strict=True)]
            size = max(map(len, found))
            if size > _MANY:
                break
            values_BK, ids_BK = torch.full((len(rows), size), float("-inf")), torch.empty(len(rows), size).long()
            for i, (row, some) in enumerate(zip(rows, found, strict=True)):
                some = some[np.argsort(-row[some], kind="stable")]
                values_BK[i, : len(some)] = torch.from_numpy(row[some])
                ids_BK[i] = torch.from_numpy(_filled(some, size, len(row)))
            yield values_BK, ids_BK, rest_B1
        else:
            return
    vocabulary = logits_BV.shape[-1]
    count = min(_FIRST_LOOK, vocabulary)
    while True:
        values_BK, ids_BK = logits_BV.topk(count)
        yield values_BK, ids_BK, values_BK[:, -1:] if count < vocabulary else torch.full_like(peak_B1, float("-inf"))
        if count == vocabulary:
            return
        count = min(count * 16, vocabulary)


def _filled(ids: np.ndarray, size: int, vocabulary: int) -> np.ndarray:
    """Ids, and behind them others up to `size`, each once."""
    if len(ids) == size:
        return ids
    others = np.ones(min(2 * size, vocabulary), bool)
    others[ids[ids < len(others)]] = False
    return np.concatenate([ids, np.flatnonzero(others)[: size - len(ids)]])
