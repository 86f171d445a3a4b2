"""The verbs generate and chat, run in this process on a tiny model folder."""

import io
import json
import sys

import pytest

from shoestring.cli.main import main
from shoestring.generate.language_model import LanguageModel
from shoestring.models.folder import save_model
from tests.generate.tiny import byte_tokenizer, tiny_decoder

FAST = ["--max-tokens", "8", "--temperature", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs") / "model"
    save_model(tiny_decoder(context=100), folder, byte_tokenizer())
    return str(folder)


@pytest.fixture(scope="module")
def expected(folder):
    model = LanguageModel.load(folder, device="cpu")
    return lambda prompt: model.generate(prompt, max_tokens=8, temperature=0)


def test_one_prompt_is_printed_with_its_continuation(folder, expected, capsys):
    assert main(["generate", folder, "--prompt", "abc", *FAST]) == 0
    assert capsys.readouterr().out == "abc" + expected("abc") + "\n"


def test_a_dash_reads_the_prompt_from_stdin(folder, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe\n"))
    assert main(["generate", folder, "--prompt", "-", *FAST]) == 0
    assert capsys.readouterr().out == "from a pipe" + expected("from a pipe") + "\n"


def test_json_is_one_object_with_text_counts_speed_and_reason(folder, expected, capsys):
    assert main(["generate", folder, "--prompt", "abc", "--json", *FAST]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"] == expected("abc")
    assert (result["prompt_tokens"], result["new_tokens"]) == (3, 8)
    assert result["stop_reason"] == "max_tokens" and result["tokens_per_second"] > 0


def test_prompts_of_flags_and_file_are_continued_in_order(folder, expected, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo é\n", encoding="utf-8")
    prompts = ["--prompt", "zero", "--file", str(tmp_path / "prompts.txt")]
    assert main(["generate", folder, *prompts, "--json", *FAST]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(r["prompt"], r["text"]) for r in results] == [(p, expected(p)) for p in ("zero", "one", "two é")]


def test_a_prompt_longer_than_the_context_prints_nothing_but_the_error(folder, capsys):
    assert main(["generate", folder, "--prompt", "x" * 100, *FAST]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "error: the prompt has 100 tokens" in captured.err


def test_a_text_that_fills_the_context_says_so(folder, capsys):
    assert main(["generate", folder, "--prompt", "x" * 96, *FAST]) == 0
    assert "context of 100 tokens is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["generate", "{}"], "there is nothing to continue"),
        (["generate", "{}", "--prompt", "a", "--temperature", "-1"], "temperature -1"),
        (["generate", "{}", "--prompt", "a", "--temprature", "1"], "did you mean --temperature?"),
        (["generate", "{}", "--file", "missing.txt"], "missing.txt"),
        (["generate", "nowhere", "--prompt", "a"], "no model 'nowhere'"),
        (["generate", "{}", "--prompt", "a", "--device", "gpu"], "unknown device 'gpu'"),
        (["chat", "{}", "--json"], "--json needs --prompt"),
    ],
)
def test_a_mistake_is_one_sentence(folder, arguments, said, capsys):
    assert main([argument.format(folder) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and said in captured.err and captured.out == ""


def test_chat_with_a_prompt_answers_once(folder, capsys):
    reply = LanguageModel.load(folder, device="cpu").chat("Hello", system="S", max_tokens=8, temperature=0)
    assert main(["chat", folder, "--prompt", "Hello", "--system", "S", *FAST]) == 0
    assert capsys.readouterr().out == reply + "\n"
    assert main(["chat", folder, "--prompt", "Hello", "--system", "S", "--json", *FAST]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == reply


def test_chat_reads_turns_from_a_pipe(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert main(["chat", folder, *FAST]) == 0
    assert capsys.readouterr().out.count("\n") >= 2
