"""A model with its tokenizer: text in, text out. `shoestring.load(MODEL)` makes one.

Plain prompts go through `generate` and `stream`, conversations through `chat` and `chat_stream`; all are
`events`, one stream of text pieces from the scheduler. Options are the fields of `SamplingConfig`; what the
model's generation_config.json recommends stands in for those not given.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch

from shoestring.core.errors import ConfigError, TokenizerError
from shoestring.data.external import External
from shoestring.data.plain_names import PlainNames
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate.advice import advice
from shoestring.generate.config import SamplingConfig, sampling_config
from shoestring.generate.loading import open_model
from shoestring.generate.request import Request, Speed, StopReason, check_prompt
from shoestring.generate.scheduler import Scheduler
from shoestring.generate.text import TextStream
from shoestring.models.decoder import Decoder
from shoestring.models.decoding_formats import CacheFormat, DecodingFormat, check_cache
from shoestring.models.decoding_weights import with_int8_cache
from shoestring.models.external import open_external
from shoestring.models.folder import GenerationDefaults, check_rows
from shoestring.models.resolve import Say

Messages = str | Sequence[dict[str, Any]]
SpecialTokens = Literal["read", "text"]

SLOTS = 64  # texts decoded at once; more wait


@dataclass(frozen=True)
class TextEvent:
    """A piece of a row's text, perhaps empty, and the token that brought it. reason: on the last event."""

    row: int
    text: str
    token: int
    reason: StopReason | None = None


@dataclass
class Completion:
    """What one prompt became. tokens: new ids, a stop token included; text: without prompt and stop."""

    prompt_tokens: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    reason: StopReason = "interrupted"


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
        self.weights: DecodingFormat = "source"  # how they are kept
        self.cache: CacheFormat = "source"  # how keys and values are

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
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str], **options: Any) -> str | list[str]:
        """The continuation of a prompt, without the prompt, or a list of them for several, decoded together.

        options: fields of `SamplingConfig`, and special_tokens of `encode_prompt`. Raises ConfigError for a wrong
        option, and for a prompt that is empty (when the model has no token to begin a text with) or longer than the
        context.
        """
        if isinstance(prompt, str):
            return self.complete([prompt], **options)[0].text
        return [completion.text for completion in self.complete(prompt, **options)]

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

        scheduler: an idle one, as for `events`."""
        completions = [Completion(len(ids)) for ids in prompts]
        for event in self.events(prompts, self.sampling(**options), scheduler):
            completion = completions[event.row]
            completion.text += event.text
            completion.tokens.append(event.token)
            completion.reason = event.reason or completion.reason
            if event.reason and finished is not None:
                finished()
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

    def chat(self, messages: Messages, system: str | None = None, **options: Any) -> str:
        """The model's reply to a question, or to messages [{"role": "user", "content": ...}, ...].

        Raises TokenizerError when the model has no chat template, ConfigError when the conversation does not
        fit its context.
        """
        return "".join(self.chat_stream(messages, system, **options))

    def chat_stream(self, messages: Messages, system: str | None = None, **options: Any) -> Iterator[str]:
        """The reply in pieces as they are written."""
        return self._pieces(self.encode_chat(as_messages(messages, system)), options)

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Ids of a conversation in the model's chat template, up to where the model is to answer."""
        if self.tokenizer.chat_template is None:
            raise TokenizerError(
                "this model has no chat template: it continues text and was not taught to answer",
                where=str(self.folder) if self.folder else None,
                hint='use generate instead: shoestring generate MODEL --prompt "Once upon a time"',
            )
        return PlainNames(self.tokenizer).encode_chat(messages)

    # What both are made of

    def sampling(self, **options: Any) -> SamplingConfig:
        """These options, and for the others what the model recommends. Raises ConfigError."""
        return sampling_config(self.recommended, options)

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
        """What a scheduler takes: with the model's own stop tokens and external vectors."""
        return Request(prompt, sampling, self.stop_tokens, row, self.external_vectors())

    def scheduler(self, slots: int, capacity: int) -> Scheduler:
        """For so many texts at once, of so many tokens each."""
        return Scheduler(self.decoder, self.decoder.new_cache(slots, capacity), self.tokenizer.vocabulary_size)

    def events(
        self, prompts: list[list[int]], sampling: SamplingConfig, scheduler: Scheduler | None = None
    ) -> Generator[TextEvent, None, None]:
        """Decode token ids to pieces of text. scheduler: an idle one, whose slots may hold the prompts' beginnings.

        Every new token gives one event, also when it brings no text. Nothing runs before the first event is
        asked for.
        """
        if not prompts:
            return
        context = self.decoder.config.context
        for prompt in prompts:
            check_prompt(prompt, context)
        longest = min(max(map(len, prompts)) + sampling.max_tokens, context)
        if scheduler is None:
            scheduler = self.scheduler(min(len(prompts), SLOTS), longest)
        scheduler.reserve(longest)
        self.speed = scheduler.speed = Speed()
        rows = {scheduler.add(self.request(prompt, sampling, row)): row for row, prompt in enumerate(prompts)}
        texts = [TextStream(self.tokenizer, sampling.stop) for _ in prompts]
        try:
            for event in scheduler.run():
                row = rows[event.request]
                stream, reason, piece = texts[row], event.reason, ""
                if reason != "stop_token":
                    piece = stream.add(event.token)
                if reason is not None and not stream.stopped:
                    piece += stream.finish()
                if stream.stopped:
                    reason = "stop_string"
                    scheduler.cancel(event.request)
                yield TextEvent(row, piece, event.token, reason)
        finally:  # also when the reader stops early or Ctrl-C arrives
            for id in rows:
                scheduler.cancel(id)

    def _pieces(self, prompt: list[int], options: dict[str, Any]) -> Iterator[str]:
        sampling = self.sampling(**options)
        check_prompt(prompt, self.decoder.config.context)
        return (event.text for event in self.events([prompt], sampling) if event.text)


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
