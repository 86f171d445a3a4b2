"""A file of prompts to a file of answers: the same answers however often it is interrupted."""

from __future__ import annotations

import json
import sys

import pytest

from shoestring.cli.main import main
from shoestring.core.errors import DataError, RunError
from shoestring.generate.answer_file import Stopped, answer_file
from shoestring.generate.language_model import LanguageModel
from shoestring.models.folder import save_model
from tests.generate.tiny import byte_tokenizer, tiny_decoder, tiny_model

OPTIONS = {"max_tokens": 6, "temperature": 1.0}


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"number {n}", "id": f"p{n}"} for n in range(7)]
    rows += [{"messages": [{"role": "user", "content": "Hello"}], "system": "S"}, {"prompt": "é", "id": 9}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n", encoding="utf-8")
    return file


def model():
    return tiny_model(context=100)


def answers_of(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_every_row_gets_the_answer_that_it_gets_alone(prompts, tmp_path):
    out = tmp_path / "answers.jsonl"
    done = answer_file(model(), prompts, out, slots=3, max_tokens=6, temperature=0)
    answers = answers_of(out)
    assert (done.rows, done.found, done.new_tokens) == (9, 0, sum(answer["new_tokens"] for answer in answers))
    assert [answer["row"] for answer in answers] == list(range(1, 10))
    assert [answer.get("id") for answer in answers] == [*(f"p{n}" for n in range(7)), None, 9]
    for n in range(7):
        [alone] = model().complete([f"number {n}"], max_tokens=6, temperature=0)
        assert answers[n]["text"] == alone.text and answers[n]["stop_reason"] == alone.reason
        assert (answers[n]["prompt_tokens"], answers[n]["new_tokens"]) == (alone.prompt_tokens, len(alone.tokens))
    assert answers[7]["text"] == model().chat("Hello", system="S", max_tokens=6, temperature=0)


class Dies(Exception):
    """What a kill is to the process."""


@pytest.mark.parametrize("error", [Dies, KeyboardInterrupt])
def test_a_killed_and_resumed_file_is_that_of_an_uninterrupted_run(error, prompts, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    answer_file(model(), prompts, whole, slots=2, **OPTIONS)
    passes = []
    for last in (9, 14):
        dying = model()

        def die(*arguments, last=last):
            passes.append(1)
            if len(passes) == last:
                raise error

        dying.decoder.register_forward_pre_hook(die)
        with pytest.raises(Stopped if error is KeyboardInterrupt else Dies) as caught:
            answer_file(dying, prompts, out, slots=2, **OPTIONS)
        some = answers_of(out)
        assert 0 < len(some) < 9
        if error is KeyboardInterrupt:
            assert f"{len(some)} of 9 prompts are answered" in caught.value.message and caught.value.exit_code == 130
    done = answer_file(model(), prompts, out, slots=3, **OPTIONS)
    assert done.found == len(some) and out.read_bytes() == whole.read_bytes()
    assert answer_file(model(), prompts, out, **OPTIONS).new_tokens == 0
    assert out.read_bytes() == whole.read_bytes()


def test_half_a_line_at_the_end_is_taken_off_and_answered_again(prompts, tmp_path):
    whole, out, said = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", []
    answer_file(model(), prompts, whole, **OPTIONS)
    answer_file(model(), prompts, out, **OPTIONS)
    out.write_bytes(out.read_bytes()[:-20])
    assert answer_file(model(), prompts, out, say=said.append, **OPTIONS).found == 8
    assert out.read_bytes() == whole.read_bytes() and "cut short" in said[0]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"temperature": 0.5}, r"another temperature: 1.0 then, 0.5 now"),
        ({"seed": 3}, "another seed"),
        ({"special_tokens": "text"}, "another special_tokens"),
        ("prompts", "another prompts"),
        ("model", "another model"),
        ("beside", "answers.jsonl.of, which says what its answers belong to, does not"),
        ("damaged", "cannot be read"),
        ("line", r"this line is no answer"),
        ("twice", "row 1 is answered twice"),
    ],
)
def test_answers_to_something_else_are_refused_by_name_and_stay_as_they_are(change, words, prompts, tmp_path):
    out, beside = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.of"
    answer_file(model(), prompts, out, **OPTIONS)
    speaks = model()
    match change:
        case "prompts":
            prompts.write_text(prompts.read_text() + '{"prompt": "more"}\n')
        case "model":
            speaks = LanguageModel(tiny_decoder(context=100, seed=1), byte_tokenizer())
        case "beside":
            beside.unlink()
        case "damaged":
            beside.write_text("{")
        case "line":
            out.write_text("hello\n" + out.read_text())
        case "twice":
            out.write_text(out.read_text().splitlines()[0] + "\n" + out.read_text())
    before = out.read_bytes()
    with pytest.raises(RunError, match=words):
        answer_file(speaks, prompts, out, **(OPTIONS | (change if isinstance(change, dict) else {})))
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "line, words",
    [
        (b'{"prompt": "a"', "unexpected end of line"),
        (b"[1]", "not a JSON object"),
        (b'{"text": "a"}', "neither prompt nor messages"),
        (b'{"prompt": "a", "messages": []}', "both prompt and messages"),
        (b'{"prompt": 3}', "prompt is not a text"),
        (b'{"messages": [{"role": "user"}]}', "message 1"),
        (b'{"messages": []}', "no list of messages"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "ends with an answer"),
        (b'{"prompt": "%s"}' % (b"x" * 100), "the prompt has 100 tokens"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_row_is_told_with_its_line_before_anything_is_written(line, words, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=words) as caught:
        answer_file(model(), file, tmp_path / "out.jsonl", **OPTIONS)
    assert caught.value.where == f"{file}:2" and "on-bad-line" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_fields_that_are_not_read_are_named(tmp_path):
    file, said = tmp_path / "prompts.jsonl", []
    file.write_text('{"prompt": "a", "temperature": 0}\n{"prompt": "b"}\n')
    answer_file(model(), file, tmp_path / "out.jsonl", say=said.append, **OPTIONS)
    assert said == [f"{file}: not read: temperature (1 row)"]


OWN = [
    ({"temperature": 0, "max_tokens": 3}, {"stop_reason": "max_tokens"}),
    ({"regex": "[ab]{3}"}, {"text": None}),
    ({"num_return_sequences": 3, "temperature": 1.3}, {"results": 3}),
    ({"num_beams": 3, "num_return_sequences": 2}, {"results": 2}),
    ({"num_beams": 2}, {"score": None}),
    ({"logprobs": 2}, {"logprobs": None}),
    ({"json_schema": {"enum": ["a", "b"]}}, {"text": None}),
    ({"stop": "e", "logit_bias": {"101": 40.0}}, {"stop_reason": "stop_string"}),
]


def rows_of_their_own(file):
    rows = [{"prompt": f"number {n}", "sampling": own} for n, (own, _) in enumerate(OWN)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "x", "sampling": None}, *rows]))
    return file


def test_a_row_may_have_settings_of_its_own_and_gets_the_texts_that_it_gets_alone(tmp_path):
    file, out = rows_of_their_own(tmp_path / "prompts.jsonl"), tmp_path / "out.jsonl"
    done = answer_file(model(), file, out, slots=3, max_tokens=6)
    plain, *answers = answers_of(out)
    assert plain["new_tokens"] == 6 and len(answers) == len(OWN) == done.rows - 1
    for n, (own, has) in enumerate(OWN):
        answer = answers[n]
        assert answer["row"] == n + 2
        for name, value in has.items():
            found = answer[name]
            assert value is None or (len(found) if name == "results" else found) == value
        texts = answer.get("results", [answer])
        assert all(one["prompt_tokens"] == 8 for one in texts)
        if own.get("num_beams", 1) > 1 or "temperature" in own and own["temperature"] == 0:
            alone = model().complete([f"number {n}"], **({"max_tokens": 6} | own))
            assert [one["text"] for one in texts] == [one.text for one in alone]
    assert set(answers[1]["text"]) <= set("ab") and len(answers[1]["text"]) == 3
    assert len({one["text"] for one in answers[2]["results"]}) == 3
    scores = [one["score"] for one in answers[3]["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(answers[5]["logprobs"]) == 6 and len(answers[5]["logprobs"][0]["top"]) == 2
    assert json.loads(answers[6]["text"]) in ("a", "b") and answers[7]["text"] == ""


def test_a_killed_file_of_rows_with_several_texts_and_beams_goes_on_as_if_never_killed(tmp_path):
    file, whole, out = rows_of_their_own(tmp_path / "p.jsonl"), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    answer_file(model(), file, whole, slots=3, max_tokens=6)
    for last in (8, 20):
        dying, passes = model(), []

        def die(*arguments, last=last, passes=passes):
            passes.append(1)
            if len(passes) == last:
                raise Dies

        dying.decoder.register_forward_pre_hook(die)
        with pytest.raises(Dies):
            answer_file(dying, file, out, slots=3, max_tokens=6)
    assert 0 < len(answers_of(out)) < len(OWN) + 1
    answer_file(model(), file, out, slots=2, max_tokens=6)
    for one, other in zip(answers_of(out), answers_of(whole), strict=True):
        figures = [texts.pop("logprobs", []) for texts in (one, other)]  # whose last bits are of the batch
        assert one == other or one["score"] == pytest.approx(other["score"])
        for token, same in zip(*figures, strict=True):
            assert token["token"] == same["token"] and token["logprob"] == pytest.approx(same["logprob"], abs=1e-4)


@pytest.mark.parametrize(
    "own, words",
    [
        ([1], "sampling is no object of options"),
        ("hot", "sampling is no object of options"),
        ({"temprature": 1}, "did you mean temperature"),
        ({"self": 1}, "unknown generation option self"),
        ({"\x1b[31m": 1}, r"unknown generation option '\\x1b\[31m'"),
        ({"temperature": -1}, "temperature -1 cannot be used"),
        ({"temperature": "x" * 10_000}, r"temperature 'x{50,200}\.\.\."),
        ({"num_beams": 2, "temperature": 0.5}, "no use for temperature"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams cannot become"),
        ({"regex": "(a"}, "regular expression cannot be used"),
        ({"json_schema": {"type": "blah"}}, "JSON schema cannot be used"),
        ({"logit_bias": {"999": 1}}, "logit_bias names token 999"),
    ],
)
def test_bad_settings_of_a_row_are_told_with_its_line_before_anything_is_computed(own, words, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n' + json.dumps({"prompt": "a", "sampling": own}) + "\n")
    with pytest.raises(DataError, match=words) as caught:
        answer_file(model(), file, tmp_path / "out.jsonl", max_tokens=6)
    assert caught.value.where == f"{file}:2" and not (tmp_path / "out.jsonl").exists()
    assert len(str(caught.value)) < 2000


def test_a_constraint_of_a_row_takes_the_place_of_that_of_all(tmp_path):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "a"}, {"prompt": "a", "sampling": {"grammar": 'start: "no"'}}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer_file(model(), file, out, regex="yes", max_tokens=6)
    assert [answer["text"] for answer in answers_of(out)] == ["yes", "no"]


def test_a_second_process_is_kept_out(prompts, tmp_path):
    from shoestring.generate.answers_file import AnswersFile

    with AnswersFile(tmp_path / "out.jsonl", {}):
        with pytest.raises(RunError, match="another process"):
            answer_file(model(), prompts, tmp_path / "out.jsonl", **OPTIONS)


def test_the_verb_writes_answers_and_goes_on_with_them(prompts, tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "model", tmp_path / "answers.jsonl"
    save_model(tiny_decoder(context=100), folder, byte_tokenizer())
    given = ["generate", str(folder), "--file", str(prompts), "--max-tokens", "4", "--device", "cpu"]
    assert main([*given]) == 2 and "--out answers.jsonl" in capsys.readouterr().err
    assert main([*given, "--out", str(out), "--prompt", "a"]) == 2
    assert main([*given, "--out", str(prompts)]) == 2
    capsys.readouterr()
    assert main([*given, "--out", str(out)]) == 0
    assert "9 prompts" in capsys.readouterr().out and len(answers_of(out)) == 9
    assert main([*given, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"] == 9
    assert main([*given, "--out", str(out), "--temperature", "0"]) == 2
    assert "another temperature" in capsys.readouterr().err
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "sampling": {"top_k": -1}}\n')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "shoestring.offload.load", None)  # told before a model is loaded
        assert main(["generate", str(folder), "--file", str(rows), "--out", str(tmp_path / "d")]) == 2
    assert f"{rows}:1: top_k -1 cannot be used" in capsys.readouterr().err
    rows.write_text('{"prompt": "a"}\n')
    several = ["--file", str(rows), "--out", str(tmp_path / "d"), "--num-return-sequences", "2", "--logprobs", "0"]
    assert main(["generate", str(folder), *several, "--max-tokens", "2", "--device", "cpu"]) == 0
    [answer] = answers_of(tmp_path / "d")
    assert [len(one["logprobs"]) for one in answer["results"]] == [2, 2]
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    assert main(["generate", str(folder), "--file", str(lines), "--out", str(tmp_path / "b"), "--max-tokens", "2"]) == 0
    assert [answer["row"] for answer in answers_of(tmp_path / "b")] == [1, 3]
    lines.write_bytes(b"one\n\xff\n")
    monkeypatch.setitem(sys.modules, "shoestring.offload.load", None)  # told before a model is loaded
    assert main(["generate", str(folder), "--file", str(lines), "--out", str(tmp_path / "c")]) == 2
    assert f"{lines}:2: not UTF-8" in capsys.readouterr().err
