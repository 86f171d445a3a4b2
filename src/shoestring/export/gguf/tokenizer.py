"""A tokenizer as metadata of a GGUF file: byte-level BPE, under llama.cpp's name for how it cuts text into words.

The words are cut by code in llama.cpp, so only cuts that it has can be exported; they are recognised by their form in
tokenizer.json, not by a hash of what they make of a text, so that tokenizers trained here are known too. Special tokens
are control tokens, other added ones user-defined, ids without a token `[PAD<id>]`, as llama.cpp's converter calls them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tokenizers
from gguf.constants import TokenType

from shoestring.core.errors import TokenizerError
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.gguf.format import Value
from shoestring.models.folder import GenerationDefaults
from shoestring.models.gguf import tokenizer as reading

_NAMES = ("smollm", "gpt-2", "llama-bpe", "qwen2")  # those that read back under the same name
_ENDS = ("eos", "eot", "eom")
_NAMED = "[PAD{}]"  # of ids without a token
_ONLY = "byte-level BPE that cuts text as SmolLM2, GPT-2, Llama 3 or Qwen2 do can be written to GGUF"


def tokenizer_metadata(
    tokenizer: Tokenizer, rows: int, generation: GenerationDefaults, where: str | None = None
) -> dict[str, Value]:
    """rows: of the embedding, at least the tokenizer's ids. Raises TokenizerError for what llama.cpp does not have."""
    content = json.loads(tokenizer.backend.to_str())
    model = content["model"]
    _check(content, where)
    ends = end_tokens(tokenizer, generation)
    if not ends:
        raise TokenizerError(
            "the tokenizer names no end of text (eos_token), and llama.cpp would take token 11 for it", where,
            "name one as eos_token in tokenizer_config.json",
        )  # fmt: skip
    if outside := [i for i in ends if not 0 <= i < rows]:
        raise TokenizerError(f"eos_token_id {outside[0]} is outside the vocabulary of {rows:,}", where)
    tokens, types = _tokens(tokenizer, rows, where)
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(content, where),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
    }
    roles = {"bos": tokenizer.bos_id, "padding": tokenizer.pad_id, "unknown": _unknown(tokenizer)}
    roles |= dict(zip(_ENDS, ends, strict=False))
    metadata |= {f"tokenizer.ggml.{role}_token_id": i for role, i in roles.items() if i is not None}
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.opens_with_bos()
    metadata["tokenizer.ggml.add_eos_token"] = _closes_with_eos(tokenizer)
    return metadata | _templates(tokenizer)


def end_tokens(tokenizer: Tokenizer, generation: GenerationDefaults) -> list[int]:
    """Ids that end an answer, the tokenizer's own first, then what its template writes after a reply."""
    found = (tokenizer.eos_id, tokenizer.end_of_reply_id, *generation.eos_ids)
    return list(dict.fromkeys(i for i in found if i is not None))


def left_out(tokenizer: Tokenizer, generation: GenerationDefaults) -> list[str]:
    """Names of end tokens that a file has no place for; llama.cpp knows the usual ones without being told."""
    beyond = end_tokens(tokenizer, generation)[len(_ENDS) :]
    return [tokenizer.backend.id_to_token(i) or str(i) for i in beyond]


def pre_tokenizer_name(content: dict[str, Any], where: str | None = None) -> str:
    """llama.cpp's name for what cuts text before the merges. content: of tokenizer.json. Raises TokenizerError."""
    cuts, before = _parts(content["pre_tokenizer"]), [part["type"] for part in _parts(content["normalizer"])]
    for name in _NAMES:
        if cuts == _parts(_described(name)) and bool(content["model"].get("ignore_merges")) == _ignores(name):
            # llama.cpp composes no characters, as its converter does not tell it to.
            if before == [] or (before == ["NFC"] and reading.composes(name)):
                return name
    kinds = [part["type"] for part in _parts(content["pre_tokenizer"])]
    raise TokenizerError(
        f"llama.cpp has no name for how this tokenizer cuts text ({', '.join([*before, *kinds]) or 'not at all'})",
        where, _ONLY,
    )  # fmt: skip


def _ignores(name: str) -> bool:
    return reading.ignores_merges(name)


def _described(name: str) -> dict[str, Any]:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = reading.pre_tokenizer(name)
    return json.loads(backend.to_str())["pre_tokenizer"]


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a sequence within sequences, without what decides on no id."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [one for inner in part.get("pretokenizers", part.get("normalizers", [])) for one in _parts(inner)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _check(content: dict[str, Any], where: str | None) -> None:
    model = content["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise TokenizerError(f"tokenizers of kind {model.get('type')} are not written to GGUF", where, _ONLY)
    unlike = [name for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(name)]
    if unlike:
        raise TokenizerError(f"the tokenizer has {unlike[0]}, which llama.cpp does not know", where, _ONLY)
    for token in content["added_tokens"]:
        around = [name for name in ("single_word", "lstrip", "rstrip") if token.get(name)]
        if around:
            raise TokenizerError(
                f"the added token {token['content']!r:.60} has {around[0]}, and llama.cpp cannot be told so", where,
                f"set {around[0]} to false in tokenizer.json if the model can do without",
            )  # fmt: skip


def _tokens(tokenizer: Tokenizer, rows: int, where: str | None) -> tuple[list[str], np.ndarray]:
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    names = {i: token for token, i in vocabulary.items()}
    added = tokenizer.backend.get_added_tokens_decoder()
    types = np.full(rows, int(TokenType.NORMAL), np.int32)
    tokens = []
    for i in range(rows):
        token = names.get(i)
        if token is None:
            token, types[i] = _NAMED.format(i), int(TokenType.UNUSED)
            if token in vocabulary:
                raise TokenizerError(
                    f"id {i} has no token, and {token!r}, as llama.cpp would call it, has the id {vocabulary[token]}",
                    where,
                )
        elif i in added:
            types[i] = int(TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED)
        tokens.append(token)
    return tokens, types


def _unknown(tokenizer: Tokenizer) -> int | None:
    token = tokenizer.config.get("unk_token")
    name = token.get("content") if isinstance(token, dict) else token
    return tokenizer.backend.token_to_id(name) if isinstance(name, str) else None


def _closes_with_eos(tokenizer: Tokenizer) -> bool:
    """Whether eos is put behind every text."""
    if tokenizer.eos_id is None:
        return False
    around = tokenizer.backend.encode("").ids
    if tokenizer.opens_with_bos() and around[:1] == [tokenizer.bos_id]:
        around = around[1:]
    return bool(tokenizer.config.get("add_eos_token")) or around[-1:] == [tokenizer.eos_id]


def _templates(tokenizer: Tokenizer) -> dict[str, Value]:
    found: dict[str, Value] = {}
    others = {name: text for name, text in tokenizer.chat_templates.items() if name != "default"}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    if others:
        found["tokenizer.chat_templates"] = list(others)
        found |= {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    return found
