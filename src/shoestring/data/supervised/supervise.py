"""Examples to token ids and the mask of those that are learned.

    row -> messages -> text with character spans -> ids [n] and supervised [n] (bool), cut to sequence_length

A token is learned if it begins inside a span. The text is encoded in pieces that begin where the model begins to
write, because that is how it will meet them: a prompt is encoded before its answer exists, so no token may reach
over the border. What would train silently on nothing stops here.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from shoestring.core.errors import ConfigError, DataError, TokenizerError
from shoestring.data.plain_names import PlainNames
from shoestring.data.sources import Skipped
from shoestring.data.supervised.config import SupervisedDataConfig
from shoestring.data.supervised.dataset import DatasetBuilder, SupervisedDataset
from shoestring.data.supervised.formats import Example
from shoestring.data.supervised.rows import GIVEN, ExampleSource, Rows
from shoestring.data.supervised.spans import (
    ChatRenderer,
    DroppedContent,
    Message,
    Rendered,
    Span,
    plain_template,
)
from shoestring.data.tokenizer import Tokenizer

_AT_ONCE = 256  # examples encoded together, on all cores
_SKIP = "--on-bad-line skip leaves such examples out and counts them"
Say = Callable[[str], None]


class NothingSupervised(DataError):
    """An example, or all of them, without a token to learn."""


class StopNeverSupervised(DataError):
    """No answer ends with a token that ends a reply: the model would never learn to stop."""


class AllTruncated(DataError):
    """The cut to sequence_length leaves nothing to learn."""


@dataclass(frozen=True)
class ModelSide:
    """What of a model the data depends on.

    stop_ids: tokens that end a reply when generating. context: longest sequence, None if unknown.
    """

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    context: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, ends: tuple[int, ...] = (), context: int | None = None) -> ModelSide:
        """Stopping as generation does: at the model's own `ends`, eos, and what the template writes after a reply."""
        found = (*ends, tokenizer.eos_id, tokenizer.end_of_reply_id)
        stops = frozenset(i for i in found if i is not None and i < tokenizer.vocabulary_size)
        return cls(tokenizer, stops, context)


def build_dataset(
    data: str | Path | SupervisedDataConfig | Rows,
    side: ModelSide,
    sequence_length: int | None = None,
    say: Say | None = None,
    **settings: object,
) -> SupervisedDataset:
    """Examples of `data` as a model is to learn them. settings: fields of SupervisedDataConfig.

    data: where they are, or rows themselves: dictionaries, a `datasets.Dataset`, an iterator over such.
    sequence_length: longer examples are cut on the right; None: the model's context. The result's `counts` and `notes`
    say what was found. Raises DataError subclasses for data from which nothing, or not to stop, would be learned.
    """
    if isinstance(data, SupervisedDataConfig):
        config = data.model_copy(update=settings) if settings else data
    else:
        named = str(data) if isinstance(data, (str, Path)) else GIVEN
        config = SupervisedDataConfig.model_validate({"source": named, **settings})
    length = sequence_length or side.context
    supervisor = Supervisor(side, config)
    given = None if isinstance(data, (str, Path, SupervisedDataConfig)) else data
    sources = [
        ExampleSource(part.source if given is None else given, part.format, config.on_bad_line, say, part.columns)
        for part in config.parts
    ]
    forms = " + ".join(dict.fromkeys(source.form for source in sources))
    columns = {name: own for source in sources for name, own in source.columns.items()}
    share = 0.0 if config.validation_source else config.validation
    builder = DatasetBuilder(config.named, forms, supervisor.tokenizer, side.stop_ids, length, columns)
    skipped = Skipped()
    unused: Counter[str] = Counter()
    for part, source in enumerate(sources):
        for example, learned in supervisor.run(source.examples(skipped), length, skipped):
            unused.update(example.unused)
            at = fraction(example.question())
            builder.add(learned.ids, learned.supervised, learned.full_length, example.where, at, part=part)
    builder.split(share)
    if config.validation_source:
        held_out = ExampleSource(config.validation_source, config.format, config.on_bad_line, say, config.columns)
        for example, learned in supervisor.run(held_out.examples(skipped), length, skipped):
            builder.add(learned.ids, learned.supervised, learned.full_length, example.where, held_out=True)
    notes = (*_not_used(unused), *supervisor.remarks.sentences())
    dataset = builder.build(skipped, notes, tuple(part.weight for part in config.parts))
    _check(dataset, config, supervisor)
    return dataset


def _not_used(fields: Counter[str]) -> list[str]:
    """A sentence on the fields of rows that hold something and are not read."""
    if not fields:
        return []
    counted = (f"{name} ({n:,} row{'s' * (n != 1)})" for name, n in sorted(fields.items()))
    return [f"fields that are not used: {', '.join(counted)}"]


def fraction(text: str) -> float:
    """A hash of `text` in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


@dataclass(frozen=True)
class Learned:
    """ids int64 [n], supervised bool [n]; full_length: tokens before the cut."""

    ids: np.ndarray
    supervised: np.ndarray
    full_length: int


@dataclass
class Supervisor:
    """Applies one model's template and one config to examples. turns, ended: learned turns, and those with a stop."""

    side: ModelSide
    config: SupervisedDataConfig
    turns: int = 0
    ended: int = 0
    cut_away: int = 0
    tokenizer: Tokenizer = field(init=False)

    def __post_init__(self) -> None:
        tokenizer, choice = self.side.tokenizer, self.config.template
        self._templateless = tokenizer.chat_template is None and choice in ("auto", "none")
        if self._templateless:
            tokenizer = _with_template(tokenizer, plain_template(tokenizer))
        elif choice not in ("auto", "none"):
            tokenizer = _with_template(tokenizer, _read_template(choice))
        self.tokenizer = tokenizer
        self._splits = _splits(tokenizer)
        stops = [tokenizer.decode([i], skip_specials=False) for i in sorted(self.side.stop_ids)]
        self._names = PlainNames(tokenizer)
        date, last = datetime.date.fromisoformat(self.config.date), self.config.supervise == "last"
        self._renderer = ChatRenderer(tokenizer, stops, date, last)
        self.remarks = self._renderer.remarks

    def run(
        self, examples: Iterator[Example], length: int | None, skipped: Skipped
    ) -> Iterator[tuple[Example, Learned]]:
        """Each example with what is learned of it, in order. Raises DataError, or counts it in `skipped`."""
        rendered = self._rendered(examples, skipped)
        while chunk := list(itertools.islice(rendered, _AT_ONCE)):
            pieces = [self._pieces(text) for _, text in chunk]
            encoded = iter(self._names.encode([(text, names) for part in pieces for _, text, names in part]))
            for (example, text), part in zip(chunk, pieces, strict=True):
                parts = [(at, *next(encoded)) for at, _, _ in part]
                try:
                    ids, mask = self._plain(example) if text is None else self._mask(parts, text.spans)
                    yield example, self._cut(ids, mask, length, example)
                except DataError as error:
                    if self.config.on_bad_line == "stop":
                        raise
                    skipped.add(_reason(error), example.where)

    def _rendered(self, examples: Iterator[Example], skipped: Skipped) -> Iterator[tuple[Example, Rendered | None]]:
        for example in examples:
            try:
                yield example, self._render(example)
            except (DataError, TokenizerError) as error:
                if self.config.on_bad_line == "stop":
                    raise
                skipped.add(_reason(error), example.where)

    def _render(self, example: Example) -> Rendered | None:
        """None: prompt and completion are joined as they are."""
        if self._is_plain(example):
            return None
        messages, learn = example.messages, example.learn
        if self.config.system is not None and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": self.config.system}, *messages]
            learn = [False, *learn]
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if self.config.supervise == "all":
            whole = self._renderer.render(messages, example.tools, turns, example.where)
            return replace(whole, spans=[(0, len(whole.text))])
        turns = [i for i in turns if learn[i] and _says_something(messages[i])]
        if self.config.supervise == "last":
            turns = turns[-1:]
        if not turns:
            raise NothingSupervised("no assistant turn to learn from", example.where, _SKIP)
        return self._renderer.render(messages, example.tools, turns, example.where)

    def _is_plain(self, example: Example) -> bool:
        if not example.messages:
            return True
        if self.config.template == "none":
            if example.plain is None:
                raise DataError(
                    "a conversation, a system message or tools cannot be joined without a template", example.where,
                    "use data.template auto",
                )  # fmt: skip
            if self.config.system is not None:
                raise DataError("a system message has no place without a template", example.where, "drop data.system")
            return True
        return self._templateless and example.plain is not None and self.config.system is None

    def _plain(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """bos where the tokenizer opens texts with it, prompt, completion, eos.

        Prompt and completion are encoded apart, because that is how the model will get the prompt.
        """
        assert example.plain is not None
        tokenizer = self.tokenizer
        if tokenizer.eos_id is None:
            raise TokenizerError(
                "this tokenizer has no eos token to end an answer with",
                example.where,
                "name one as eos_token in tokenizer_config.json",
            )
        read = self.config.special_tokens == "read"
        prompt, completion = (tokenizer.encode(part, specials=read) for part in example.plain)
        opening, ending = self._opening(prompt, completion), self._ending(prompt, completion, example.where)
        ids = np.array([*opening, *prompt, *completion, *ending], np.int64)
        mask = np.zeros(len(ids), bool)
        mask[0 if self.config.supervise == "all" else len(opening) + len(prompt) :] = True
        if not any(self._says(i) for i in completion):
            mask[:] = False  # an end alone teaches silence
        self.turns += 1
        self.ended += bool(mask.any())
        return ids, mask

    def _opening(self, prompt: list[int], completion: list[int]) -> list[int]:
        """bos, where the tokenizer opens texts with it or nothing stands before what is learned; never twice."""
        tokenizer, first = self.tokenizer, [*prompt[:1], *completion[:1]][:1]
        if tokenizer.bos_id is None or first == [tokenizer.bos_id]:
            return []
        bare = not prompt and not tokenizer.special_ids.intersection(first)
        return [tokenizer.bos_id] if tokenizer.opens_with_bos() or bare else []

    def _ending(self, prompt: list[int], completion: list[int], where: str) -> list[int]:
        """eos, if the text does not end in a token that ends a reply. An answer that goes on after one is refused."""
        eos = self.tokenizer.eos_id
        assert eos is not None
        stops = {eos, *self.side.stop_ids}
        last = len(completion)
        while last and completion[last - 1] not in stops and not self._says(completion[last - 1]):
            last -= 1
        if prompt and (stop := next((i for i in completion[: max(last - 1, 0)] if i in stops), None)) is not None:
            name = self.tokenizer.decode([stop], skip_specials=False)
            raise DroppedContent(
                f"the completion goes on after {name}, which ends a reply", where,
                "take the token's name out of the text, or data.special_tokens text reads it as letters",
            )  # fmt: skip
        return [] if last and completion[last - 1] in stops else [eos]

    def _says(self, token: int) -> bool:
        """Whether it is more than white space, and no special token."""
        return token not in self.tokenizer.special_ids and bool(self.tokenizer.decode([token]).strip())

    def _pieces(self, rendered: Rendered | None) -> list[tuple[int, str, list[int]]]:
        """The parts to be encoded apart, with the index of the first character, and names in them that are text."""
        if rendered is None:
            return []
        borders = [0, *(begin for begin, _ in rendered.spans if begin > 0)] if self._splits else [0]
        ends = [*borders[1:], len(rendered.text)]
        return [
            (begin, rendered.text[begin:end], [at - begin for at in rendered.names if begin <= at < end])
            for begin, end in zip(borders, ends, strict=True)
        ]

    def _mask(
        self, parts: list[tuple[int, np.ndarray, np.ndarray]], spans: list[Span]
    ) -> tuple[np.ndarray, np.ndarray]:
        """parts: index of the first character, ids, and the characters in the part where they begin."""
        ids = np.concatenate([ids for _, ids, _ in parts])
        starts = np.concatenate([at + starts for at, _, starts in parts])
        mask = np.zeros(len(ids), bool)
        for begin, end in spans:
            first, last = np.searchsorted(starts, (begin, end))
            mask[first:last] = True
            self.turns += 1
            self.ended += bool(last > first) and int(ids[last - 1]) in self.side.stop_ids
        return ids, mask

    def _cut(self, ids: np.ndarray, mask: np.ndarray, length: int | None, example: Example) -> Learned:
        # The first token of a row has none before it that could predict it.
        if not mask[1:].any():
            raise NothingSupervised("no token of this example would be learned", example.where, _SKIP)
        kept = mask[:length].copy()
        if not kept[1:].any():
            self.cut_away += 1
            raise AllTruncated(
                f"nothing to learn is left of its {len(ids):,} tokens: the first {length:,} are all prompt",
                example.where,
                f"use a longer train.sequence_length\n{_SKIP}",
            )
        return Learned(ids[:length], kept, len(ids))


def _check(dataset: SupervisedDataset, config: SupervisedDataConfig, supervisor: Supervisor) -> None:
    counts = dataset.counts
    if not counts.examples:
        left_out = f": {dataset.skipped}" if dataset.skipped.counts else ""
        if supervisor.cut_away and supervisor.cut_away == sum(dataset.skipped.counts.values()):
            raise AllTruncated(
                f"every example is cut before anything to learn{left_out}",
                config.named,
                "use a longer train.sequence_length",
            )
        raise NothingSupervised(f"no example is left to learn from{left_out}", config.named)
    if counts.stops:
        return
    if supervisor.ended and counts.truncated:
        raise AllTruncated(
            f"all {counts.truncated:,} examples are cut before their end, so that the model would never learn to stop",
            config.named,
            "use a longer train.sequence_length",
        )
    names = ", ".join(supervisor.tokenizer.decode([i], skip_specials=False) for i in sorted(supervisor.side.stop_ids))
    raise StopNeverSupervised(
        f"no answer ends with a stop token ({names or 'this tokenizer has none'}): the model would never learn to stop",
        config.named,
        "the chat template or eos_token in tokenizer_config.json is wrong for this model",
    )


def _reason(error: DataError | TokenizerError) -> str:
    """Why an example was left out, to be counted."""
    if isinstance(error, AllTruncated):
        return "cut before anything learned"
    if isinstance(error, NothingSupervised):
        return "nothing to learn"
    return "examples that the template cannot show whole"


def _says_something(message: Message) -> bool:
    """An end token alone would teach silence."""
    return bool(message["content"].strip() or message.get("tool_calls"))


def _with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    return Tokenizer(tokenizer.backend, tokenizer.config, {"default": template})


def _read_template(file: str) -> str:
    try:
        return Path(os.path.expanduser(file)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the chat template cannot be read: {error}", hint="data.template is auto, none or a .jinja file"
        ) from error


def _splits(tokenizer: Tokenizer) -> bool:
    """Whether a part of a text can be encoded by itself: some tokenizers put a space before whatever they are given."""
    return tokenizer.is_byte_level and b"".join(tokenizer.token_bytes()[i] for i in tokenizer.encode("a")) == b"a"
