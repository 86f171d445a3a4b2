"""Model folders to export: tiny random models of transformers with tokenizers that cut text as known families do.

The cuts are written as those families' tokenizer.json has them, with the patterns that transformers ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_SPLIT

from shoestring.data.tokenizer import Tokenizer
from tests.models.gguf.gguf_files import SPECIALS, TEMPLATE, USER_DEFINED, tiny_model, vocabulary
from tests.models.tiny_families import make_model

LLAMA3_SPLIT = TikTokenConverter.__init__.__defaults__[1]
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CUTS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), WORDS],
    "gpt-2": [WORDS],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), BYTES],
    "qwen2": [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), BYTES],
}


def backend_of(pre: str) -> tokenizers.Tokenizer:
    """The last token of `vocabulary`, which stands for nothing, is left out: the embedding has one row more."""
    tokens, merges = vocabulary()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    numbered = {token: i for i, token in enumerate(tokens[:-1])}
    backend = tokenizers.Tokenizer(models.BPE(numbered, pairs, ignore_merges=pre == "llama-bpe"))
    cuts = CUTS[pre]
    backend.pre_tokenizer = cuts[0] if len(cuts) == 1 else pre_tokenizers.Sequence(cuts)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(SPECIALS)
    backend.add_tokens([AddedToken(USER_DEFINED, special=False, normalized=False)])
    return backend


def tokenizer_of(pre: str = "smollm", template: str | None = TEMPLATE, **config: Any) -> Tokenizer:
    bos, eos, pad = SPECIALS
    return Tokenizer.from_backend(backend_of(pre), bos, eos, pad, template, config)


def special_ids() -> dict[str, int]:
    """For a config of transformers, whose own would be tokens of other models."""
    ids = [vocabulary()[0].index(token) for token in SPECIALS]
    return dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), ids, strict=True))


def saved(folder: Path, arch: str = "llama", pre: str = "smollm", **changes: Any) -> Path:
    """A folder as transformers writes it, but for the tokenizer."""
    tiny_model(arch, **{**special_ids(), **changes}).save_pretrained(folder)
    tokenizer_of(pre).save(folder)
    return folder


def saved_experts(folder: Path, family: str) -> Path:
    """family: mixtral or qwen3_moe. Five experts in a layer, two for a token."""
    sizes = {"vocab_size": len(vocabulary()[0]), "hidden_size": 32, "head_dim": 8, "max_position_embeddings": 128}
    more = {"norm_topk_prob": True} if family == "qwen3_moe" else {}
    make_model(family, torch.float32, **sizes, **more).save_pretrained(folder)
    tokenizer_of().save(folder)
    return folder
