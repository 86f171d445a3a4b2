"""A model for lm-evaluation-harness (the extra `eval`): its tasks, scored with our decoding.

    from lm_eval import simple_evaluate
    simple_evaluate(model=harness_model(shoestring.load(MODEL)), tasks=[...])

The harness joins contexts and continuations and cuts them into tokens by its own rules (`TemplateLM`); what is computed
here are sums of log p of continuations, the likelihood of whole texts in windows, and greedy or sampled text up to a
stop.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.extras import need
from shoestring.core.units import counted
from shoestring.core.waiting import waiting
from shoestring.evaluate.log_likelihood import log_likelihoods
from shoestring.generate.language_model import LanguageModel

_LENGTH = 2048  # tokens of a sequence, where the model's context is longer
_MOST = 256  # new tokens, where a task does not say
_CACHED = 16_384  # tokens of texts that are decoded together, where memory is not limited
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size")  # as they are called here too
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given


def harness_model(language: LanguageModel, max_length: int | None = None) -> Any:
    """An `lm_eval.api.model.TemplateLM` around a loaded model. max_length: tokens of context and continuation together,
    2,048 or what the model can if not given; a longer context is cut at its beginning.

    Raises ConfigError where the harness is not installed, and for a length that the model cannot read.
    """
    need("lm_eval", "lm-evaluation-harness", "eval")
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    longest = min(language.decoder.config.context, language.at_once or language.decoder.config.context)
    if max_length is not None and not 2 <= max_length <= longest:
        raise ConfigError(f"max_length {max_length}: from 2 to {longest:,}, which is what this model reads at once")
    length = max_length or min(_LENGTH, longest)
    tokenizer = language.tokenizer

    class HarnessModel(TemplateLM):
        tokenizer_name = str(language.folder or "shoestring")

        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.separator_id

        @property
        def prefix_token_id(self) -> int:
            """What a text opens with that has nothing before it."""
            return tokenizer.bos_id if tokenizer.bos_id is not None else self.eot_token_id

        @property
        def max_length(self) -> int:
            return length

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids = tokenizer.encode(string, specials=True)
            opens = add_special_tokens is not False and tokenizer.opens_with_bos() and ids[:1] != [tokenizer.bos_id]
            return [tokenizer.bos_id, *ids] if opens and tokenizer.bos_id is not None else ids

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
        ) -> list[tuple[float, bool]]:
            rows = []
            for (_, text), context, continuation in requests:
                if len(continuation) > length:
                    raise ConfigError(
                        f"a continuation of {len(continuation):,} tokens is longer than the {length:,} that are read"
                        f" at once: {text[:60]!r}"
                    )
                rows.append(([*(context or [self.prefix_token_id]), *continuation], len(continuation)))
            _tell_cut(sum(len(ids) > length + 1 for ids, _ in rows), length)
            rows = [(ids[-(length + 1) :], count) for ids, count in rows]
            return log_likelihoods(language, rows)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            rows, texts = [], []
            for number, request in enumerate(requests):
                windows = utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                    max_seq_len=length, context_len=1,
                )  # fmt: skip
                for context, continuation in map(utils.make_disjoint_window, windows):
                    rows.append(([*context, *continuation], len(continuation)))
                    texts.append(number)
            found = [0.0] * len(requests)
            for number, (value, _) in zip(texts, log_likelihoods(language, rows), strict=True):
                found[number] += value
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            """Those with the same options are decoded together."""
            alike: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
            found = [""] * len(requests)
            with waiting("asking    lm-evaluation-harness's questions", len(requests)) as told:
                for numbers in alike.values():
                    options = sampling_options(requests[numbers[0]].args[1])
                    prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
                    said = self._replies(prompts, options, told.advance)
                    for number, text in zip(numbers, said, strict=True):
                        found[number] = text
            return found

        def _replies(
            self, prompts: list[list[int]], options: dict[str, Any], finished: Callable[[], None]
        ) -> list[str]:
            """As many together as there is room for, those of like lengths, in the order of the prompts."""
            most = options["max_tokens"]
            room = length - most
            if room < 1:
                raise ConfigError(f"{most:,} new tokens leave no room for a question in {length:,}")
            _tell_cut(sum(len(ids) > room for ids in prompts), room)
            prompts = [ids[-room:] or [self.prefix_token_id] for ids in prompts]
            order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
            found = [""] * len(prompts)
            while order:
                count = max((language.at_once or _CACHED) // (len(prompts[order[0]]) + most), 1)
                done = len(prompts) - len(order)  # as a seed: a question that is asked again is not answered alike
                some, order = order[:count], order[count:]
                said = language.complete_ids([prompts[number] for number in some], finished, seed=done, **options)
                for number, one in zip(some, said, strict=True):
                    found[number] = one.text
            return found

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return tokenizer.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return tokenizer.chat_template if chat_template else None

    return HarnessModel()


def _tell_cut(count: int, room: int) -> None:
    if count:
        console.say(f"cut       {counted(count, 'context')} longer than {room:,} tokens, at the beginning")


def sampling_options(given: dict[str, Any]) -> dict[str, Any]:
    """A task's `generation_kwargs` as options of `LanguageModel.complete_ids`. Raises ConfigError for what is not done
    here."""
    left = dict(given)
    until = left.pop("until", None) or []
    most = [left.pop(name) for name in _LENGTHS if name in left]
    temperature = float(left.pop("temperature", 1.0 if left.get("do_sample") else 0.0))
    if left.pop("do_sample", None) is False:
        temperature = 0.0
    if left.get("num_beams") == 1:  # none
        del left["num_beams"]
    options: dict[str, Any] = {
        "stop": tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        "max_tokens": int(most[0]) if most else _MOST,
        "temperature": temperature,
        "repetition_penalty": 1.0,
    }
    options |= {name: left.pop(name) for name in _SAMPLING if name in left}
    if left:
        raise ConfigError(f"generation_kwargs of the task: {', '.join(map(str, left))}: not done here")
    return options
