"""Token ids of a GGUF file's tokenizer equal those of the model's own tokenizer.

Oracles: llama.cpp's ids for SmolLM2; for the other families a plain BPE over the `regex` package with the
patterns that transformers ships, and transformers' own Qwen2 tokenizer.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import regex
import transformers
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_SPLIT

from shoestring.core.errors import ModelFileError, TokenizerError
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.get import get
from shoestring.models.gguf.reader import GGUFFile
from shoestring.models.gguf.tokenizer import end_ids, read_tokenizer
from tests.models.gguf.gguf_files import SPECIALS, TEMPLATE, add_tokenizer, vocabulary

LLAMA3_SPLIT = TikTokenConverter.__init__.__defaults__[1]
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
NASTY = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n  x",
    "\t\tx\n\n\ny  \n",
    "The quick brown fox",
    "don't DON'T I'LL 'Re 'VE x'd'm",
    "'\u017f'S long s",
    "1",
    "12",
    "1234567",
    " 2024",
    "x2024y 3.14159",
    "a  12   345",
    "\u0663\u0664\u0665 \u00bd \u2167 \u00b2",
    "def f(x_1):\n    return x**2  # !?\n",
    "...!!!\n\n???",
    "caf\u00e9 cafe\u0301 \ufb01 \u212b",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3000x",
    "\u00a0nbsp\u00a0\u00a0",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7\u2764\ufe0f",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "a\u0000b",
    "\u2028x\u2029",
    "tr\u0131\u0307m",
    "<|im_end|> as text",
    "<think>no</think>",
    "https://a.b/c?d=e&f=1",
    "e\u0301" * 30,
    "    \n    indented",
]


def split_smollm(text: str) -> Iterator[str]:
    for part in regex.findall(r"\p{N}|[^\p{N}]+", text):
        yield from regex.findall(GPT2_SPLIT, part)


def plain_bpe(text: str, pieces: Iterator[str], whole_words: bool) -> list[int]:
    """The definition: merge the pair of the lowest rank, until none is left."""
    tokens, merges = vocabulary()
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    letters = bytes_to_unicode()
    found = []
    for piece in pieces:
        symbols = [letters[byte] for byte in piece.encode()]
        if whole_words and "".join(symbols) in ids:
            symbols = ["".join(symbols)]
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            at = pairs.index(best)
            symbols[at : at + 2] = ["".join(best)]
        found += [ids[symbol] for symbol in symbols]
    return found


def expected(pre: str, text: str) -> list[int]:
    ids: list[int] = []
    # A user-defined token is always matched; the names of control tokens are text here.
    for part in regex.split("(<think>)", text):
        if part == "<think>":
            ids.append(vocabulary()[0].index(part))
        elif pre == "smollm":
            ids += plain_bpe(part, split_smollm(part), False)
        elif pre == "gpt-2":
            ids += plain_bpe(part, regex.findall(GPT2_SPLIT, part), False)
        elif pre in ("qwen2", "deepseek-r1-qwen"):
            part = unicodedata.normalize("NFC", part)
            ids += plain_bpe(part, regex.findall(QWEN2_SPLIT, part), False)
        else:
            ids += plain_bpe(part, regex.findall(LLAMA3_SPLIT, part), True)
    return ids


def tokenizer_file(path: Path, pre: str, **pairs: object) -> Path:
    """A GGUF file with a tokenizer and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    add_tokenizer(writer, pre)
    for key, value in pairs.items():
        writer.add_key_value(f"tokenizer.ggml.{key}", value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def tokenizer(path: Path, pre: str, **pairs: object) -> Tokenizer:
    with GGUFFile(tokenizer_file(path, pre, **pairs)) as file:
        return read_tokenizer(file)


PRE = ["smollm", "gpt-2", "llama-bpe", "llama3", "llama-v3", "qwen2", "deepseek-r1-qwen"]


@pytest.mark.parametrize("pre", PRE)
def test_ids_equal_a_plain_bpe_on_nasty_texts(pre: str, tmp_path: Path) -> None:
    found = tokenizer(tmp_path / "t.gguf", pre)
    for text in NASTY:
        assert found.encode(text) == expected(pre, text), repr(text)


def test_the_oracles_of_the_four_splits_differ_on_the_nasty_texts() -> None:
    names = ("smollm", "gpt-2", "llama-bpe", "qwen2")
    assert len({str([expected(pre, text) for text in NASTY]) for pre in names}) == 4


def test_qwen2_ids_equal_those_of_transformers_own_class(tmp_path: Path) -> None:
    tokens, merges = vocabulary()
    theirs = transformers.Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
    )
    ours = tokenizer(tmp_path / "t.gguf", "qwen2")
    for text in NASTY:
        if "<think>" not in text:
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), repr(text)


def test_control_tokens_are_special_and_user_defined_ones_are_not(tmp_path: Path) -> None:
    found = tokenizer(tmp_path / "t.gguf", "smollm")
    tokens = vocabulary()[0]
    text = "".join(SPECIALS) + "<think>"
    assert found.encode(text, specials=True) == [tokens.index(token) for token in [*SPECIALS, "<think>"]]
    assert found.encode(text)[-1] == tokens.index("<think>")
    assert not set(found.encode(text)) & {tokens.index(token) for token in SPECIALS}
    assert found.decode(found.encode(text, specials=True)) == "<think>"


def test_roles_and_template_come_from_the_metadata_and_survive_saving(tmp_path: Path) -> None:
    tokenizer(tmp_path / "t.gguf", "llama-bpe").save(tmp_path / "folder")
    found = Tokenizer.load(tmp_path / "folder")
    assert [found.bos_id, found.eos_id, found.pad_id] == [vocabulary()[0].index(token) for token in SPECIALS]
    assert found.chat_template == TEMPLATE
    assert found.vocabulary_size == len(vocabulary()[0]) - 1  # without the unused last one


@pytest.mark.parametrize(
    ("pre", "pairs", "bos", "eos"),
    [
        ("llama-bpe", {}, True, False),  # llama.cpp's default for this pre-tokenizer
        ("llama-bpe", {"add_bos_token": False}, False, False),
        ("smollm", {}, False, False),
        ("deepseek-r1-qwen", {"add_bos_token": True}, True, False),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, True, True),
    ],
)
def test_transformers_frames_a_text_as_the_file_says(
    pre: str, pairs: dict, bos: bool, eos: bool, tmp_path: Path
) -> None:
    ours = tokenizer(tmp_path / "t.gguf", pre, **pairs)
    ours.save(tmp_path / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    ids = ours.encode("quick 12")
    assert theirs.encode("quick 12") == [ours.bos_id] * bos + ids + [ours.eos_id] * eos
    assert ours.config["add_bos_token"] is bos


@pytest.mark.parametrize(
    ("pre", "pairs", "error", "sentence"),
    [
        ("tekken", {}, TokenizerError, "the pre-tokenizer 'tekken' is not supported"),
        ("qwen2", {"eos_token_id": 5000}, ModelFileError, "eos_token_id is 5000, outside the vocabulary"),
        ("qwen2", {"bos_token_id": "x"}, ModelFileError, "bos_token_id must be an integer"),
        ("qwen2", {"merges": ["ab c d"]}, ModelFileError, "merge 0 of the tokenizer is not two tokens"),
        ("qwen2", {"merges": ["zzz q"]}, ModelFileError, "names 'zzz', which is not in the vocabulary"),
        ("qwen2", {"token_type": [1, 2]}, ModelFileError, "token_type has 2 items"),
        ("qwen2", {"tokens": ["a", "b", "a"]}, ModelFileError, "token 'a' is in the vocabulary twice"),
        ("qwen2", {"model": "llama"}, TokenizerError, "SentencePiece tokenizers"),
    ],
)
def test_what_is_not_supported_or_damaged_is_named(
    pre: str, pairs: dict, error: type, sentence: str, tmp_path: Path
) -> None:
    with GGUFFile(tokenizer_file(tmp_path / "t.gguf", pre)) as file:
        file.metadata.update({f"tokenizer.ggml.{key}": value for key, value in pairs.items()})
        if "token_type" in pairs:
            file.metadata["tokenizer.ggml.token_type"] = np.array(pairs["token_type"])
        with pytest.raises(error, match=sentence):
            read_tokenizer(file)


def test_an_answer_ends_with_any_of_the_ids_that_the_file_gives(tmp_path: Path) -> None:
    with GGUFFile(tokenizer_file(tmp_path / "t.gguf", "llama-bpe", eot_token_id=7, eom_token_id=7)) as file:
        assert end_ids(file) == [vocabulary()[0].index("<|im_end|>"), 7]


def test_smollm2_ids_equal_llama_cpp_for_all_texts() -> None:
    cases = json.loads((Path(__file__).parents[1] / "smollm2-token-ids.json").read_text(encoding="utf-8"))
    found = Tokenizer.load(get("smollm2-135m"))
    assert len(cases["plain"]) >= 590
    for case in cases["plain"]:
        assert found.encode(case["text"]) == case["ids"], repr(case["text"])
        assert found.decode(case["ids"], skip_specials=False) == case["text"]
    for case in cases["special"]:
        assert found.encode(case["text"], specials=True) == case["ids"]
