"""The tokenizer inside a GGUF file: byte-level BPE with the pre-tokenizer that the file names.

llama.cpp stores the vocabulary, the merges and a *name* for the splitting of text before the merges. The
splitting is rebuilt here as the model's own tokenizer.json has it, so that ids equal those the model was
trained with. SentencePiece vocabularies and unknown pre-tokenizers are refused by name: a wrong split
gives a worse model without any error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from shoestring.core.errors import TokenizerError
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.gguf.reader import GGUFFile

# The split of Llama 3's tokenizer.json, with the longest run of digits left open (Llama 3: 3, Qwen2: 1).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")
_SMOLLM = ("smollm",)
_GPT2 = ("gpt-2",)
PRE_TOKENIZERS = (*_SMOLLM, *_GPT2, *_LLAMA3, *_QWEN2)

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer of an open GGUF file, with its special tokens and chat template.

    Raises TokenizerError when the file's kind of tokenizer is not supported, and ModelFileError when its
    tokenizer is damaged.
    """
    where = str(file.path)
    kind = file.text("tokenizer.ggml.model")
    if kind is None:
        raise file.error("this GGUF file has no tokenizer (tokenizer.ggml.model is missing)")
    if kind != "gpt2":
        name = {"llama": "SentencePiece", "bert": "WordPiece", "t5": "Unigram"}.get(kind, kind)
        raise TokenizerError(
            f"{name!s:.60} tokenizers (tokenizer.ggml.model {kind!r:.60}) are not supported",
            where,
            "byte-level BPE tokenizers are; use the model's Hugging Face folder instead",
        )
    pre = file.text("tokenizer.ggml.pre") or "default"
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"the pre-tokenizer {pre!r:.60} is not supported",
            where,
            f"supported: {', '.join(PRE_TOKENIZERS)}",
        )
    tokens, types = _tokens(file)
    backend = _backend(file, pre, tokens, types)
    ids = {role: token_id(file, f"tokenizer.ggml.{key}", len(tokens)) for role, key in _ROLES.items()}
    names = {role: None if i is None else tokens[i] for role, i in ids.items()}
    add_bos = bool(file.flag("tokenizer.ggml.add_bos_token", pre in _LLAMA3)) and names["bos"] is not None
    add_eos = bool(file.flag("tokenizer.ggml.add_eos_token", False)) and names["eos"] is not None
    try:
        _frame(backend, names["bos"] if add_bos else None, names["eos"] if add_eos else None)
    except ValueError as error:
        raise file.error(f"its bos or eos token cannot frame a text: {error}") from error
    config: dict[str, Any] = {"add_bos_token": add_bos, "add_eos_token": add_eos, "add_prefix_space": False}
    if names["unk"] is not None:
        config["unk_token"] = names["unk"]
    template = file.text("tokenizer.chat_template")
    return Tokenizer.from_backend(backend, names["bos"], names["eos"], names["pad"], template, config)


def end_ids(file: GGUFFile) -> list[int]:
    """The ids that end an answer (end of sequence, of turn, of message), each once."""
    count = len(file.strings("tokenizer.ggml.tokens") or [])
    found = [token_id(file, f"tokenizer.ggml.{key}_token_id", count) for key in ("eos", "eot", "eom")]
    return list(dict.fromkeys(i for i in found if i is not None))


def token_id(file: GGUFFile, key: str, count: int) -> int | None:
    """A token id in the metadata, None when the file has none. Raises ModelFileError when out of range."""
    i = file.integer(key)
    if i is not None and not 0 <= i < count:
        raise file.error(f"metadata {key} is {i}, outside the vocabulary of {count}")
    return i


def _tokens(file: GGUFFile) -> tuple[list[str], np.ndarray]:
    tokens = file.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise file.error("this GGUF file has no vocabulary (tokenizer.ggml.tokens is missing or empty)")
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))
        raise file.error(f"token {twice!r:.60} is in the vocabulary twice")
    types = file.integers("tokenizer.ggml.token_type")
    if types is None:
        types = np.ones(len(tokens), np.int32)
    if len(types) != len(tokens):
        raise file.error(f"tokenizer.ggml.token_type has {len(types)} items for {len(tokens)} tokens")
    return tokens, types


def _backend(file: GGUFFile, pre: str, tokens: list[str], types: np.ndarray) -> tokenizers.Tokenizer:
    # llama.cpp's converter fills ids that the tokenizer does not use with "[PAD<id>]": they are no tokens.
    unused = {i for i in np.flatnonzero(types == _UNUSED).tolist() if tokens[i] == f"[PAD{i}]"}
    vocabulary = {token: i for i, token in enumerate(tokens) if i not in unused}
    merges = _merges(file, vocabulary)
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignores_merges(pre)))
    backend.pre_tokenizer = pre_tokenizer(pre)
    if composes(pre):
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    added = [
        AddedToken(tokens[i], special=bool(types[i] == _CONTROL), normalized=False)
        for i in np.flatnonzero((types == _CONTROL) | (types == _USER_DEFINED)).tolist()
        if tokens[i]
    ]
    backend.add_tokens(added)
    return backend


def pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """What cuts text before the merges, of a name among `PRE_TOKENIZERS`."""
    if pre in (*_SMOLLM, *_GPT2):
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = [] if pre in _GPT2 else [pre_tokenizers.Digits(individual_digits=True)]
        return pre_tokenizers.Sequence([*digits, words])
    split = Regex(_SPLIT % (r"\p{N}{1,3}" if pre in _LLAMA3 else r"\p{N}"))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def ignores_merges(pre: str) -> bool:
    """Whether a word of the vocabulary is a token even where no merges lead to it."""
    return pre in _LLAMA3


def composes(pre: str) -> bool:
    """Whether characters are composed (NFC) first."""
    return pre in _QWEN2


def _merges(file: GGUFFile, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    lines = file.strings("tokenizer.ggml.merges")
    if lines is None:
        raise file.error("this GGUF file has no merges (tokenizer.ggml.merges is missing)")
    merges = []
    for index, line in enumerate(lines):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise file.error(f"merge {index} of the tokenizer is not two tokens: {line!r:.60}")
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise file.error(
                    f"merge {index} of the tokenizer names {token!r:.60}, which is not in the vocabulary"
                )
        merges.append((left, right))
    return merges


def _frame(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """What encoding with special tokens puts around a text (as transformers does it)."""
    byte_level = processors.ByteLevel(trim_offsets=False)
    if bos is None and eos is None:
        backend.post_processor = byte_level
        return
    before, after = ([name] if name else [] for name in (bos, eos))
    one = [*before, "$A", *after]
    ids = [(name, backend.token_to_id(name)) for name in dict.fromkeys((bos, eos)) if name]
    template = processors.TemplateProcessing(
        single=one, pair=one + [f"{piece}:1" for piece in [*before, "$B", *after]], special_tokens=ids
    )
    backend.post_processor = processors.Sequence([byte_level, template])
