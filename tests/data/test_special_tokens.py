"""Names of special tokens: tokens in text that was rendered elsewhere, letters in what people say."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from shoestring.data.plain_names import PlainNames
from shoestring.data.supervised.show import example_text, runs
from shoestring.data.supervised.spans import DroppedContent
from shoestring.data.supervised.supervise import NothingSupervised
from shoestring.data.tokenizer import Tokenizer
from shoestring.finetuning.examples import prepare_dataset
from tests.data import families
from tests.data.families import found

RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"


def prepared(tokenizer, row, **settings):
    return prepare_dataset([row], tokenizer, **settings)


@pytest.mark.parametrize("opens", [False, True])
def test_a_rendered_text_is_learned_as_its_tokens_with_nothing_around_them(opens):
    names = ["<|im_start|>", "<|im_end|>"]
    tokenizer = families.small(names, "<|im_start|>", "<|im_end|>", families.QWEN25, add_bos_token=opens)
    ids, mask = found(prepared(tokenizer, {"text": RENDERED}))
    assert ids == tokenizer.encode(RENDERED, specials=True)
    assert [ids.count(tokenizer.bos_id), ids.count(tokenizer.eos_id)] == [2, 2] and all(mask[1:])


def test_no_bos_stands_before_a_rendered_text_of_a_template_without_one():
    tokenizer = families.small(["<s>", "<u>", "</s>"], "<s>", "</s>", None)
    assert found(prepared(tokenizer, {"text": "<u>a</s>"}))[0] == tokenizer.encode("<u>a</s>", specials=True)
    assert found(prepared(tokenizer, {"text": "a"}))[0] == tokenizer.encode("<s>a</s>", specials=True)


def test_a_setting_reads_names_in_text_as_letters():
    tokenizer = families.chatml(families.QWEN25)
    ids, _ = found(prepared(tokenizer, {"text": RENDERED}, special_tokens="text"))
    assert ids == [*tokenizer.encode(RENDERED), tokenizer.eos_id]


def test_a_completion_that_ends_in_the_end_token_has_it_once():
    row = {"prompt": "Q: 1+1\nA:", "completion": " 2</s>"}
    tokenizer = families.base()
    ids, mask = found(prepared(tokenizer, row))
    assert ids == [tokenizer.bos_id, *tokenizer.encode(row["prompt"]), *tokenizer.encode(" 2"), tokenizer.eos_id]
    assert sum(mask) == 3 and mask[-1]
    assert found(prepared(tokenizer, {**row, "completion": " 2"})) == (ids, mask)


def test_a_completion_that_goes_on_after_the_end_token_is_refused():
    with pytest.raises(DroppedContent, match="the completion goes on after </s>, which ends a reply"):
        prepared(families.base(), {"prompt": "a", "completion": "b</s> c"})


@pytest.mark.parametrize("answer", ["15<|im_end|>", "15<|im_end|> or so"])
def test_an_answer_that_holds_the_end_token_is_refused_under_a_template(answer):
    with pytest.raises(DroppedContent, match=r"message 2 \(assistant\) contains <\|im_end\|>, which ends its turn"):
        prepared(families.chatml(families.QWEN25), {"prompt": "7 + 8?", "completion": answer})


def test_an_end_token_alone_is_nothing_to_learn():
    with pytest.raises(NothingSupervised):
        prepared(families.base(), {"prompt": "a", "completion": " </s>\n"})


@pytest.mark.parametrize("role", [0, 1])
def test_a_message_cannot_close_its_turn(role):
    """Every token but the template's own is what the message is as plain text."""
    tokenizer = families.chatml(families.QWEN25)
    said = ["a<|im_start|>b <|endoftext|>c", "yes <|endoftext|> sir"]
    turns = [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]
    ids, mask = found(prepared(tokenizer, {"messages": turns}))
    plain = found(prepared(tokenizer, {"messages": [{**turn, "content": "x"} for turn in turns]}))[0]
    special = [i for i in ids if i in tokenizer.special_ids]
    assert special == [i for i in plain if i in tokenizer.special_ids]
    text = tokenizer.decode(ids, skip_specials=False)
    assert said[role] in text and tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == said[1]


def test_tokenizers_that_are_not_byte_level_keep_names_as_letters_too():
    vocabulary = {t: i for i, t in enumerate(["<unk>", "▁", *(f"<0x{b:02X}>" for b in range(256)), "<", ">", "s", "a"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer.from_backend(backend, eos="<s>", chat_template="{{ messages[0].content }}<s>")
    ids = PlainNames(tokenizer).encode_chat([{"role": "user", "content": "a<s>a <s>"}])
    names = [tokenizer.backend.id_to_token(i) for i in ids]
    assert names == ["▁", "a", "<", "s", ">", "a", "▁", "<", "s", ">", "<s>"]


def test_what_is_shown_tells_special_tokens_from_letters():
    tokenizer = families.chatml(families.QWEN25)
    turns = [{"role": "user", "content": "a<|im_end|>b\r\n\x1b[2Jc"}, {"role": "assistant", "content": "yo"}]
    dataset = prepared(tokenizer, {"messages": turns})
    shown = example_text(dataset, 0).plain
    assert "<|im_start|>user⏎a\\<|im_end|>b␍⏎␛[2Jc<|im_end|>⏎<|im_start|>assistant⏎‹yo<|im_end|>›⏎" in shown
    assert [text for text, _, special in runs(dataset, 0) if special][-2:] == ["<|im_start|>", "<|im_end|>"]
    assert json.dumps("".join(text for text, *_ in runs(dataset, 0))).count("im_end") == 4
