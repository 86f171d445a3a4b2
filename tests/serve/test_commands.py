"""What begins with / in a chat: conversations on disk, adapters, settings, figures."""

from __future__ import annotations

import json

import pytest
import torch

from shoestring.generate.config import SamplingConfig
from shoestring.models.adapters import adapted_linears, attach
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from tests.generate.tiny import Script, tiny_decoder, tiny_model
from tests.serve.test_terminal import GREEDY, chat, contents

SHORT = GREEDY.model_copy(update={"max_tokens": 8})


def test_undo_forgets_the_latest_question_and_names_it_without_its_controls():
    model = tiny_model(context=400)
    Script(model, b"A", b"B")
    session, _, notes = chat(model, "/undo\none\n\x1b[31mtwo\n/undo\n")
    assert [content for _, content in contents(session)] == ["one", "A"]
    assert "nothing has been asked yet" in notes and "forgotten: [31mtwo" in notes and "\x1b" not in notes


def test_a_saved_conversation_goes_on_without_being_read_again(tmp_path):
    file = tmp_path / "talk.jsonl"
    session, first, notes = chat(tiny_model(context=400), f"one\ntwo\n/save {file}\n", SHORT, system="be brief")
    assert "talk.jsonl.cache" in notes and (tmp_path / "talk.jsonl.cache").is_file()
    later, again, notes = chat(tiny_model(context=400), f"/load {file}\nthree\n/speed\n", SHORT)
    assert contents(later)[:5] == contents(session) and "2 questions" in notes
    held = later.conversation.model.speed
    assert held.prompt_tokens < 45 and "need not be read again" in notes
    assert f"latest    {held.prompt_tokens} tokens read" in notes and "context   " in notes
    whole, said, _ = chat(tiny_model(context=400), "one\ntwo\nthree\n", SHORT, system="be brief")
    assert contents(whole) == contents(later) and said == first + again


def test_another_models_cache_is_not_used_and_it_is_said(tmp_path):
    file = tmp_path / "talk.jsonl"
    chat(tiny_model(context=400), f"one\n/save {file}\n", SHORT)
    other = tiny_model(context=400)
    other.decoder = tiny_decoder(400, seed=5)
    session, _, notes = chat(other, f"/load {file}\ntwo\n", SHORT)
    assert "its cache is not used, and it is read again: it belongs to another model" in notes
    assert len(contents(session)) == 4
    (tmp_path / "talk.jsonl.cache").write_bytes(b"hello")
    _, _, notes = chat(tiny_model(context=400), f"/load {file}\n", SHORT)
    assert "its cache is not used" in notes and "not a whole safetensors file" in notes
    model = tiny_model(context=400)
    chat(model, f"/save {file}\n")  # nothing has been said: nothing is held, and an old cache would be another's
    assert not (tmp_path / "talk.jsonl.cache").exists()


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "it cannot be read: No such file"),
        ("", "there is no conversation in this file"),
        ('{"messages": [', ":1: not a JSON object: unexpected end of line"),
        ('{"messages": [{"role": "king", "content": "a"}]}', ":1: message 1 has the role 'king'"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n' * 2, ":2: there is a second conversation"),
    ],
)
def test_a_file_that_holds_no_conversation_changes_nothing(text, said, tmp_path):
    model, file = tiny_model(context=400), tmp_path / "talk.jsonl"
    Script(model, b"A")
    if text is not None:
        file.write_text(text)
    session, _, notes = chat(model, f"one\n/load {file}\n/load\n")
    assert f"error: {file}" in notes and said in notes and "/load needs a file name" in notes
    assert contents(session) == [("user", "one"), ("assistant", "A")]


def test_a_loaded_question_without_an_answer_is_answered_by_regenerate(tmp_path):
    model, file = tiny_model(context=400), tmp_path / "talk.jsonl"
    Script(model, b"A")
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "one"}]}))
    session, _, notes = chat(model, f"/load {file}\n/regenerate\n")
    assert contents(session) == [("user", "one"), ("assistant", "A")] and "has no answer" in notes


def test_save_does_not_write_over_what_is_no_conversation(tmp_path):
    model, file = tiny_model(context=400), tmp_path / "thesis.txt"
    Script(model, b"A", b"B")
    file.write_text("years of work")
    _, _, notes = chat(model, f"one\n/save {file}\n/save {tmp_path / 'a.jsonl'}\ntwo\n/save {tmp_path / 'a.jsonl'}\n")
    assert file.read_text() == "years of work" and "this file is no conversation, and would be lost" in notes
    assert len(json.loads((tmp_path / "a.jsonl").read_text())["messages"]) == 4


def adapter_folder(folder, seed=0):
    """An adapter that changes what the tiny model says."""
    decoder = tiny_decoder(400)
    attach(decoder, LoRAConfig(rank=2, alpha=8), seed=seed)
    for linear in adapted_linears(decoder).values():
        torch.nn.init.normal_(linear.adapters["default"].lora_B, generator=torch.Generator().manual_seed(seed))
    save_adapter(decoder, folder, "the-base")
    return decoder


def test_adapters_are_switched_live_and_off_is_the_model_as_it_was(tmp_path):
    from shoestring.generate.language_model import LanguageModel
    from tests.generate.tiny import byte_tokenizer

    one, two = tmp_path / "one", tmp_path / "two"
    decoders = [adapter_folder(one, 1), adapter_folder(two, 2), tiny_decoder(400)]
    lines = f"Hello\n/adapter {one}\n/again\n/adapter {two}\n/again\n/adapter {one}\n/again\n/adapter off\n/again\n"
    _, output, notes = chat(tiny_model(context=400), lines + "/adapter\n", SHORT)
    wanted = [
        LanguageModel(decoder, byte_tokenizer()).chat("Hello", max_tokens=8, temperature=0) for decoder in decoders
    ]
    assert len(set(wanted)) == 3
    assert output.splitlines() == "\n".join(wanted[number] for number in (2, 0, 1, 0, 2)).splitlines()
    assert "trained on the-base" in notes and "the model alone" in notes and "no adapter; /adapter FOLDER" in notes


def test_an_adapter_that_does_not_fit_changes_nothing(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    adapter_folder(good, 1)
    decoder = tiny_decoder(400, layers=3)
    attach(decoder, LoRAConfig(rank=2))
    save_adapter(decoder, bad, None)
    lines = f"/adapter {bad}\n/adapter nowhere\nHello\n/adapter {good}\n/adapter {bad}\n/again\n"
    session, output, notes = chat(tiny_model(context=400), lines, SHORT)
    plain = tiny_model(context=400).chat("Hello", max_tokens=8, temperature=0)
    said = " ".join(notes.split())  # lines break where the path ends
    assert "does not belong to this model" in said and "no model 'nowhere'" in said
    assert output.startswith(plain + "\n")
    assert session.conversation.adapters.active == str(good) and contents(session)[1][1] != plain


def test_settings_show_what_is_not_at_rest_and_stops_may_be_several():
    lines = '/settings\n/settings min_p=0.1\n/set stop a=b\n/set stop ["x", "\\n"]\n/set temperature = 0.5\n'
    session, _, notes = chat(tiny_model(context=400), lines)
    assert "min_p" not in notes.splitlines()[0] and "min_p 0.1" in notes.splitlines()[1]
    assert "stop 'a=b'" in notes and session.sampling.stop == ("x", "\n") and session.sampling.temperature == 0.5


def test_a_mistyped_command_is_answered_with_the_near_one():
    _, output, notes = chat(tiny_model(), "/sav it\n")
    assert "unknown command /sav, did you mean /save?" in notes and output == ""


def test_a_backslash_at_a_lines_end_opens_another_line_and_two_do_not():
    model = tiny_model(context=400)
    Script(model, b"A", b"B", b"C")
    session, _, _ = chat(model, "one\\\n  two \\\nthree\nC:\\\\\nlast\\\n")
    asked = [content for role, content in contents(session) if role == "user"]
    assert asked == ["one\n  two \nthree", "C:\\\\", "last"]


EVERY = {  # of the settings, a value that is not at rest, as it is typed
    "max_tokens": "7", "temperature": "0.5", "top_k": "9", "top_p": "0.8", "min_p": "0.1", "typical_p": "0.9",
    "repetition_penalty": "1.1", "presence_penalty": "0.2", "frequency_penalty": "-0.3", "logit_bias": "{64: -5.0}",
    "no_repeat_ngram_size": "3", "bad_words_ids": "[[65, 66]]", "min_tokens": "2", "min_length": "4", "stop": "a=b",
    "stop_tokens": "[3]", "regex": "[a-z]+", "json_schema": '{"type": "boolean"}', "grammar": 'start: "yes"',
    "seed": "5",
}  # fmt: skip
OTHERS = {"logprobs": "2", "num_return_sequences": "2", "num_beams": "2", "length_penalty": "2"}  # of no chat


def test_every_setting_is_one_of_the_chat_or_is_refused_by_name():
    assert EVERY.keys() | OTHERS.keys() == SamplingConfig.model_fields.keys()
    rest = SamplingConfig(temperature=0.7)
    for name, text in EVERY.items():
        session, _, notes = chat(tiny_model(context=400), f"/set {name} {text}\n", rest)
        assert session.sampling.differing(rest) == [name] and name in notes and "error" not in notes, name
    for name, text in OTHERS.items():
        session, _, notes = chat(tiny_model(context=400), f"/set {name} {text}\n", rest)
        assert "error: " in notes and (name if name != "num_beams" else "beam search") in notes
        assert session.sampling == rest


def test_off_takes_back_what_is_nothing_by_default(tmp_path):
    (tmp_path / "yes.lark").write_text('start: "yes"')
    lines = f'/set grammar {tmp_path / "yes.lark"}\none\n/set grammar off\n/set stop x\n/set stop off\n'
    lines += "/set stop_tokens [999]\n/set regex a\n/set json_schema true\n/set json_schema {}\n/set json_schema off\n"
    lines += "/set logit_bias {1: 2}\n/set logit-bias off\n/set temperature off\n/set grammar nowhere.lark\n"
    session, output, notes = chat(tiny_model(context=400), lines, SHORT)
    assert output == "yes\n" and session.sampling == SHORT
    assert "error: temperature" in notes and "the grammar cannot be read" in notes
    assert "error: stop_tokens names token 999, and the tokenizer has ids from 0 to 257" in notes


def test_what_guesses_ahead_is_switched_live_and_changes_no_answer(tmp_path):
    from shoestring.models.folder import save_model
    from tests.generate.tiny import byte_tokenizer

    folder = tmp_path / "small"
    save_model(tiny_decoder(400), folder, byte_tokenizer())
    asked = ["one one one", "two one two one", "three"]
    _, plain, _ = chat(tiny_model(context=400), "\n".join(asked), SHORT)
    lines = ["/speculate", "/speculate lookup", asked[0], f"/speculate {folder}", asked[1], "/speculate off", asked[2]]
    lines.append("/speculate nowhere")
    session, output, notes = chat(tiny_model(context=400), "\n".join(lines), SHORT)
    assert output == plain and session.conversation.model.speculation is None
    assert "nothing is guessed ahead" in notes and "the text itself guesses ahead" in notes
    assert "a smaller model guesses ahead" in notes and "error: no model 'nowhere'" in notes


def test_speed_tells_how_many_guesses_were_right():
    model = tiny_model(context=400)
    session, _, notes = chat(model, "one\n/speed\n", GREEDY)
    assert "guesses" not in notes
    session.conversation.speculate(tiny_model(context=400))
    session.conversation.model.speculation.payoff.best = lambda texts, guessing: 3
    session.handle("two")
    session.handle("/speed")
    speed = session.conversation.spent
    assert speed.right == speed.guessed > 0
    assert f"{speed.right} of {speed.guessed} guesses right" in session.notes.file.getvalue()
