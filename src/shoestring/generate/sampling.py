"""From logits [B, V] to one token for each row.

Each row's random number is a hash of (seed, row, step) and nothing else, so a row sampled in a batch equals
the row sampled alone, whatever its neighbours do. It picks from the cumulative distribution, likeliest token
first when the tail is cut. `distribution` defines what is sampled; `Sampler` gets there without sorting the
vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.core.seeds import derive_seed
from shoestring.generate.config import SamplingConfig

_FIRST_LOOK = 64  # a small model's 95% nucleus usually has fewer tokens


def penalize(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """CTRL's repetition penalty (arXiv 1909.05858, section 4.1): tokens seen lose a factor of `penalty`."""
    penalized = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, penalized, logits_BV)


def distribution(logits_BV: Tensor, config: SamplingConfig) -> Tensor:
    """The definition: probabilities [B, V] after temperature (above 0), top-k and top-p. A full sort; the
    plain twin.

    A token stays in the nucleus when the tokens likelier than it have less than top_p together.
    """
    logits_BV = logits_BV.float() / config.temperature
    if 0 < config.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(config.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, float("-inf"))
    probabilities, ids = logits_BV.softmax(-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before >= config.top_p, 0.0) if config.top_p < 1 else probabilities
    return torch.zeros_like(kept).scatter(-1, ids, kept / kept.sum(-1, keepdim=True))


class Sampler:
    """Chooses tokens for a batch of rows that may shrink.

    rows: the number of each row in the seed's stream, which it keeps when neighbours leave.
    """

    def __init__(self, config: SamplingConfig, rows: list[int], prompts: list[list[int]]):
        self.config = config
        self.rows = list(rows)
        self.step = 0
        self._prompts = prompts
        self._seen_BV: Tensor | None = None

    def choose(self, logits_BV: Tensor) -> list[int]:
        """One token id for each row. Raises ModelFileError when a logit is not a number."""
        if logits_BV.device.type == "mps":
            logits_BV = logits_BV.cpu()  # has no float64
        config = self.config
        if config.repetition_penalty != 1:
            logits_BV = penalize(logits_BV, self._seen(logits_BV), config.repetition_penalty)
        best, chosen = logits_BV.max(-1)
        if not all(abs(value) < float("inf") for value in best.tolist()):
            raise ModelFileError(
                "the model's output is not finite: its weights are broken or overflow this number format"
            )
        if config.temperature > 0:
            chosen = self._sample(logits_BV.float() / config.temperature)
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, chosen.unsqueeze(1), True)
        self.step += 1
        return chosen.tolist()

    def keep(self, rows: list[int]) -> None:
        """Go on with these of the current rows, by index."""
        self.rows = [self.rows[row] for row in rows]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[rows]

    def _sample(self, logits_BV: Tensor) -> Tensor:
        draws = [derive_seed(self.config.seed, "sample", row, self.step) / 2**63 for row in self.rows]
        draw_B1 = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device).unsqueeze(1)
        weights_BK, ids_BK = self._candidates(logits_BV)
        cumulative_BK = weights_BK.double().cumsum(-1)
        total_B1 = cumulative_BK[:, -1:].contiguous()
        # right=True: never a candidate of weight 0; nor one behind the last, should a draw round up.
        index_B1 = torch.searchsorted(cumulative_BK, draw_B1 * total_B1, right=True)
        index_B1 = index_B1.minimum(torch.searchsorted(cumulative_BK, total_B1))
        return (index_B1 if ids_BK is None else ids_BK.gather(1, index_B1)).squeeze(1)

    def _candidates(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unnormalized weights [B, K] and ids, likeliest first; ids None: the vocabulary in its order."""
        top_k, top_p, vocabulary = self.config.top_k, self.config.top_p, logits_BV.shape[-1]
        if 0 < top_k < vocabulary:  # as in transformers, tokens level with the last one stay too
            least_B1 = logits_BV.topk(top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
        elif top_p >= 1:
            return logits_BV.softmax(-1), None
        peak_B1 = logits_BV.max(-1, keepdim=True).values
        mass_B1 = top_p * (logits_BV - peak_B1).exp_().sum(-1, keepdim=True)
        count = min(_FIRST_LOOK, vocabulary)
        while True:
            values_BK, ids_BK = logits_BV.topk(count)
            weights_BK = (values_BK - peak_B1).exp_()
            done_B1 = weights_BK[:, -1:] == 0
            if top_p < 1:
                done_B1 |= weights_BK.sum(-1, keepdim=True) >= mass_B1
            if count == vocabulary or bool(done_B1.all()):
                break
            count = min(count * 16, vocabulary)
        if top_p < 1:
            before_BK = weights_BK.cumsum(-1) - weights_BK
            weights_BK = weights_BK.masked_fill(before_BK >= mass_B1, 0.0)
        return weights_BK, ids_BK

    def _seen(self, logits_BV: Tensor) -> Tensor:
        if self._seen_BV is None:
            self._seen_BV = torch.zeros(logits_BV.shape, dtype=torch.bool, device=logits_BV.device)
            for row, prompt in enumerate(self._prompts):
                self._seen_BV[row, [token for token in prompt if token < logits_BV.shape[1]]] = True
        return self._seen_BV
