"""A model with its tokenizer: text in, text out. `shoestring.load(MODEL)` makes one.

Plain prompts go through `generate` and `stream`, conversations through `chat` and `chat_stream`; all are
`events`, one stream of text pieces from the scheduler. Options are the fields of `SamplingConfig`; what the
model's generation_config.json recommends stands in for those not given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from shoestring.core.errors import ConfigError, TokenizerError
from shoestring.data.external import External
from shoestring.data.plain_names import PlainNames
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate import prefix
from shoestring.generate.advice import advice
from shoestring.generate.config import SamplingConfig, sampling_config, text_alone
from shoestring.generate.constraint import Constraints, check_constraint
from shoestring.generate.loading import open_model
from shoestring.generate.request import Request, Speed, check_prompt
from shoestring.generate.scheduler import Scheduler
from shoestring.generate.speculation import MOST, Speculation
from shoestring.generate.texts import Asked, Completion, TextEvent, completed, decoded, places, searched
from shoestring.models.decoder import Decoder
from shoestring.models.decoding_formats import CacheFormat, DecodingFormat, check_cache
from shoestring.models.decoding_weights import with_int8_cache
from shoestring.models.external import open_external
from shoestring.models.folder import GenerationDefaults, check_rows
from shoestring.models.resolve import Say
from shoestring.plan.decoding import Loaded

Messages = str | Sequence[dict[str, Any]]
SpecialTokens = Literal["read", "text"]

SLOTS = 64  # texts decoded at once; more wait


class LanguageModel:
    """stop_tokens: ids that end a text. recommended: the folder's own settings; unused: those of
    its generation_config.json that change the text and are not done here. speed: of the latest run.

    external: what makes the vectors that the decoder's input adapter takes.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        folder: Path | None = None,
        defaults: GenerationDefaults | None = None,
        external: External | None = None,
    ):
        check_rows(tokenizer, decoder.config, folder)
        self.decoder = decoder.eval()
        self.tokenizer = tokenizer
        self.folder = folder
        self.external = external
        if defaults is None:
            defaults = GenerationDefaults.of_tokenizer(tokenizer)
        self.recommended, self.unused = advice(defaults.settings, "generation_config.json")
        ends = (*defaults.eos_ids, tokenizer.eos_id, tokenizer.end_of_reply_id)
        self.stop_tokens = frozenset(token for token in ends if token is not None)
        self.speed = Speed()
        self.at_once: int | None = None  # tokens computed together at most, where memory is limited
        self.speculation: Speculation | None = None  # see `speculate`
        self.weights: DecodingFormat = "source"  # how they are kept
        self.cache: CacheFormat = "source"  # how keys and values are
        self.loaded: Loaded | None = None  # what predictions of its use are made of, where it was loaded with a plan

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        say: Say | None = None,
        external: External | None = None,
        weights: DecodingFormat = "source",
        cache: CacheFormat = "source",
    ) -> LanguageModel:
        """Load a model or adapter folder, run, GGUF file or known name (see `models.resolve.find_model`).

        dtype "auto" is float32, which computes what the weights say. say: told in a sentence what is being
        waited for. external: of the input adapter, where it is open already. weights: how they are kept
        (`models.decoding_formats`), for decoding alone where it is not "source". cache: what keys and values are kept
        in. Raises ModelFileError, TokenizerError, NetworkError, ConfigError.
        """
        check_cache(cache, None)
        decoder, tokenizer, folder, defaults = open_model(model, device, dtype, weights, say)
        if cache == "int8":
            decoder = with_int8_cache(decoder)
        if external is None:
            external = open_external(decoder.config, tokenizer, say)
        language = cls(decoder, tokenizer, folder, defaults, external)
        language.weights, language.cache = weights, cache
        language.tell_unused(say)
        return language

    def tell_unused(self, say: Say | None) -> None:
        """One sentence about what of the model's own settings is not done here, if there is any."""
        if say is not None and self.unused:
            say(f"generation_config.json: not done here: {', '.join(self.unused)}")

    # Plain text

    @overload
    def generate(self, prompt: str, *, num_return_sequences: int, **options: Any) -> str | list[str]: ...
    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str], **options: Any) -> str | list[str]:
        """The continuation of a prompt, without the prompt, or a list of them for several, decoded together. With
        `num_return_sequences` above 1 a list, those of the first prompt first.

        options: fields of `SamplingConfig`, and special_tokens of `encode_prompt`. Raises ConfigError for a wrong
        option, and for a prompt that is empty (when the model has no token to begin a text with) or longer than the
        context.
        """
        alone = isinstance(prompt, str)
        text_alone(options.get("logprobs"), "generate")
        texts = [done.text for done in self.complete([prompt] if isinstance(prompt, str) else prompt, **options)]
        return texts[0] if alone and len(texts) == 1 else texts

    def stream(self, prompt: str, special_tokens: SpecialTokens = "read", **options: Any) -> Iterator[str]:
        """The same text in pieces as they are written: no half characters, no part of a stop string."""
        return self._pieces(self.encode_prompt(prompt, special_tokens), options)

    def complete(
        self, prompts: Sequence[str], special_tokens: SpecialTokens = "read", **options: Any
    ) -> list[Completion]:
        """`generate`, with the tokens and the reason why each text ended; `speed` holds the figures."""
        return self.complete_ids([self.encode_prompt(prompt, special_tokens) for prompt in prompts], **options)

    def complete_ids(
        self,
        prompts: list[list[int]],
        finished: Callable[[], object] | None = None,
        scheduler: Scheduler | None = None,
        **options: Any,
    ) -> list[Completion]:
        """The same for prompts that are token ids already. finished: called when a text has come to its end.

        scheduler: an idle one, as for `events`; beams use none. Raises ConfigError, also where a constraint leaves too
        few texts to beams."""
        sampling = self.sampling(**options)
        self._check(prompts)
        if not prompts:
            return []
        self.speed = Speed()
        done = finished or (lambda: None)
        if sampling.num_beams > 1:
            found = []
            for prompt in prompts:
                for completion in searched(self, prompt, sampling):
                    found.append(completion)
                    done()
            return found
        prompts = [prompt for prompt in prompts for _ in range(sampling.num_return_sequences)]
        completions = [Completion(len(ids)) for ids in prompts]
        for row, completion in completed(self, *self._all(prompts, sampling, scheduler)):
            completions[row] = completion
            done()
        return completions

    def encode_prompt(self, text: str, special_tokens: SpecialTokens = "read") -> list[int]:
        """Ids of a plain prompt, opened by bos where the tokenizer asks for it or there is nothing else, never twice.

        special_tokens: their names in the prompt are read as the tokens (a conversation rendered elsewhere), or text.
        """
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text, specials=special_tokens == "read")
        bos = tokenizer.bos_id
        if bos is None:
            if not ids:
                raise ConfigError("the prompt is empty, and this model has no token to begin a text with")
            return ids
        if ids[:1] == [bos]:
            return ids
        if not ids or tokenizer.config.get("add_bos_token") or bos in tokenizer.backend.encode("").ids[:1]:
            ids = [bos, *ids]
        return ids

    # Conversations

    def chat(
        self, messages: Messages, system: str | None = None, scheduler: Scheduler | None = None, **options: Any
    ) -> str:
        """The model's reply to a question, or to messages [{"role": "user", "content": ...}, ...].

        Raises TokenizerError when the model has no chat template, ConfigError when the conversation does not
        fit its context.
        scheduler: an idle one, whose slots may hold the conversation's beginning.
        """
        return "".join(self.chat_stream(messages, system, scheduler, **options))

    def chat_stream(
        self, messages: Messages, system: str | None = None, scheduler: Scheduler | None = None, **options: Any
    ) -> Iterator[str]:
        """The reply in pieces as they are written."""
        return self._pieces(self.encode_chat(as_messages(messages, system)), options, scheduler)

    def encode_chat(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None = None) -> list[int]:
        """Ids of a conversation in the model's chat template, up to where the model is to answer. tools: schemas of
        functions, for templates that write them."""
        if self.tokenizer.chat_template is None:
            raise TokenizerError(
                "this model has no chat template: it continues text and was not taught to answer",
                where=str(self.folder) if self.folder else None,
                hint='use generate instead: shoestring generate MODEL --prompt "Once upon a time"',
            )
        return PlainNames(self.tokenizer).encode_chat(messages, tools)

    # What both are made of

    def sampling(self, **options: Any) -> SamplingConfig:
        """These options, and for the others what the model recommends. Raises ConfigError."""
        config = sampling_config(self.recommended, options)
        check_constraint(config)
        self.check_ids(config, [name for name, value in options.items() if value is not None])
        return config

    def check_ids(self, sampling: SamplingConfig, settings: Iterable[str]) -> None:
        """Raises ConfigError where one of these settings names a token that there is not."""
        named: dict[str, Sequence[int]] = {
            "logit_bias": [token for token, _ in sampling.logit_bias],
            "stop_tokens": sampling.stop_tokens,
            "bad_words_ids": [token for tokens in sampling.bad_words_ids for token in tokens],
        }
        last = self.tokenizer.vocabulary_size - 1
        for name in settings:
            for token in named.get(name, ()):
                if not 0 <= token <= last:
                    raise ConfigError(f"{name} names token {token:,}, and the tokenizer has ids from 0 to {last:,}")

    @functools.cached_property
    def _constraints(self) -> Constraints:
        return Constraints(self.tokenizer)

    def external_vectors(self) -> External | None:
        """What makes the vectors that the decoder takes; None where it takes none. Raises ConfigError without a source:
        the model would compute as if it had never had them."""
        if self.external is None and self.decoder.config.input_adapter is not None:
            raise ConfigError(
                "this model adds the embeddings of another one to its input, and its config names none",
                hint="name it in input_adapter.source of config.json, or give it: LanguageModel(..., external=...)",
            )
        return self.external

    def request(self, prompt: list[int], sampling: SamplingConfig, row: int = 0) -> Request:
        """What a scheduler takes: with the model's own stop tokens and external vectors, and a guide where there is a
        constraint. Raises ConfigError where no text can obey it."""
        guide = self._constraints.guide(sampling) if sampling.constraint is not None else None
        request = Request(prompt, sampling, self.stop_tokens, row, self.external_vectors(), guide)
        reason = guide.reason([], request.ends) if guide is not None else None
        if reason == "dead_end" or (reason == "complete" and not request.ends):
            name = next(iter(sampling.constraint or ()))
            raise ConfigError(f"no token of this model begins a text that {name} allows")
        return request

    def scheduler(self, slots: int, capacity: int) -> Scheduler:
        """For so many texts at once, of so many tokens each."""
        cache, size = self.decoder.new_cache(slots, capacity), self.tokenizer.vocabulary_size
        return Scheduler(self.decoder, cache, size, speculation=self.speculation)

    def speculate(self, by: Literal["lookup"] | LanguageModel | None, most: int = MOST) -> None:
        """Guess tokens ahead from now on, at most so many for one pass: the texts stay what they are, and come sooner
        where the guesses are right and a pass over several tokens costs little more than over one. That is measured,
        and where it does not pay, nothing is guessed.

        by: "lookup", what followed the last time that a text read like this; a smaller model with the same tokens;
        None, no more. Schedulers that were made before, and beam search, are left as they are. Raises ConfigError for
        a model that cannot guess for this one.
        """
        if isinstance(by, LanguageModel):
            self._check_draft(by)
        elif by not in ("lookup", None):
            raise ConfigError(f"{by!r} guesses nothing", hint='"lookup", a model that was loaded, or None')
        draft = by.decoder if isinstance(by, LanguageModel) else None
        self.speculation = None if by is None else Speculation(draft, most)

    def check_memory_of_draft(self) -> None:
        """Raises ConfigError where no second model may be loaded."""
        if self.at_once is not None:
            raise ConfigError(
                "a second model that guesses ahead needs memory of its own, which is not planned with --memory",
                hint="lookup guesses without one",
            )

    def _check_draft(self, draft: LanguageModel) -> None:
        self.check_memory_of_draft()
        if draft.decoder.config.input_adapter is not None:
            raise ConfigError("a model that takes vectors from another one cannot guess ahead")
        if draft.tokenizer.backend.get_vocab() != self.tokenizer.backend.get_vocab():
            raise ConfigError(
                "the model that is to guess ahead has other tokens", str(draft.folder) if draft.folder else None,
                hint="a smaller model of the same family has the same ones",
            )  # fmt: skip

    def save_prefix(self, file: str | Path, tokens: list[int], scheduler: Scheduler | None = None) -> int:
        """See `generate.prefix.save_prefix`: what the cache holds of a text's beginning, for another process."""
        return prefix.save_prefix(self, file, tokens, scheduler)

    def load_prefix(self, file: str | Path, scheduler: Scheduler) -> int:
        """See `generate.prefix.load_prefix`: it is then held by a slot, as if it had been read."""
        return prefix.load_prefix(self, file, scheduler)

    def events(
        self, prompts: list[list[int]], sampling: SamplingConfig, scheduler: Scheduler | None = None
    ) -> Generator[TextEvent, None, None]:
        """Decode token ids to pieces of text. scheduler: an idle one, whose slots may hold the prompts' beginnings.

        Every new token gives one event, also when it brings no text. Nothing runs before the first event is
        asked for. Raises ConfigError for beams and for several texts of a prompt.
        """
        sampling.check_streams(chances=True)
        if not prompts:
            return
        self._check(prompts)
        self.speed = Speed()
        yield from decoded(self, *self._all(prompts, sampling, scheduler))

    def _check(self, prompts: list[list[int]]) -> None:
        """Raises ConfigError for a prompt that cannot be continued."""
        for prompt in prompts:
            check_prompt(prompt, self.decoder.config.context, self.decoder.config.vocabulary)

    def _all(
        self, prompts: list[list[int]], sampling: SamplingConfig, scheduler: Scheduler | None
    ) -> tuple[list[Asked], Scheduler]:
        """What is asked where all have the same settings, and a scheduler with room for it."""
        lengths = [len(prompt) + sampling.max_tokens for prompt in prompts]
        longest = min(max(lengths), self.decoder.config.context)
        if scheduler is None:
            scheduler = self.scheduler(places(self, min(len(prompts), SLOTS), longest), longest)
        scheduler.reserve(longest)
        return [Asked(row, prompt, sampling) for row, prompt in enumerate(prompts)], scheduler

    def _pieces(
        self, prompt: list[int], options: dict[str, Any], scheduler: Scheduler | None = None
    ) -> Iterator[str]:
        sampling = self.sampling(**options)
        sampling.check_streams()
        self._check([prompt])
        return (event.text for event in self.events([prompt], sampling, scheduler) if event.text)


def load(model: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> LanguageModel:
    """`shoestring.load`: see `LanguageModel.load`."""
    return LanguageModel.load(model, device, dtype)


def as_messages(messages: Messages, system: str | None = None) -> list[dict[str, Any]]:
    """A question or messages as a list, opened by the system message if there is one. Raises ConfigError."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ConfigError(
                f"message {number} is not a dictionary with role and content",
                hint='a message looks like {"role": "user", "content": "Hello"}',
            )
    return ([{"role": "system", "content": system}] if system else []) + list(messages)
