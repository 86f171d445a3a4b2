"""A model for lm-evaluation-harness (the extra `eval`): its tasks, scored with our decoding.

    from lm_eval import simple_evaluate
    simple_evaluate(model=harness_model(shoestring.load(MODEL)), tasks=[...])

The harness joins contexts and continuations and cuts them into tokens by its own rules (`TemplateLM`); what is
computed here are sums of log p of continuations, the likelihood of whole texts in windows, and greedy or sampled text
up to a stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from shoestring.core.extras import need
from shoestring.generate.language_model import LanguageModel

_TOKENS = 4096  # computed together
_LENGTH = 2048  # of a sequence, where the model's context is longer
_MOST = 256  # new tokens, where a task does not say


def harness_model(language: LanguageModel, max_length: int | None = None) -> Any:
    """An `lm_eval.api.model.TemplateLM` around a loaded model. max_length: tokens of context and continuation.

    Raises ConfigError where the harness is not installed.
    """
    need("lm_eval", "lm-evaluation-harness", "eval")
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    length = min(max_length or _LENGTH, language.decoder.config.context)
    tokenizer = language.tokenizer

    class HarnessModel(TemplateLM):
        tokenizer_name = str(language.folder or "shoestring")

        @property
        def eot_token_id(self) -> int:
            return tokenizer.separator_id

        @property
        def max_length(self) -> int:
            return length

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            opening = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.opens_with_bos() else []
            return [*(opening if add_special_tokens is not False else []), *tokenizer.encode(string, specials=True)]

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
        ) -> list[tuple[float, bool]]:
            rows = []
            for _, context, continuation in requests:
                ids = [*(context or [self.eot_token_id]), *continuation][-(length + 1) :]
                rows.append((ids, min(len(continuation), len(ids) - 1)))
            return log_likelihoods(language, rows)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            found = []
            for request in requests:
                ids = self.tok_encode(request.args[0], add_special_tokens=False)
                windows = utils.get_rolling_token_windows(ids, self.eot_token_id, length, context_len=1)
                rows = [
                    ([*context, *continuation], len(continuation))
                    for context, continuation in map(utils.make_disjoint_window, windows)
                ]
                found.append(sum(value for value, _ in log_likelihoods(language, rows)))
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [self._generated(*request.args) for request in requests]

        def _generated(self, context: str, options: dict[str, Any]) -> str:
            until = options.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            most = int(options.get("max_gen_toks", _MOST))
            sampled = bool(options.get("do_sample", False))
            ids = self.tok_encode(context)[-(length - most) :]
            said = language.complete_ids(
                [ids], temperature=float(options.get("temperature", 1.0)) if sampled else 0.0, repetition_penalty=1.0,
                max_tokens=most, stop=[stop for stop in stops if stop],
            )  # fmt: skip
            return said[0].text

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return tokenizer.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return tokenizer.chat_template if chat_template else None

    return HarnessModel()


@torch.no_grad()
def log_likelihoods(language: LanguageModel, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    """(Σ log p of the last n tokens in nats, whether each was the likeliest) for each (ids, n), n below len(ids)."""
    found: dict[int, tuple[float, bool]] = {}
    for some in _batches(rows):
        width = max(len(rows[number][0]) for number in some)
        tokens_BT = torch.zeros(len(some), width, dtype=torch.int64)
        for row, number in enumerate(some):
            tokens_BT[row, : len(rows[number][0])] = torch.tensor(rows[number][0])
        device = next(language.decoder.parameters()).device
        hidden_BTD, _ = language.decoder(
            tokens_BT.to(device)
        )  # padding stands behind: causal attention does not see it
        for row, number in enumerate(some):
            ids, count = rows[number]
            logits = language.decoder.head(hidden_BTD[row, len(ids) - count - 1 : len(ids) - 1]).float()
            wanted = torch.tensor(ids[len(ids) - count :], device=device)
            values = torch.log_softmax(logits, -1).gather(1, wanted.unsqueeze(1))
            found[number] = float(values.sum()), bool((logits.argmax(-1) == wanted).all())
    return [found[number] for number in range(len(rows))]


def _batches(rows: Sequence[tuple[list[int], int]]) -> Iterator[list[int]]:
    """Numbers of rows of like lengths, of about `_TOKENS` tokens together."""
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number][0]))
    first = 0
    while first < len(order):
        count = max(_TOKENS // max(len(rows[order[first]][0]), 1), 1)
        yield order[first : first + count]
        first += count
