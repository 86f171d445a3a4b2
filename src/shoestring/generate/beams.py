"""Beam search: of all continuations of a prompt, those that are likeliest as a whole, as far as so many beams can see.

All beams of a prompt are the slots of one cache, which is put in order after every step; prompts are searched one after
another. What is kept, when a text counts as finished, and when the search ends are as in transformers, whose
`early_stopping=False` this is: a finished text's log-probability is divided by its length to the power of
`length_penalty` (arXiv 1609.08144, section 7, has a like form), and the search ends when the best running beam, taken
as it is, could not replace the worst finished text. Plain twin: score every sequence (tests).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoestring.core.errors import ModelFileError
from shoestring.generate.request import Request, StopReason
from shoestring.generate.sampling import Chances, Draw, adjusted, chances
from shoestring.generate.scheduler import PREFILL_TOKENS
from shoestring.models.decoder import Decoder
from shoestring.nn.cache import Cache


@dataclass(frozen=True)
class Beam:
    """tokens: new ones. score: the sum of their log-probabilities; of a finished one, over its length to a power."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    reason: StopReason | None = None
    chances: tuple[Chances, ...] = field(default=(), compare=False)


@torch.inference_mode()
def search(
    decoder: Decoder,
    request: Request,
    vocabulary: int | None = None,
    stops: Callable[[list[int]], bool] | None = None,
    advance: Callable[[int, int], object] = lambda read, written: None,
) -> list[Beam]:
    """-> finished texts, best first: as many as there are beams, or fewer where a constraint allows no more.

    vocabulary: ids from here on are never chosen. stops: whether new tokens hold a stop string. advance: told how many
    tokens each pass read of the prompt, and of what was written. Raises ModelFileError when logits are not finite.
    """
    config, prompt = request.sampling, request.prompt
    limit = min(config.max_tokens, decoder.config.context - len(prompt))
    cut: StopReason = "max_tokens" if limit == config.max_tokens else "context"
    cache = decoder.new_cache(1, len(prompt) + limit)
    running, finished = [Beam()], list[Beam]()
    candidates = max(2, 1 + len(request.ends)) * config.num_beams

    def ended(tokens: tuple[int, ...]) -> StopReason | None:
        if tokens[-1] in request.ends:
            return "stop_token"
        if stops is not None and stops(list(tokens)):
            return "stop_string"
        if request.guide is not None:
            reason = request.guide.reason(tokens, request.ends)
            if reason is not None:
                return reason
        return cut if len(tokens) >= limit else None

    logits_BV = _read_prompt(decoder, cache, request, advance)[:, :vocabulary]
    while True:
        length = len(running[0].tokens) + 1
        found = _continuations(logits_BV, running, request, candidates, ended)
        for beam, _ in found[: config.num_beams]:  # behind these they only keep the beams full
            if beam.reason is not None and beam.reason != "dead_end":
                score = beam.score / length**config.length_penalty
                finished.append(Beam(beam.tokens, score, beam.reason, beam.chances))
        finished = sorted(finished, key=lambda beam: -beam.score)[: config.num_beams]
        going_on = [pair for pair in found if pair[0].reason is None][: config.num_beams]
        if not going_on:
            return finished
        running, rows = [beam for beam, _ in going_on], [row for _, row in going_on]
        full = len(finished) == config.num_beams
        if full and running[0].score / length**config.length_penalty <= finished[-1].score:
            return finished
        if rows != list(range(cache.batch)):
            cache.reorder(rows)
        logits_BV = _read_newest(decoder, cache, request, running)[:, :vocabulary]
        advance(0, len(running))


def _continuations(
    logits_BV: Tensor,
    running: list[Beam],
    request: Request,
    count: int,
    ended: Callable[[tuple[int, ...]], StopReason | None],
) -> list[tuple[Beam, int]]:
    """The likeliest ones of all beams, best first, each with the beam that it continues."""
    if not all(abs(value) < float("inf") for value in logits_BV.max(-1).values.tolist()):
        raise ModelFileError("the model's output is not finite: its weights are broken or overflow this number format")
    logprobs_BV = logits_BV.float().log_softmax(-1)
    draws = [
        Draw(request.sampling, 0, len(beam.tokens), [*request.prompt, *beam.tokens], request.ends, request.guide)
        for beam in running
    ]
    scores_B1 = torch.tensor([[beam.score] for beam in running], device=logits_BV.device)
    scores_BV = adjusted(logprobs_BV, draws) + scores_B1
    values, places = scores_BV.flatten().topk(min(count, scores_BV.numel()))
    pairs = [divmod(place, scores_BV.shape[1]) for place in places.tolist()]
    asked = request.sampling.logprobs
    found = []
    for (row, token), score in zip(pairs, values.tolist(), strict=True):
        if score == float("-inf"):
            break
        tokens = (*running[row].tokens, token)
        seen = chances(logprobs_BV[row : row + 1], [token], [asked])[0]
        beam = Beam(tokens, score, ended(tokens), (*running[row].chances, seen) if seen is not None else ())
        found.append((beam, row))
    return found


def _read_prompt(decoder: Decoder, cache: Cache, request: Request, advance: Callable[[int, int], object]) -> Tensor:
    """Logits [1, V] behind the prompt, which is read in chunks."""
    prompt = request.prompt
    hidden_BTD = torch.empty(0)
    for start in range(0, len(prompt), PREFILL_TOKENS):
        part = prompt[start : start + PREFILL_TOKENS]
        hidden_BTD = _read(decoder, cache, request, [part], [prompt], start)
        advance(len(part), 0)
    return decoder.head(hidden_BTD[:, -1].clone())


def _read_newest(decoder: Decoder, cache: Cache, request: Request, running: list[Beam]) -> Tensor:
    """Logits [B, V] behind the beams."""
    wholes = [[*request.prompt, *beam.tokens] for beam in running]
    hidden_BTD = _read(decoder, cache, request, [whole[-1:] for whole in wholes], wholes, len(wholes[0]) - 1)
    return decoder.head(hidden_BTD[:, -1])


def _read(
    decoder: Decoder, cache: Cache, request: Request, parts: list[list[int]], wholes: list[list[int]], start: int
) -> Tensor:
    device = decoder.embedding.weight.device
    external_BTE = None
    if request.external is not None:
        found = [torch.from_numpy(request.external.vectors(whole, start, start + len(parts[0]))) for whole in wholes]
        external_BTE = torch.stack(found).to(device)
    return decoder(torch.tensor(parts, device=device), cache=cache, external_BTE=external_BTE)[0]
