"""What llama.cpp is told of a tokenizer; what it cannot be told is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from shoestring.cli.main import main
from shoestring.core.errors import TokenizerError
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import train_tokenizer
from shoestring.export.gguf.tokenizer import end_tokens, left_out, pre_tokenizer_name, tokenizer_metadata
from shoestring.export.job import export_gguf
from shoestring.models.folder import GenerationDefaults
from shoestring.models.get import get
from shoestring.models.gguf.convert import convert
from shoestring.models.gguf.reader import GGUFFile
from shoestring.models.gguf.tokenizer import end_ids, read_tokenizer
from tests.data import templates
from tests.export.folders import CUTS, WORDS, backend_of, saved, tokenizer_of
from tests.models.gguf.gguf_files import SPECIALS, USER_DEFINED, tiny_model, vocabulary

ROWS = len(vocabulary()[0])
NO_DEFAULTS = GenerationDefaults()


def told(tokenizer: Tokenizer, **generation) -> dict:
    return tokenizer_metadata(tokenizer, ROWS, GenerationDefaults(**generation), "FOLDER")


@pytest.mark.parametrize("pre", list(CUTS))
def test_a_cut_is_known_by_its_form_and_gives_the_same_ids(pre: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", pre=pre)
    with GGUFFile(export_gguf(folder, tmp_path / "m.gguf", "q8_0").file) as file:
        assert file.metadata["tokenizer.ggml.pre"] == pre
        found = read_tokenizer(file)
    wanted = tokenizer_of(pre)
    for text in ("12 345 x'LL Don't  \n\n z", "caf\u00e9 \u4f60\u597d <think>9</think> <|im_end|>", " ", "a\tb\r\n"):
        for specials in (False, True):
            assert found.encode(text, specials) == wanted.encode(text, specials), text


def test_a_tokenizer_that_is_trained_here_is_known_and_its_texts_begin_as_they_were_learned() -> None:
    tokenizer = train_tokenizer(["def f(x):\n    return 12 * x\n" * 20], vocabulary=280)
    metadata = tokenizer_metadata(tokenizer, 300, GenerationDefaults.of_tokenizer(tokenizer))
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.add_bos_token"] is True and metadata["tokenizer.ggml.add_eos_token"] is False
    assert metadata["tokenizer.ggml.bos_token_id"] == metadata["tokenizer.ggml.eos_token_id"] == 0


def test_specials_are_control_tokens_and_other_added_ones_user_defined() -> None:
    metadata = told(tokenizer_of())
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist(), strict=True))
    assert {types[token] for token in SPECIALS} == {gguf.TokenType.CONTROL}
    assert types[USER_DEFINED] == gguf.TokenType.USER_DEFINED and types["a"] == gguf.TokenType.NORMAL
    assert types[f"[PAD{ROWS - 1}]"] == gguf.TokenType.UNUSED


def test_all_that_ends_an_answer_is_told_once_and_what_has_no_place_by_name(tmp_path: Path) -> None:
    tokenizer, tokens = tokenizer_of(), vocabulary()[0]
    ids = [tokens.index(token) for token in ("<|im_end|>", "<|pad|>", "a", "b", "c")]
    generation = GenerationDefaults(eos_ids=(ids[1], ids[0], *ids[2:]))
    assert end_tokens(tokenizer, generation) == ids
    assert left_out(tokenizer, generation) == ["b", "c"]
    metadata = tokenizer_metadata(tokenizer, ROWS, generation)
    assert [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == ids[:3]
    folder = saved(tmp_path / "model", eos_token_id=ids)
    said: list[str] = []
    with GGUFFile(export_gguf(folder, tmp_path / "m.gguf", "f16", said.append).file) as file:
        assert end_ids(file) == ids[:3]
    assert "end tokens that a GGUF file has no place for: b, c" in said


def test_what_the_template_writes_after_a_reply_ends_an_answer_too() -> None:
    template = "{% for m in messages %}{{ m.role }}{{ m.content }}<|pad|>{% endfor %}"
    metadata = told(tokenizer_of(template=template))
    assert metadata["tokenizer.ggml.eot_token_id"] == vocabulary()[0].index("<|pad|>")


def test_templates_go_along_as_they_are_also_those_with_tools(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(template=templates.QWEN)
    tokenizer.chat_templates["tool_use"] = "{{ tools }}"
    folder = saved(tmp_path / "model")
    tokenizer.save(folder)
    fields = gguf.GGUFReader(export_gguf(folder, tmp_path / "m.gguf", "f16").file).fields
    assert fields["tokenizer.chat_template"].contents() == templates.QWEN
    assert fields["tokenizer.chat_templates"].contents() == ["tool_use"]
    assert fields["tokenizer.chat_template.tool_use"].contents() == "{{ tools }}"


def test_a_model_without_a_template_has_none_in_the_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    tokenizer_of(template=None).save(folder)
    done = export_gguf(folder, tmp_path / "m.gguf", "f16")
    assert "tokenizer.chat_template" not in gguf.GGUFReader(done.file).fields
    assert "TEMPLATE" not in done.beside[0].read_text()


def cut(*parts, normalizer=None):
    backend = backend_of("smollm")
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        (cut(pre_tokenizers.Whitespace()), "no name for how this tokenizer cuts text (Whitespace)"),
        (cut(pre_tokenizers.Digits(individual_digits=False), WORDS), "cuts text (Digits, ByteLevel)"),
        (cut(pre_tokenizers.Digits(True), WORDS, normalizer=normalizers.NFKC()), "cuts text (NFKC, Digits, ByteLevel)"),
        (cut(pre_tokenizers.Digits(True), WORDS, normalizer=normalizers.NFC()), "cuts text (NFC, Digits, ByteLevel)"),
        (cut(pre_tokenizers.Split(Regex(r"\d"), "isolated"), WORDS), "cuts text (Split, ByteLevel)"),
        (cut(pre_tokenizers.ByteLevel(add_prefix_space=True)), "cuts text (ByteLevel)"),
    ],
)
def test_cuts_that_llama_cpp_does_not_have_are_refused_by_name(backend, sentence: str) -> None:
    with pytest.raises(TokenizerError) as error:
        told(Tokenizer.from_backend(backend, eos="<|im_end|>"))
    assert sentence in str(error.value) and error.value.where == "FOLDER"


def test_the_cut_of_llama_3_without_its_way_with_whole_words_is_another_one() -> None:
    content = json.loads(backend_of("llama-bpe").to_str())
    assert pre_tokenizer_name(content) == "llama-bpe"
    content["model"]["ignore_merges"] = False
    with pytest.raises(TokenizerError, match="has no name for how this tokenizer cuts text"):
        pre_tokenizer_name(content)


def test_odd_tokenizers_are_refused_in_a_sentence() -> None:
    spaces = backend_of("smollm")
    spaces.add_tokens([AddedToken("<tool>", lstrip=True)])
    with pytest.raises(TokenizerError, match="the added token '<tool>' has lstrip"):
        told(Tokenizer.from_backend(spaces, eos="<|im_end|>"))
    with pytest.raises(TokenizerError, match=r"names no end of text \(eos_token\)"):
        told(Tokenizer.from_backend(backend_of("smollm")))
    with pytest.raises(TokenizerError, match="eos_token_id 99999 is outside the vocabulary"):
        told(tokenizer_of(), eos_ids=(99999,))
    with pytest.raises(TokenizerError, match="eos_token_id -1 is outside the vocabulary"):
        told(tokenizer_of(), eos_ids=(-1,))
    named = backend_of("smollm")
    named.add_tokens([f"[PAD{ROWS}]"])
    with pytest.raises(TokenizerError, match=rf"id {ROWS} has no token, and '\[PAD{ROWS}\]', as llama.cpp would"):
        tokenizer_metadata(Tokenizer.from_backend(named, eos="<|im_end|>"), ROWS + 1, NO_DEFAULTS)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path: Path, capsys) -> None:
    tiny_model("llama", vocab_size=300).save_pretrained(tmp_path / "model")
    tokenizer_of().save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "m.gguf")]) == 2
    shown = capsys.readouterr()
    assert "the model's embedding 300 rows" in shown.err and shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.long
def test_smollm2_is_written_and_reads_back_as_the_same_numbers_and_ids(tmp_path: Path) -> None:
    folder = get("smollm2-135m")
    file = export_gguf(folder, tmp_path / "smollm2.gguf", "f32").file
    back, wanted = (load_file(place / "model.safetensors") for place in (convert(file, tmp_path / "back"), folder))
    assert back.keys() == wanted.keys() and all(np.array_equal(back[name], wanted[name]) for name in wanted)
    with GGUFFile(file) as opened:
        found = read_tokenizer(opened)
    oracle = json.loads((Path(__file__).parents[1] / "models" / "smollm2-token-ids.json").read_text())
    for kind in ("plain", "special"):
        for case in oracle[kind]:
            assert found.encode(case["text"], kind == "special") == case["ids"]
