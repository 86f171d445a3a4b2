import json

import pytest
import torch

from shoestring.core.errors import ConfigError, ModelFileError, TokenizerError
from shoestring.generate.language_model import LanguageModel
from shoestring.models.folder import save_model
from tests.generate.tiny import BOS, END, Script, byte_tokenizer, tiny_decoder, tiny_model


def test_text_is_the_decoded_tokens_without_the_stop_token():
    model = tiny_model()
    Script(model, "a naïve reply".encode())
    completion = model.complete(["hello"], temperature=0)[0]
    assert completion.text == "a naïve reply"
    assert completion.tokens[-1] == END and completion.reason == "stop_token"
    assert completion.prompt_tokens == 5


def test_several_prompts_give_a_list_in_their_order():
    model = tiny_model()
    prompts = ["a", "a longer prompt", "mid"]
    together = model.generate(prompts, temperature=0, max_tokens=8)
    assert together == [model.generate(prompt, temperature=0, max_tokens=8) for prompt in prompts]


def test_more_prompts_than_are_decoded_at_once_wait_and_get_the_same_texts(monkeypatch):
    model = tiny_model()
    prompts, options = ["a", "a longer prompt", "mid", "b", "cd"], {"temperature": 1.0, "max_tokens": 8}
    together = model.generate(prompts, **options)
    monkeypatch.setattr("shoestring.generate.language_model.SLOTS", 2)
    rows = []
    record = lambda module, arguments, given: rows.append(len(given["cache"].counts))  # noqa: E731
    model.decoder.register_forward_pre_hook(record, with_kwargs=True)
    assert model.generate(prompts, **options) == together
    assert max(rows) == 2


def test_streamed_pieces_add_up_to_the_text():
    model = tiny_model()
    Script(model, "日本語 text".encode(), "日本語 text".encode())
    pieces = list(model.stream("x", temperature=0))
    assert not any("\ufffd" in piece for piece in pieces) and "" not in pieces
    assert "".join(pieces) == model.generate("x", temperature=0) == "日本語 text"


def test_a_stop_string_ends_the_text_and_the_computing():
    model = tiny_model()
    script = Script(model, b"one. User: two and a lot more")
    completion = model.complete(["x"], temperature=0, stop=["User:", "\n"])[0]
    assert completion.text == "one. " and completion.reason == "stop_string"
    assert script.calls == len("one. User:")


def test_the_beginning_of_a_stop_string_is_shown_when_the_text_ends_there():
    model = tiny_model()
    Script(model, b"one Us")
    assert model.generate("x", temperature=0, stop="User:") == "one Us"


def test_same_seed_same_text_and_other_seed_other_text():
    model = tiny_model()
    texts = [model.generate("abc", temperature=1.0, max_tokens=20, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_equal_prompts_in_one_batch_are_sampled_apart():
    first, second = tiny_model().generate(["abc", "abc"], temperature=1.0, max_tokens=20)
    assert first != second


def test_an_empty_prompt_begins_with_bos_and_without_one_is_an_error():
    assert tiny_model().encode_prompt("") == [BOS]
    with pytest.raises(ConfigError, match="the prompt is empty"):
        tiny_model(bos=None).generate("")


def test_bos_opens_a_prompt_where_the_tokenizer_asks_for_it():
    model = tiny_model()
    assert model.encode_prompt("a")[0] != BOS
    model.tokenizer.config["add_bos_token"] = True
    assert model.encode_prompt("a")[0] == BOS


def test_special_tokens_in_a_plain_prompt_are_read_unless_asked_otherwise():
    assert tiny_model().encode_prompt("a<|end|>b")[1] == END
    assert END not in tiny_model().encode_prompt("a<|end|>b", "text")


def test_a_rendered_prompt_has_its_bos_once():
    model = tiny_model()
    model.tokenizer.config["add_bos_token"] = True
    assert model.encode_prompt("<|bos|>a") == model.encode_prompt("a") == [BOS, *model.tokenizer.encode("a")]


def test_a_chat_message_cannot_close_its_turn():
    model = tiny_model()
    ids = model.encode_chat([{"role": "user", "content": "Q<|end|>Z"}])
    assert ids.count(END) == 1
    assert model.tokenizer.decode(ids, skip_specials=False) == "<|bos|>user:Q<|end|>Z<|end|><|bos|>assistant:"


def test_errors_of_a_stream_come_when_it_is_asked_for():
    with pytest.raises(ConfigError, match="unknown generation option"):
        tiny_model().stream("x", heat=1)
    with pytest.raises(ConfigError, match="context is 16"):
        tiny_model(context=16).stream("x" * 20)


def test_chat_renders_system_question_and_messages():
    model = tiny_model()
    ids = model.tokenizer.encode("<|bos|>system:S<|end|><|bos|>user:Q<|end|><|bos|>assistant:", specials=True)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0][0].tolist()))
    Script(model, b"A", b"A")
    assert model.chat("Q", system="S", temperature=0) == "A"
    assert seen[0] == ids
    seen.clear()
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert "".join(model.chat_stream(messages, temperature=0)) == "A"
    assert seen[0] == ids


def test_a_message_without_content_is_named():
    with pytest.raises(ConfigError, match="message 2"):
        tiny_model().chat([{"role": "user", "content": "a"}, {"role": "user"}])


def test_a_model_without_a_chat_template_suggests_generate():
    with pytest.raises(TokenizerError, match="shoestring generate"):
        tiny_model(chat_template=None).chat("Q")


def test_the_end_of_a_reply_is_read_from_the_template():
    tokenizer = byte_tokenizer()
    tokenizer.eos_id = None
    assert LanguageModel(tiny_decoder(), tokenizer).stop_tokens == {END}


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused():
    with pytest.raises(ModelFileError, match="258 ids.*100 rows"):
        LanguageModel(tiny_decoder(vocabulary=100), byte_tokenizer())


@pytest.mark.parametrize("eos", [7, [7, 9]])
def test_a_folder_is_loaded_with_its_eos_ids_and_advice(tmp_path, eos):
    save_model(tiny_decoder(), tmp_path / "model", byte_tokenizer())
    advice = {"eos_token_id": eos, "do_sample": True, "temperature": 0.3, "top_k": 20}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(advice))
    model = LanguageModel.load(tmp_path / "model", device="cpu")
    assert model.stop_tokens == {END, 7, *([9] if isinstance(eos, list) else [])}
    assert (model.sampling().temperature, model.sampling(temperature=1).temperature) == (0.3, 1)
    assert model.sampling().top_k == 20
    assert model.decoder.embedding.weight.dtype == torch.float32
    expected = LanguageModel(tiny_decoder(), byte_tokenizer()).generate("abc", temperature=0, max_tokens=8)
    model.stop_tokens = frozenset({END})
    assert model.generate("abc", temperature=0, max_tokens=8) == expected
