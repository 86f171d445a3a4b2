"""A tokenizer: text to ids and back, with its special tokens and chat template.

Wraps the Rust `tokenizers` library and reads and writes the two files that Hugging Face tools share,
`tokenizer.json` and `tokenizer_config.json`, without transformers. `encode` never adds special tokens by
itself, and by default reads a special token's name in a text as plain text, so that a document cannot
close a conversation.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from shoestring.core.errors import TokenizerError
from shoestring.core.files import LFS_HINT, LFS_POINTER, clear_errors, is_lfs_pointer
from shoestring.data.chat import render_chat
from shoestring.data.tokenizer_files import (
    add_missing_tokens,
    chat_templates,
    check_patterns,
    no_tokenizer,
    panics,
    read_object,
)
from shoestring.data.tool_calls import CallForm, call_form

_ROLES = ("bos_token", "eos_token", "pad_token")
_PROBE = "a b\u00e9 1"  # a tokenizer that fails at this is told as broken when it is loaded
_MOST_UNUSED = 2**20  # ids without a token: real vocabularies have some hundreds
# Of the tokens that separate documents in known families this one is used by all that have it.
_SEPARATOR_NAME = "<|endoftext|>"


class Tokenizer:
    """`tokenizer.json` with the roles and the chat template that `tokenizer_config.json` gives it."""

    def __init__(
        self, backend: tokenizers.Tokenizer, config: dict[str, Any], chat_templates: dict[str, str]
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.config = config
        self.chat_templates = chat_templates
        self.bos_id = self._role_id("bos_token")
        self.eos_id = self._role_id("eos_token")
        self.pad_id = self._role_id("pad_token")
        self._added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in self._added.items() if token.special)
        # Whether names of specials are recognised is a switch of the backend, not an argument of encode.
        self._switch = threading.Lock()
        self._vocabulary_size: int | None = None
        self._fingerprint: str | None = None
        self._token_bytes: list[bytes] | None = None
        self._call_forms: dict[str, CallForm] = {}

    @classmethod
    def from_backend(
        cls,
        backend: tokenizers.Tokenizer,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        chat_template: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> Tokenizer:
        """Wrap a `tokenizers.Tokenizer`; bos, eos, pad: strings; config: more of tokenizer_config.json."""
        settings = dict(config or {})
        settings.update(
            {role: name for role, name in zip(_ROLES, (bos, eos, pad), strict=True) if name is not None}
        )
        return cls(backend, settings, {} if chat_template is None else {"default": chat_template})

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a tokenizer folder, or any model folder that has one inside. Raises TokenizerError."""
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise no_tokenizer(folder)
        try:
            with panics():
                backend = tokenizers.Tokenizer.from_file(str(file))
                check_patterns(backend)
                backend.decode(backend.encode(_PROBE).ids)
        except Exception as error:  # the library raises bare Exception
            if is_lfs_pointer(file):
                raise TokenizerError(LFS_POINTER, str(file), LFS_HINT) from error
            raise TokenizerError(f"not a readable tokenizer: {error}", str(file)) from error
        config = read_object(folder / "tokenizer_config.json")
        for role, name in read_object(folder / "special_tokens_map.json").items():
            config.setdefault(role, name)
        try:
            add_missing_tokens(backend, config.pop("added_tokens_decoder", None), folder)
            return cls(backend, config, chat_templates(folder, config.pop("chat_template", None)))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            where = str(folder / "tokenizer_config.json")
            raise TokenizerError(
                f"not in the form that Hugging Face tools write: {error!r}", where
            ) from error

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as `transformers.AutoTokenizer` reads them."""
        folder = Path(folder)
        with clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        config = {
            k: v
            for k, v in self.config.items()
            if k not in ("added_tokens_decoder", "auto_map", "tokenizer_file")
        }
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.setdefault("clean_up_tokenization_spaces", False)
        if set(self.chat_templates) == {"default"}:
            config["chat_template"] = self.chat_templates["default"]
        elif self.chat_templates:
            config["chat_template"] = [{"name": n, "template": t} for n, t in self.chat_templates.items()]
        # A template file that stood here before would win over the one in the config.
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    # Text to ids and back

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Ids of a text. specials: whether names of special tokens in it become their ids."""
        with self._switch, panics():
            self.backend.encode_special_tokens = not specials
            return self.backend.encode(_scalars(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """Ids of several texts, encoded on all cores."""
        with self._switch, panics():
            self.backend.encode_special_tokens = not specials
            encodings = self.backend.encode_batch_fast(
                [_scalars(text) for text in texts], add_special_tokens=False
            )
        return [encoding.ids for encoding in encodings]

    def encoder(self) -> Callable[[Sequence[str]], list[list[int]]]:
        """`encode_batch` as a function that several threads may call at once."""
        with self._switch:
            backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True

        def encode(texts: Sequence[str]) -> list[list[int]]:
            with panics():
                found = backend.encode_batch_fast([_scalars(text) for text in texts], add_special_tokens=False)
            return [encoding.ids for encoding in found]

        return encode

    def encode_with_starts(self, texts: Sequence[str], specials: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its ids, int64 [n], and the index of the character where each begins, int64 [n].

        A token that begins in the middle of a character has that character's index; one that takes in white
        space before a word begins with it.
        """
        with self._switch, panics():
            self.backend.encode_special_tokens = not specials
            encodings = self.backend.encode_batch([_scalars(text) for text in texts], add_special_tokens=False)
        return [(np.array(e.ids, np.int64), self._starts(e.offsets)) for e in encodings]

    def _starts(self, offsets: list[tuple[int, int]]) -> np.ndarray:
        spans = np.array(offsets, np.int64).reshape(-1, 2)
        if not self.is_byte_level or not len(spans):
            return spans[:, 0]
        # Some leave the space before a word out of its span, but a byte-level text has no gaps.
        return np.minimum(spans[:, 0], np.concatenate([[0], spans[:-1, 1]]))

    def decode(self, ids: Sequence[int], skip_specials: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. Raises TokenizerError for an unknown id."""
        for i in ids:
            self._check_id(i)
        with panics():
            return self.backend.decode(list(ids), skip_special_tokens=skip_specials)

    def stream(self, skip_specials: bool = True) -> DecodeStream:
        """An incremental decoder."""
        return DecodeStream(self, skip_specials)

    # What it holds

    @property
    def vocabulary_size(self) -> int:
        """The largest id plus one: the rows that an embedding needs."""
        if self._vocabulary_size is None:
            vocabulary = self.backend.get_vocab(with_added_tokens=True)
            self._vocabulary_size = max(vocabulary.values(), default=-1) + 1
            if self._vocabulary_size > len(vocabulary) + _MOST_UNUSED:
                message = f"its largest id is {self._vocabulary_size - 1:,}, of only {len(vocabulary):,} tokens"
                self._vocabulary_size = None
                raise TokenizerError(message, "tokenizer.json")
        return self._vocabulary_size

    def tokens_from(self, first: int) -> dict[int, str]:
        """Ids from this one on, ascending, and their names."""
        named = self.backend.get_vocab(with_added_tokens=True) if self.vocabulary_size > first else {}
        return dict(sorted((i, name) for name, i in named.items() if i >= first))

    @property
    def separator_id(self) -> int:
        """The id that opens each document of a training stream. Raises TokenizerError without any."""
        named = self.backend.token_to_id(_SEPARATOR_NAME)
        for candidate in (named if named in self._special_ids else None, self.eos_id, self.bos_id):
            if candidate is not None:
                return candidate
        raise TokenizerError(
            "the tokenizer has no bos, eos or <|endoftext|> token to separate documents with",
            hint="name one as eos_token in tokenizer_config.json",
        )

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether its ids stand for bytes in GPT-2's alphabet."""
        if self.backend.decoder is None:
            return False
        decoder = json.loads(self.backend.decoder.__getstate__())  # its part of tokenizer.json
        return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]))

    def token_sizes(self) -> np.ndarray:
        """int32 [V]: bytes of text per id; specials 0. Raises TokenizerError if not byte-level."""
        return np.array([len(piece) for piece in self.token_bytes()], dtype=np.int32)

    def token_bytes(self) -> list[bytes]:
        """The bytes of text of each id; empty for specials. Raises TokenizerError if not byte-level."""
        if self._token_bytes is None:
            if not self.is_byte_level:
                raise TokenizerError("this tokenizer is not byte-level, so its ids do not stand for bytes")
            pieces = [b""] * self.vocabulary_size
            for token, i in self.backend.get_vocab(with_added_tokens=True).items():
                if i in self._special_ids:
                    continue
                # An added token is matched in the text as it is written, not in the byte alphabet.
                pieces[i] = token.encode() if i in self._added else _to_bytes(token)
            self._token_bytes = pieces
        return self._token_bytes

    def fingerprint(self) -> str:
        """SHA-256 of tokenizer.json in canonical form: equal for tokenizers that give equal ids."""
        if self._fingerprint is None:
            content = json.loads(self.backend.to_str())
            canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            self._fingerprint = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
        return self._fingerprint

    # Chat

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")

    @cached_property
    def end_of_reply_id(self) -> int | None:
        """The special token that the chat template writes after a reply: some models name another one as eos."""
        if self.chat_template is None:
            return None
        mark = "a reply"
        conversation = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": mark}]
        try:
            rendered = self.render_chat(conversation, add_generation_prompt=False)
        except TokenizerError:
            return None  # a template that refuses even this will say why when it is used
        after = self.encode(rendered.rpartition(mark)[2], specials=True)
        return after[0] if after and after[0] in self._special_ids else None

    def opens_with_bos(self) -> bool:
        """Whether a plain text is to begin with bos."""
        if self.bos_id is None:
            return False
        return bool(self.config.get("add_bos_token")) or self.bos_id in self.backend.encode("").ids[:1]

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as the model reads it; encode it with specials=True. Raises TokenizerError."""
        template = self.chat_template
        if tools and "tool_use" in self.chat_templates:
            template = self.chat_templates["tool_use"]
        if template is None:
            raise TokenizerError(
                "this tokenizer has no chat template", hint="use a plain prompt, or an instruct model"
            )
        names = {key: _content(value) for key, value in self.config.items() if key.endswith("_token")}
        named = {key: name for key, name in names.items() if name is not None}
        if any(message.get("tool_calls") for message in messages):
            messages = self._call_form(template, named).of(messages)
        return render_chat(template, messages, tools, add_generation_prompt, **{**named, **variables})

    def _call_form(self, template: str, named: dict[str, Any]) -> CallForm:
        if template not in self._call_forms:
            self._call_forms[template] = call_form(lambda said: render_chat(template, said, None, False, **named))
        return self._call_forms[template]

    def _role_id(self, role: str) -> int | None:
        name = _content(self.config.get(role))
        if name is None:
            return None
        i = self.backend.token_to_id(name)
        if i is None:
            raise TokenizerError(f"{role} {name!r} is not in the vocabulary", "tokenizer_config.json")
        return i

    def _check_id(self, i: int) -> None:
        if not 0 <= i < self.vocabulary_size:
            raise TokenizerError(f"token id {i} is outside the vocabulary of {self.vocabulary_size:,}")


class DecodeStream:
    """Text as ids arrive: `add` returns what is certain, and never half a UTF-8 character."""

    def __init__(self, tokenizer: Tokenizer, skip_specials: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_specials
        self._byte_level = tokenizer.is_byte_level
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._shown = ""

    def add(self, i: int) -> str:
        """The text that id i completes; may be empty."""
        self._tokenizer._check_id(i)
        if not self._byte_level:
            # Such decoders look at neighbouring tokens: decode all again, hold back what may still change.
            self._ids.append(i)
            return self._grow(self._tokenizer.decode(self._ids, self._skip).rstrip("\ufffd"))
        if i in self._tokenizer.special_ids:
            if self._skip:
                return ""
            return self._utf8.decode(self._tokenizer._added[i].content.encode())
        return self._utf8.decode(self._tokenizer.token_bytes()[i])

    def finish(self) -> str:
        """What was held back; half a character becomes U+FFFD."""
        if self._byte_level:
            return self._utf8.decode(b"", final=True)
        return self._grow(self._tokenizer.decode(self._ids, self._skip))

    def _grow(self, text: str) -> str:
        new = text[len(self._shown) :] if text.startswith(self._shown) else ""
        self._shown += new
        return new


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, as character -> byte."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet


_BYTES = byte_alphabet()


def _to_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()  # what the ByteLevel decoder does with a token outside its alphabet


def _scalars(text: str) -> str:
    """Lone surrogates (broken JSON escapes) cannot be passed to Rust: they become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _content(token: Any) -> str | None:
    """A token given as a string or as an AddedToken dictionary."""
    return token.get("content") if isinstance(token, dict) else token
