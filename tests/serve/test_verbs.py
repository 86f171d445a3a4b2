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


def test_everything_of_sampling_is_a_flag(folder, capsys, tmp_path):
    flags = ["--typical-p", "0.9", "--min-p", "0.01", "--presence-penalty", "0.1", "--frequency-penalty", "0.1"]
    flags += ["--logit-bias", "64=-5", "--bad-words-ids", "65,66", "--no-repeat-ngram-size", "4", "--min-tokens", "2"]
    flags += ["--temperature", "0.8", "--num-return-sequences", "2", "--logprobs", "2", "--stop-tokens", "3"]
    common = ["--prompt", "abc", "--device", "cpu", "--json"]
    assert main(["generate", folder, *common, "--max-tokens", "6", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["prompt"] for one in result["results"]] == ["abc", "abc"]
    assert result["sampling"]["logit_bias"] == [[64, -5.0]] and result["sampling"]["bad_words_ids"] == [[65, 66]]
    first = result["results"][0]["logprobs"][0]
    assert len(first["top"]) == 2 and first["logprob"] <= first["top"][0]["logprob"] < 0
    (tmp_path / "schema.json").write_text('{"enum": ["one", "other"]}')
    for verb, schema in (("generate", str(tmp_path / "schema.json")), ("chat", '{"enum": ["one", "other"]}')):
        assert main([verb, folder, *common, "--max-tokens", "20", "--json-schema", schema]) == 0
        assert json.loads(json.loads(capsys.readouterr().out)["text"]) in ("one", "other")
    beams = ["--max-tokens", "6", "--num-beams", "3", "--num-return-sequences", "2"]
    assert main(["generate", folder, *common, *beams]) == 0
    scores = [one["score"] for one in json.loads(capsys.readouterr().out)["results"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "line, said",
    [
        (["generate", "{}", "--prompt", "a", "--regex", "(a"], "the regular expression cannot be used"),
        (["generate", "{}", "--prompt", "a", "--grammar", "nowhere.lark"], "nowhere.lark"),
        (["generate", "{}", "--prompt", "a", "--logit-bias", "x"], "is not ID=VALUE"),
        (["generate", "{}", "--prompt", "a", "--logprobs", "1"], "--logprobs needs --json"),
        (["chat", "{}", "--prompt", "a", "--num-beams", "2"], "beam search cannot be combined with a conversation"),
    ],
)
def test_a_flag_of_sampling_that_cannot_work_is_a_sentence(folder, capsys, line, said):
    assert main([folder if word == "{}" else word for word in line]) == 2
    assert said in capsys.readouterr().err


def test_a_constrained_text_that_is_cut_says_so(folder, capsys):
    arguments = ["generate", folder, "--prompt", "a", "--regex", "b{20}", "--max-tokens", "4", "--device", "cpu"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == "abbbb\n"
    assert "a text was cut before obeying --regex: --max-tokens allows more" in captured.err


def test_guessing_ahead_gives_the_same_text_and_its_figures(folder, expected, capsys):
    for guesser in ("lookup", folder):
        assert main(["generate", folder, "--prompt", "abababab", "--speculate", guesser, *FAST]) == 0
        assert capsys.readouterr().out == "abababab" + expected("abababab") + "\n"
        assert main(["chat", folder, "--prompt", "abab", "--speculate", guesser, *FAST]) == 0
        said = capsys.readouterr().out
    assert main(["chat", folder, "--prompt", "abab", *FAST]) == 0
    assert capsys.readouterr().out == said
    longer = ["--max-tokens", "60", "--temperature", "0", "--device", "cpu", "--json"]
    assert main(["generate", folder, "--prompt", "abababab", "--speculate", folder, *longer]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["guessed_tokens"] == result["guessed_right"] > 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--speculate", "{}", "--memory", "4GB"], "cannot be combined with --memory"),
        (["--speculate", "lookup", "--num-beams", "2"], "no use for --speculate"),
        (["--speculate", "nowhere"], "no model 'nowhere'"),
    ],
)
def test_what_guesses_ahead_and_cannot_is_a_sentence(folder, capsys, flags, said):
    flags = [folder if flag == "{}" else flag for flag in flags]
    assert main(["generate", folder, "--prompt", "a", "--device", "cpu", *flags]) == 2
    assert said in capsys.readouterr().err
