"""`tokenizer train` and `prepare` on a tiny folder, as one would type them."""

import json

import pytest

from shoestring.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text(
            f"the {i} words of document {i} are words of a document\n" * 5
        )
    return tmp_path


def test_a_tokenizer_is_trained_and_then_used_to_prepare_shards(folder, capsys):
    assert main(["tokenizer", "train", "text", "--vocabulary", "300", "--out", "tok", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert (folder / "tok" / "tokenizer.json").is_file() and 257 <= trained["vocabulary"] <= 300
    command = ["prepare", "text", "--tokenizer", "tok", "--out", "shards", "--validation", "0.2", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    splits = result["splits"]
    assert sum(split["documents"] for split in splits.values()) == 30
    assert sum(split["bytes"] for split in splits.values()) == sum(
        path.stat().st_size for path in (folder / "text").iterdir()
    )
    assert splits["train"]["tokens"] < splits["train"]["bytes"]
    assert main(command[:-1]) == 0
    assert "validation" in capsys.readouterr().out


def test_an_existing_folder_is_not_overwritten(folder, capsys):
    assert main(["tokenizer", "train", "text", "--out", "text"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert len(list((folder / "text").iterdir())) == 30


def test_a_broken_line_is_one_sentence_with_its_place(folder, capsys):
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert main(["tokenizer", "train", "bad.jsonl", "--out", "tok"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: bad.jsonl:2: ") and "--on-bad-line skip" in err
    assert not (folder / "tok").exists()
