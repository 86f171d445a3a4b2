"""`data show` and `data make`, as one would type them."""

import json
import shlex
from pathlib import Path

import pytest

from shoestring.cli.main import main
from tests.data import families

TURNS = [{"role": "user", "content": "What is 7 + 8?"}, {"role": "assistant", "content": "7 + 8 = 15\nYes."}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a model (its tokenizer and config are enough) and two examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")  # lines are as long as the text is
    families.chatml(families.LLAMA3.replace("eot_id", "im_end").replace("bos_token", "''")).save("model")
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"intermediate_size": 8, "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    config |= {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "tie_word_embeddings": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.jsonl").write_text(
        json.dumps({"messages": TURNS}) + "\n" + json.dumps({"messages": TURNS * 2}) + "\n"
    )
    return tmp_path


def run(capsys, *tokens):
    code = main(list(tokens))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_marks_what_is_learned_without_colours(folder, capsys):
    code, out, err = run(
        capsys, "data", "show", "mine.jsonl", "--model", "model", "-n", "1", "--sequence-length", "500"
    )
    assert (code, err) == (0, "")
    header, title, example = out.splitlines()
    assert header.startswith("mine.jsonl: messages, 2 examples, ") and header.endswith(", 0 truncated")
    assert "% supervised, longest " in header
    assert title == "example 1 (supervised tokens in bold, between ‹ ›)"
    assert example == (
        "<|start_header_id|>user<|end_header_id|>⏎⏎What is 7 + 8?<|im_end|>"
        "<|start_header_id|>assistant<|end_header_id|>⏎⏎‹7 + 8 = 15⏎Yes.<|im_end|>›"
    )


def test_show_json_gives_ids_mask_and_counts(folder, capsys):
    tokens = ("data", "show", "mine.jsonl", "--model", "model", "--sequence-length", "500", "--json")
    result = json.loads(run(capsys, *tokens)[1])
    assert (result["examples"], result["format"], len(result["shown"])) == (2, "messages", 2)
    shown = result["shown"][1]
    assert shown["where"] == "mine.jsonl:2" and len(shown["tokens"]) == len(shown["supervised"])
    assert sum(sum(example["supervised"]) for example in result["shown"]) == result["supervised"]
    assert sum(len(example["tokens"]) for example in result["shown"]) == result["tokens"]
    assert [part["text"] for part in shown["text"] if part["supervised"]] == ["7 + 8 = 15\nYes.<|im_end|>"] * 2


def test_the_models_context_cuts_examples_and_the_reason_is_told(folder, capsys):
    code, out, err = run(capsys, "data", "show", "mine.jsonl", "--model", "model")
    assert (code, out) == (2, "") and err.startswith("error: mine.jsonl:1: nothing to learn is left of its ")


def test_a_broken_line_is_one_sentence_and_skip_counts_it(folder, capsys):
    with open("mine.jsonl", "a") as file:
        file.write('{"messages": [\n')
    tokens = ("data", "show", "mine.jsonl", "--model", "model", "--sequence-length", "500")
    code, out, err = run(capsys, *tokens)
    assert (code, out) == (2, "")
    assert err.startswith("error: mine.jsonl:3: not a JSON object: unexpected end of line\n  expected one of: ")
    code, out, err = run(capsys, *tokens, "--on-bad-line", "skip")
    assert code == 0 and "left out: 1 bad lines (first: mine.jsonl:3)" in out.splitlines()[0]


def test_make_writes_both_files_and_shows_a_few(folder, capsys):
    code, out, err = run(capsys, "data", "make", "arithmetic", "--n", "200", "--seed", "1", "--out", "sums")
    assert (code, err) == (0, "") and "Q: " in out and "A: " in out
    assert len((folder / "sums" / "train.jsonl").read_text().splitlines()) == 180
    assert len((folder / "sums" / "test.jsonl").read_text().splitlines()) == 20
    assert run(capsys, "data", "make", "code", "--out", "sums")[0] == 2
    assert run(capsys, "data", "make", "code", "--n", "20", "--seed", "1")[0] == 0
    assert (folder / "code" / "train.jsonl").is_file()


def test_make_writes_conversations_of_several_exercises(folder, capsys):
    flags = ("--n", "20", "--turns", "6", "--lists", "0.5", "--stories", "0", "--out", "sums")
    assert run(capsys, "data", "make", "arithmetic", *flags)[0] == 0
    rows = [json.loads(line) for line in (folder / "sums" / "train.jsonl").read_text().splitlines()]
    assert [len(row["messages"]) for row in rows] == [12] * 3
    assert any(message["content"].count(" = ") > 1 for row in rows for message in row["messages"])


def test_make_passes_the_settings_of_arithmetic_on(folder, capsys):
    flags = ("--digits", "1", "--operations", "multiply", "--stories", "0", "--test", "0.5", "--json")
    code, out, _ = run(capsys, "data", "make", "arithmetic", "--n", "40", "--out", "sums", *flags)
    assert code == 0 and json.loads(out) == {
        "folder": "sums",
        "kind": "arithmetic",
        "train": 20,
        "test": 20,
        "repeated": 0,
    }
    assert " * " in (folder / "sums" / "test.jsonl").read_text()
    assert run(capsys, "data", "make", "code", "--digits", "1", "--out", "other")[0] == 2


def test_the_commands_of_the_guide_print_what_it_shows(folder, capsys):
    guide = (Path(__file__).parents[2] / "docs" / "finetune-data.md").read_text(encoding="utf-8")
    shown = [line.strip() for line in guide.split("\n\nWhat stands between")[0].splitlines() if line.startswith("    ")]
    commands = [line for line in shown if line.startswith("shoestring ")]
    assert len(commands) == 2
    for command in commands:
        code, out, err = run(capsys, *shlex.split(command)[1:])
        assert code == 0
    assert out.splitlines() == shown[len(commands) :]


def test_a_table_with_columns_of_its_own_is_shown_with_what_is_read(folder, capsys):
    (folder / "mine.csv").write_text("Q,A,by\n1 + 1?,2,Ann\n")
    flags = ("--columns", "prompt=Q", "completion=A", "--sequence-length", "500")
    code, out, _ = run(capsys, "data", "show", "mine.csv", "--model", "model", *flags)
    header, note, _, example = out.splitlines()
    assert code == 0 and header.startswith("mine.csv: prompt (Q as prompt, A as completion), 1 example, ")
    assert note == "note: fields that are not used: by (1 row)" and example.endswith("‹2<|im_end|>›")
    code, _, err = run(capsys, "data", "show", "mine.csv", "--model", "model", "--columns", "prompt")
    assert code == 2 and err.startswith("error: --columns prompt: not FIELD=NAME (command line)\n")
