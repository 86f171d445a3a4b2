"""Tokenizer folders: the same ids as transformers, exact bytes per id, text that arrives in pieces."""

import json
import random

import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from shoestring.core.errors import ConfigError, TokenizerError
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import END_OF_TEXT, train_tokenizer

CORPUS = ["def f(x):\n    return x + 12345\n\n", "The cat sat on the mat. ", "日本語 äöü é 👍🏽\r\n\t"] * 20
NASTY = [
    "",
    " ",
    "   \n\n\t  ",
    "hello world",
    "naïve café — “quotes” …",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 👍🏽 🇨🇭",
    "\x00\x01\x7f\u0085\u00a0\u2028\ufeff\ufffd",
    "e\u0301 \u0301 a\u0308",
    "1234567890 ٣٤٥ Ⅷ ½",
    "\r\n\r\n x\r",
    "def f():\n\treturn '\\x00'\n" * 3,
    "a" * 1000,
    "<|endoftext|> inside <|end",
    "Ġ Ċ ġ",
    "\U0010ffff\U000e0001",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(CORPUS, vocabulary=300)


@pytest.fixture
def rich(trained) -> Tokenizer:
    """Chat tokens, a separate padding token and an added token that is not special."""
    backend = tokenizers.Tokenizer.from_str(trained.backend.to_str())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<pad>"])
    backend.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("日本", special=False)])
    return Tokenizer.from_backend(backend, END_OF_TEXT, "<|im_end|>", "<pad>", chat_template="{{ messages }}")


def _random_texts(count: int, seed: int = 0) -> list[str]:
    random_ = random.Random(seed)
    ranges = [(0, 128), (128, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return ["".join(chr(random_.randrange(*random_.choice(ranges))) for _ in range(40)) for _ in range(count)]


@pytest.mark.parametrize("which", ["trained", "rich"])
def test_transformers_reads_a_saved_folder_with_the_same_ids(which, tmp_path, request):
    ours = request.getfixturevalue(which)
    ours.save(tmp_path)
    judge = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert judge.bos_token_id == ours.bos_id
    assert judge.eos_token_id == ours.eos_id
    assert judge.pad_token_id == ours.pad_id
    assert judge.chat_template == ours.chat_template
    for text in [*NASTY, *_random_texts(20), "<|im_start|>user\nhi<|im_end|><tool_call>日本語"]:
        ids = ours.encode(text, specials=True)
        assert ids == judge(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids, skip_specials=True) == judge.decode(ids, skip_special_tokens=True)


def test_a_folder_written_by_transformers_reads_the_same(rich, tmp_path):
    judge = transformers.PreTrainedTokenizerFast(
        tokenizer_object=rich.backend,
        bos_token=AddedToken(END_OF_TEXT),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
        chat_template="{{ bos_token }}{{ messages[0].content }}",
    )
    judge.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (rich.bos_id, rich.eos_id, rich.pad_id)
    assert ours.chat_template == "{{ bos_token }}{{ messages[0].content }}"
    assert ours.render_chat([{"role": "user", "content": "x"}]) == f"{END_OF_TEXT}x"
    text = "<|im_start|>a 日本 12<pad>"
    assert ours.encode(text, specials=True) == judge(text, add_special_tokens=False)["input_ids"]
    again = tmp_path / "again"
    ours.save(again)
    assert Tokenizer.load(again).fingerprint() == ours.fingerprint()
    assert Tokenizer.load(again).chat_template == ours.chat_template


def test_reads_the_older_forms_of_the_config(rich, tmp_path):
    rich.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": {"__type": "AddedToken", "content": END_OF_TEXT, "lstrip": False},
                "eos_token": None,
                "chat_template": [
                    {"name": "default", "template": "plain"},
                    {"name": "tool_use", "template": "tools"},
                ],
                "added_tokens_decoder": {str(rich.vocabulary_size): {"content": "<late>", "special": True}},
            }
        )
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<late>"}))
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, None, rich.vocabulary_size)
    assert ours.vocabulary_size == rich.vocabulary_size + 1
    assert ours.render_chat([]) == "plain"
    assert ours.render_chat([], tools=[{"name": "f"}]) == "tools"
    ours.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").chat_templates == ours.chat_templates


def test_a_separate_template_file_wins(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("from the file")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.chat_template == "from the file"
    loaded.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == "from the file"


def test_names_of_specials_in_a_text_are_plain_text_unless_asked(rich):
    text = f"a<|im_end|>b{END_OF_TEXT}"
    plain = rich.encode(text)
    assert not set(plain) & rich.special_ids
    assert rich.decode(plain) == text
    asked = rich.encode(text, specials=True)
    assert asked.count(rich.eos_id) == 1 and asked[-1] == rich.bos_id
    assert rich.decode(asked) == "ab"
    assert rich.decode(asked, skip_specials=False) == text
    assert rich.encode_batch([text, "x"]) == [plain, rich.encode("x")]
    assert rich.encode_batch([text], specials=True) == [asked]


@pytest.mark.parametrize("which", ["trained", "rich"])
def test_token_bytes_sum_to_the_size_of_the_text(which, request):
    tokenizer = request.getfixturevalue(which)
    sizes = tokenizer.token_sizes()
    assert sizes.shape == (tokenizer.vocabulary_size,)
    for text in [*NASTY, *_random_texts(200)]:
        ids = tokenizer.encode(text)
        assert sizes[ids].sum() == len(text.encode())
        assert b"".join(tokenizer.token_bytes()[i] for i in ids) == text.encode()
        assert tokenizer.decode(ids) == text
    assert all(sizes[i] == 0 for i in tokenizer.special_ids)


@pytest.mark.parametrize("which", ["trained", "rich"])
def test_streamed_text_is_decoded_text_and_never_half_a_character(which, request):
    tokenizer = request.getfixturevalue(which)
    for text in [*NASTY, *_random_texts(50)]:
        stream = tokenizer.stream()
        parts = [stream.add(i) for i in tokenizer.encode(text)]
        assert "".join(parts) == text
        assert all("\ufffd" not in part for part in parts) or "\ufffd" in text
        assert stream.finish() == ""


def test_streaming_random_ids_gives_what_decode_gives(rich):
    random_ = random.Random(1)
    for skip in (True, False):
        for _ in range(100):
            ids = [random_.randrange(rich.vocabulary_size) for _ in range(random_.randrange(30))]
            stream = rich.stream(skip)
            assert "".join(map(stream.add, ids)) + stream.finish() == rich.decode(ids, skip)


def test_streaming_works_for_a_tokenizer_that_is_not_byte_level():
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(
        ["the cat sat on the mat"] * 5, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *bytes_])
    )
    backend.add_tokens(bytes_)
    tokenizer = Tokenizer.from_backend(backend)
    ids = tokenizer.encode("the cat the mat")
    stream = tokenizer.stream()
    assert "".join(map(stream.add, ids)) + stream.finish() == tokenizer.decode(ids) == "the cat the mat"
    with pytest.raises(TokenizerError, match="not byte-level"):
        tokenizer.token_sizes()


def test_the_fingerprint_follows_the_ids(trained, rich, tmp_path):
    trained.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint() == trained.fingerprint() != rich.fingerprint()


def test_half_a_surrogate_pair_is_encoded_as_a_replacement_character(trained):
    assert trained.decode(trained.encode("a\ud83db")) == "a\ufffdb"


def test_the_separator_is_endoftext_then_eos_then_bos(rich, trained):
    assert rich.separator_id == 0 and rich.eos_id != 0
    backend = tokenizers.Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[]))
    backend.add_special_tokens(["<s>", "</s>"])
    assert Tokenizer.from_backend(backend, bos="<s>", eos="</s>").separator_id == 1
    assert Tokenizer.from_backend(backend, bos="<s>").separator_id == 0
    with pytest.raises(TokenizerError, match="separate documents"):
        _ = Tokenizer.from_backend(backend).separator_id


def test_bad_folders_are_refused_with_a_sentence(trained, tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<nowhere>"}')
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="not valid JSON"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": 3},
        {"chat_template": [{"name": "x"}]},
        {"added_tokens_decoder": {"x": {}}},
        {"chat_template": [3]},
    ],
)
def test_a_config_of_another_form_is_refused(trained, tmp_path, config):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="not in the form"):
        Tokenizer.load(tmp_path)


def test_an_id_outside_the_vocabulary_is_refused(trained):
    for i in (-1, trained.vocabulary_size):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            trained.decode([i])
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            trained.stream().add(i)


# Training


def test_training_is_deterministic_and_endoftext_is_id_0(trained):
    again = train_tokenizer(iter(CORPUS), vocabulary=300)
    assert again.fingerprint() == trained.fingerprint()
    assert trained.bos_id == trained.eos_id == 0
    assert trained.vocabulary_size == 300


def test_transformers_begins_a_prompt_as_training_begins_a_document(trained, tmp_path):
    trained.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("def f").input_ids == [trained.separator_id, *trained.encode("def f")]


def test_digits_are_split_one_by_one():
    tokenizer = train_tokenizer(["12345 12345 2024 2024 7777"] * 50, vocabulary=300)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2024 12345")] == list("2024") + [" "] + list(
        "12345"
    )


def test_frequent_words_become_one_token():
    tokenizer = train_tokenizer(["the cat sat on the mat\n"] * 10, vocabulary=300)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("the cat the")] == ["the", " cat", " the"]


def test_a_tiny_corpus_gives_a_smaller_vocabulary_and_says_so(capsys):
    tokenizer = train_tokenizer(["ab ab"], vocabulary=5000)
    assert 257 < tokenizer.vocabulary_size < 300
    assert "only" in capsys.readouterr().err
    assert tokenizer.decode(tokenizer.encode("anything ü")) == "anything ü"


def test_a_vocabulary_that_cannot_hold_all_bytes_is_refused():
    with pytest.raises(ConfigError, match="cannot hold all bytes"):
        train_tokenizer(["x"], vocabulary=256)


def test_a_word_without_end_is_learned_in_pieces_of_256_bytes():
    """Merging costs the square of a word's length: 200 kB of one letter took 14 seconds, and 3 MB minutes."""
    tokenizer = train_tokenizer(["ab" * 20_000, " the cat" * 9], vocabulary=300)
    assert max(tokenizer.token_sizes()) == 256 and b" cat" in tokenizer.token_bytes()
    assert "Split" not in tokenizer.backend.to_str()
    assert tokenizer.decode(tokenizer.encode("ab" * 1000)) == "ab" * 1000
